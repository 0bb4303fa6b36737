"""Which batch fills an output, so that the same command comes back to it. Knows no HTTP."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm_client.errors import BadInput
from slm_client.outputs import Output
from slm_client.source import Format, Source


@dataclass(frozen=True)
class Note:
    """What is kept beside an output while its batch is not all written: `digest` is that of what
    was asked for."""

    batch: str
    url: str
    digest: str

    def write(self, path: Path) -> None:
        """All of it or, if we die, none. Raises BadInput."""
        partial = path.with_name(f"{path.name}.partial")
        try:
            partial.write_text(json.dumps(asdict(self)) + "\n", "utf-8")
            os.replace(partial, path)  # noqa: PTH105 - as Path.replace
        except OSError as error:
            raise BadInput(f"cannot write {path}: {error.strerror}") from None


def digest_of(source: Source, format: Format, options: Mapping[str, Any]) -> str:  # noqa: A002
    """Of the rows and of all that is asked for them."""
    asked = json.dumps([source.digest(), format, options], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def read_note(output: Output) -> Note | None:
    """None if there is none. Raises BadInput if it cannot be read."""
    if output.state_file is None:
        return None
    try:
        known = json.loads(output.state_file.read_text("utf-8"))
        return Note(known["batch"], known["url"], known["digest"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"cannot read {output.state_file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        return Note("", "", "")  # it is nobody's


def forget(output: Output, batch_id: str) -> None:
    """All of the batch is written: the note, if it is about it, has done its work."""
    note = read_note(output)
    if note and note.batch == batch_id and output.state_file:
        output.state_file.unlink(missing_ok=True)


def batch_to_join(
    output: Output, digest: str, url: str, *, overwrite: bool, new: bool
) -> str | None:
    """The id of the batch that fills `output` with just this; None: make one. Raises BadInput if
    that would lose what is there."""
    note = read_note(output)
    ours = note is not None and (note.url, note.digest) == (url, digest)
    if ours and note and not new:
        return note.batch
    if ours or overwrite or (output.is_empty() and note is None):
        return None
    if note is None:
        raise BadInput(f"{output.name} is not empty; add --overwrite to replace it.")
    whose = f"batch {note.batch}" if note.batch else "another batch"
    raise BadInput(
        f"{output.name} is for the results of {whose}, of other prompts, options or another "
        f"service ({output.state_file} says so). The same command as then comes back to it; "
        "--overwrite starts this one instead."
    )
