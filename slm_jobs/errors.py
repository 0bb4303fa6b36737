"""Everything `slm_jobs` raises on purpose.

SlmJobsError
├── JobNotFound          no such job, or its record has expired
├── UnknownModel         a model that the manifest does not name
├── ManifestError        models.toml is missing or wrong
├── SettingsError        an environment variable is wrong
└── StoreUnavailable     Redis does not answer, is loading, or refuses to write
"""

from __future__ import annotations

from collections.abc import Iterable


class SlmJobsError(Exception):
    pass


class JobNotFound(SlmJobsError):
    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"no job {job_id!r}: it never existed or its record has expired")


class UnknownModel(SlmJobsError):
    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        super().__init__(f"no model {name!r}; there are: {', '.join(known)}")


class ManifestError(SlmJobsError):
    pass


class SettingsError(SlmJobsError):
    pass


class StoreUnavailable(SlmJobsError):
    pass
