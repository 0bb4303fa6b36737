"""One run of the suite, from the first process to the audit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from slm_core import Engine, load_checkpoint
from slm_jobs.settings import Settings
from tests.chaos.auditor import Auditor, wait_for_quiet
from tests.chaos.history import History
from tests.chaos.ledger import Ledger
from tests.chaos.load import Load
from tests.chaos.monkey import Monkey, Progress, plan
from tests.chaos.network import Network
from tests.chaos.receiver import Receiver
from tests.chaos.stack import CALLBACK_SECONDS, Stack
from tests.slm_core.conftest import torch_threads

RECOVERED_WITHIN = 5.0  # seconds after a lease: 95 of 100 works of killed workers run again
LEASE_SECONDS = Settings.model_fields["lease_seconds"].default
MOST_WAITING = 100  # jobs, so that a flood meets the ceiling
_QUIET_SECONDS = 180.0  # until everything has ended and was told


class Options(NamedTuple):
    """`seconds`: of faults; then it takes as long as it takes."""

    checkpoint: Path
    seed: int
    seconds: float
    faults: int
    lease: float
    per_second: float


def run(options: Options, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """What is not as it was promised, and the figures."""
    say, ledger = Progress(), Ledger()
    faults = plan(options.seed, faults=options.faults, seconds=options.seconds, lease=options.lease)
    with (
        Network() as network,
        Receiver(options.seed, 2 * CALLBACK_SECONDS) as receiver,
        Stack(
            folder,
            options.checkpoint,
            network,
            lease=options.lease,
            SLM_MAX_WAITING_JOBS=str(MOST_WAITING),
        ) as stack,
    ):
        say("the service is up")
        if not stack.clocks.possible:
            say("no C compiler: clocks stay right")
        load = Load(stack, receiver, ledger, seed=options.seed, per_second=options.per_second)
        load.start()
        monkey = Monkey(stack, network, load, say)
        monkey.run(faults)
        say(f"{len(ledger.jobs)} jobs were asked for; waiting for their ends")
        began = time.monotonic()
        unanswered = load.finish(_QUIET_SECONDS)
        awake = wait_for_quiet(stack, _QUIET_SECONDS)
        quiet_seconds = time.monotonic() - began
        say(f"quiet after {quiet_seconds:.0f} s; reading everything")
        history = History(folder / "redis", options.lease * 1000)
        engine = Engine(load_checkpoint(options.checkpoint), device="cpu", slots=64)
        auditor = Auditor(stack, ledger, receiver, history, engine)
        with torch_threads(1):  # several would wait for each other beside the service
            auditor.audit()
        say("done")
    wrong = [f"never at rest: {key}" for key in awake]
    if unanswered:
        wrong.append(f"{unanswered} clients never saw the end")
    bound = options.lease + RECOVERED_WITHIN
    if options.lease == LEASE_SECONDS and auditor.figures["recovery_p95_s"] > bound:
        wrong.append(f"recovery took {auditor.figures['recovery_p95_s']} s, not {bound}")
    figures = {
        "faults": monkey.done.total(),
        "by_kind": dict(monkey.done),
        "seed": options.seed,
        "lease_s": options.lease,
        "quiet_after_s": round(quiet_seconds, 1),
        **auditor.figures,
        "wrong": len(wrong) + len(auditor.wrong),
    }
    return wrong + auditor.wrong, figures
