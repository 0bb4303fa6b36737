"""python -m tests.chaos --minutes 10 --seed 7

Runs the whole service on this machine (2 api, 3 worker, 2 callback processes, Redis) under steady
load, while a monkey kills, stops, cuts off and confuses its parts; then reads everything, and says
what was lost, doubled or wrong. The last line is one JSON object; the status is 1 if anything was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from slm_core import GPTConfig, save_checkpoint
from tests.chaos.run import LEASE_SECONDS, Options, run
from tests.slm_core.conftest import random_model


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10, help="of faults")
    parser.add_argument("--seed", type=int, default=7, help="decides which faults come when")
    parser.add_argument("--faults", type=int, help="how many; ten a minute, and some, if absent")
    parser.add_argument("--lease", type=float, default=LEASE_SECONDS, help="SLM_LEASE_SECONDS")
    parser.add_argument("--rate", type=float, default=4.0, help="jobs sent each second")
    parser.add_argument("--folder", type=Path, help="for logs and data; else they are thrown away")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        config = GPTConfig(n_layer=2, n_head=4, n_embd=256, context_length=512)
        options = Options(
            checkpoint=save_checkpoint(random_model(config), folder / "model"),
            seed=given.seed,
            seconds=60 * given.minutes,
            faults=given.faults or round(11 * given.minutes),
            lease=given.lease,
            per_second=given.rate,
        )
        wrong, figures = run(options, folder)
    for line in wrong:
        print(line[:2_000])  # noqa: T201
    print(json.dumps(figures))  # noqa: T201
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
