"""python -m slm_jobs.bootstrap_key --file .slm/api_key

Makes sure that there is an admin key whose token is in the file, and that Redis (SLM_REDIS_URL)
knows it: the first key of a service, with which others are made over HTTP.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from slm_jobs.api_keys import KeyProof, KeySettings, KeyStore
from slm_jobs.connection import connect
from slm_jobs.errors import KeyRejected, SlmJobsError
from slm_jobs.schemas import MAX_PRIORITY
from slm_jobs.settings import Settings

ADMIN = KeySettings(
    name="local",
    admin=True,
    requests_per_minute=None,
    tokens_per_minute=None,
    jobs_in_flight=None,
    queued_tokens=None,
    max_priority=MAX_PRIORITY,
    callback_hosts=["localhost", "127.0.0.1"],
)


def ensure(store: KeyStore, file: Path) -> None:
    """Raises KeyRejected if the file holds something else, OSError, and StoreUnavailable.

    A Redis that has lost the key, or never had it, is told; a key that was revoked stays so.
    """
    if file.exists():
        token = file.read_text("utf-8").strip()
        proof = KeyProof.of(token)
        if not any(key.id == proof.key for key in store.list()):
            store.create(ADMIN, token=token)
        store.authorise(proof)
        return
    made = store.create(ADMIN)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(made.token + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m slm_jobs.bootstrap_key", description=__doc__)
    parser.add_argument("--file", type=Path, required=True, help="the token, and nothing else")
    file = parser.parse_args().file
    try:
        redis = connect(Settings.from_environment(), max_connections=1)
        ensure(KeyStore(redis), file)
    except KeyRejected:
        sys.exit(f"{file} holds no key that is valid here: remove it for a new one")
    except (SlmJobsError, OSError) as error:
        sys.exit(f"cannot make an API key: {error}")


if __name__ == "__main__":
    main()
