"""How many rows are read of the store at once: they may be of any size, and are held in memory."""

from __future__ import annotations

from slm_jobs.batch_schemas import Batch

_OUTPUTS = 200
_ROWS_AT_FIRST = 20  # until their outputs have been seen: each may have a number of its own
_GROWTH = 4


class PageSize:
    """`rows` to read next, of about 200 outputs together."""

    def __init__(self, batch: Batch) -> None:
        self.rows = max(1, _ROWS_AT_FIRST // batch.params["n"])

    def learn(self, rows: int, outputs: int) -> None:
        """What a page of `rows` had; a row without outputs counts as one."""
        fitting = _OUTPUTS * rows // max(outputs, rows) if rows else _OUTPUTS
        self.rows = max(1, min(fitting, self.rows * _GROWTH))
