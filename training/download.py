"""TinyStories from the Hugging Face hub: resumed where it broke off, and checked by its SHA-256.

The package `huggingface_hub` knows the way there (addresses, proxies, retries, `HF_ENDPOINT`). Its
`hf_hub_download` begins anew after a process ended and checks sizes only, so that much is ours.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

_REPOSITORY = "roneneldan/TinyStories"
# Its last one; the hub publishes these sizes and hashes for it.
_REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
_INSTEAD = "Files that you have may be given as SOURCE instead of --tinystories."


class DownloadError(Exception):
    """Says in one line what went wrong and what to do."""


@dataclass(frozen=True)
class HubFile:
    """A file of the data set: its name, its size in bytes, its SHA-256 in hex."""

    name: str
    size: int
    sha256: str


TRAIN = HubFile(
    "TinyStoriesV2-GPT4-train.txt",
    2_227_753_162,
    "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
)
VALID = HubFile(
    "TinyStoriesV2-GPT4-valid.txt",
    22_502_601,
    "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
)


def fetch(file: HubFile, folder: Path) -> Path:
    """The file in `folder`, downloaded if need be, with a progress bar.

    What an earlier call left is gone on with. Raises DownloadError.
    """
    target = folder / file.name
    if _is(file, target):
        return target
    partial = folder / f".{file.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(file, partial)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_space(file, folder) from None
        raise _broke_off(file, partial, error) from None
    if not _is(file, partial):
        partial.unlink()
        raise DownloadError(
            f"{file.name} arrived damaged: it is not the file of SHA-256 {file.sha256[:12]}… that "
            f"{_REPOSITORY} has. It was deleted; run the same command again. {_INSTEAD}"
        )
    partial.replace(target)
    return target


def _download(file: HubFile, partial: Path) -> None:
    """Appends to `partial` what it lacks. Raises DownloadError or OSError."""
    try:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
    except ImportError:
        raise DownloadError(
            "--tinystories needs a package that is not installed: pip install 'slm-jobs[hub]'. "
            f"{_INSTEAD}"
        ) from None
    have = partial.stat().st_size if partial.exists() else 0
    if have > file.size:
        partial.unlink()
        have = 0
    if file.size - have > shutil.disk_usage(partial.parent).free:
        raise _no_space(file, partial.parent)
    url = hf_hub_url(_REPOSITORY, file.name, repo_type="dataset", revision=_REVISION)
    try:
        with partial.open("ab") as out:
            http_get(
                url,
                out,
                resume_size=have,
                headers={"Accept-Encoding": "identity"},  # a range of packed bytes has no meaning
                expected_size=file.size,
                displayed_filename=file.name,
            )
    except OSError:
        raise
    except Exception as error:  # the package's, and its network's, are of many families
        raise _broke_off(file, partial, error) from None


def _is(file: HubFile, path: Path) -> bool:
    """Whether `path` holds all of the file, and nothing else."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _broke_off(file: HubFile, partial: Path, error: Exception) -> DownloadError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if reason.startswith("Consistency check failed"):  # goes on with an option that is not ours
        reason = "the connection ended too early or too late"
    kept = f"What has arrived is kept in {partial.parent}: the same command goes on from there. "
    if partial.is_file() and not partial.stat().st_size:
        partial.unlink()
    return DownloadError(
        f"cannot download {file.name} of {_REPOSITORY} from the Hugging Face hub: {reason}. "
        f"{kept if partial.is_file() else ''}{_INSTEAD}"
    )


def _no_space(file: HubFile, folder: Path) -> DownloadError:
    return DownloadError(
        f"no space for {file.name} ({file.size / 1e9:.1f} GB) in {folder}: make room and run the "
        f"same command again, or choose another --out. {_INSTEAD}"
    )
