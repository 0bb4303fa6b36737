"""Everything `slm_jobs` raises on purpose. Each error has a stable `code` that clients may rely on.

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
    code = "internal_error"


class JobNotFound(SlmJobsError):
    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"no job {job_id!r}: it never existed or its record has expired")


class UnknownModel(SlmJobsError):
    code = "unknown_model"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        super().__init__(f"no model {name!r}; there are: {', '.join(known)}")


class ManifestError(SlmJobsError):
    code = "bad_manifest"


class SettingsError(SlmJobsError):
    code = "bad_settings"


class StoreUnavailable(SlmJobsError):
    code = "store_unavailable"
