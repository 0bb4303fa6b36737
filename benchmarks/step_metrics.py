"""python -m benchmarks.step_metrics [--model shipped] [--rounds 3]

What counting costs the thread that decodes: every other step counts nothing, and each step is
compared with the one beside it, for a full engine and for one sequence alone; and the same code by
itself, without an engine. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from types import SimpleNamespace
from typing import Any

from benchmarks.measure import model_of
from slm_core import Engine, SamplingParams
from slm_core.stats import EngineStats
from worker.lane import Lane
from worker.step_stats import StepStats
from worker.submission import Submission

SLOTS = 64
_WARM_UP = 20  # steps
_ALONE = 2_000  # calls without an engine


def _ignore(*_: Any, **__: Any) -> None:
    pass


_SILENT_STEPS: Any = SimpleNamespace(note=_ignore)
_SILENT_ENGINE: Any = SimpleNamespace(count=_ignore, prefill_tokens=0)


def compare(engine: Engine, live: int, rounds: int) -> dict[str, float]:
    """Steps of `live` sequences."""
    lane = Lane("model", lambda: engine)
    lane.load()
    counting = (lane.steps, engine.stats)
    silent = (_SILENT_STEPS, _SILENT_ENGINE)
    took: dict[bool, list[float]] = {True: [], False: []}
    most = engine.config.context_length - 8
    for number in range(rounds):
        requests = [
            ([13, 14, 15], SamplingParams(max_tokens=most, seed=seed, ignore_eos=True))
            for seed in range(live)
        ]
        lane.take(Submission("model", requests, notify=_ignore))
        for step in range(most):
            counts = (step + number) % 2 == 0
            lane.steps, engine.stats = counting if counts else silent
            began = time.perf_counter()
            lane.step()
            if step >= _WARM_UP:
                took[counts].append(time.perf_counter() - began)
        lane.steps, engine.stats = counting
        while lane.has_work:
            lane.step()
    alone = _by_itself(live)
    pairs = list(zip(took[True], took[False], strict=True))
    step = statistics.median(took[False])
    return {
        "live": live,
        "steps": len(pairs),
        "step_ms": round(step * 1000, 3),
        "ratio": round(statistics.median(with_it / without for with_it, without in pairs), 4),
        "alone_us": round(alone * 1e6, 2),
        "alone_percent_of_step": round(100 * alone / step, 3),
    }


def _by_itself(live: int) -> float:
    """Seconds that a step's counting takes."""
    steps, engine = StepStats(), EngineStats(kv_capacity=1)
    sequences: Any = [SimpleNamespace(prompt_ids=[1] * 8, token_ids=[1] * 100)] * live
    best = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(_ALONE // 20):
            engine.count(live, [], sequences, 0)
            steps.note(0.0, 0.006, live, 0, prefill=False)
        best.append((time.perf_counter() - began) / (_ALONE // 20))
    return statistics.median(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--model", default="shipped", help="shipped, or a preset's random weights")
    parser.add_argument("--rounds", type=int, default=3, help="texts of whole contexts")
    options = parser.parse_args()
    engine = Engine(model_of(options.model), slots=SLOTS, precision="int8")
    found = [compare(engine, live, options.rounds) for live in (SLOTS, 1)]
    print(json.dumps({"model": options.model, "engine": engine.fingerprint, "found": found}))


if __name__ == "__main__":
    main()
