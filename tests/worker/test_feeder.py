"""Rows of batches on a fake engine: how they are fed, and what becomes of each."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fakeredis
import pytest

from slm_jobs import keys
from slm_jobs.api_keys import KeyProof, KeySettings
from slm_jobs.batch_schemas import Batch, BatchDraft, BatchRow, BatchStatus, ResultLine, RowEnd
from slm_jobs.schemas import Company, GenerationParams, JobStatus
from slm_jobs.store import JobStore
from tests.worker.fakes import FakeEngine
from tests.worker.test_batcher import until
from tests.worker.test_host import MODEL, OTHER, make_host, serve, serving, submit
from worker.host import EXIT_LOST, Host

MakeHost = Callable[..., Host]


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


@pytest.fixture
def store(server: fakeredis.FakeServer) -> JobStore:
    return JobStore(fakeredis.FakeRedis(server=server, decode_responses=True))


@pytest.fixture
def make(store: JobStore) -> Iterator[MakeHost]:
    """Makes hosts with an engine of 8 slots, of which rows leave 2 free; one waits beside those."""
    hosts = []

    def make(engine: FakeEngine, **settings: float) -> Host:
        hosts.append(make_host(store, engine, **{"slots": 8, "reserved_slots": 2, **settings}))
        return hosts[-1]

    yield make
    for host in hosts:
        host.stop()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(slots=8, reserved_slots=2)


@pytest.fixture
def host(make: MakeHost, engine: FakeEngine) -> Host:
    return make(engine)


Row = str | dict[str, Any]  # a prompt, or that and how it differs


def add_batch(store: JobStore, rows: Sequence[Row], model: str = MODEL, **params: Any) -> str:
    owner = KeyProof.of(store.keys.create(KeySettings(name="k")).token)
    batch_params = GenerationParams.model_validate({"max_tokens": 3, "seed": 100, **params})
    batch_id, _ = store.batches.begin(BatchDraft(model, batch_params), owner=owner)
    made = []
    for line, row in enumerate(rows, 1):
        prompt, overrides = (row, {}) if isinstance(row, str) else (row["prompt"], dict(row))
        overrides.pop("prompt", None)
        n = overrides.get("n", batch_params.n)
        made.append(BatchRow(str(line), line, [prompt], overrides, 10, n))
    assert store.batches.add_rows(batch_id, made) == []
    return store.batches.commit(batch_id, "0" * 64).id


def batch(store: JobStore, batch_id: str) -> Batch:
    return store.batches.get(batch_id)


def texts(store: JobStore, batch_id: str) -> dict[str, list[str]]:
    """By custom_id, which comes once."""
    lines = store.batches.results(batch_id, 0, 10_000)
    found = {str(line.custom_id): [output.text for output in line.outputs] for line in lines}
    assert len(found) == len(lines)
    return found


def errors(store: JobStore, batch_id: str) -> dict[str, str]:
    lines = store.batches.failures(batch_id, 0, 10_000)
    return {str(line.custom_id): line.error.code for line in lines if line.error}


def partial(line: ResultLine) -> str:
    [output] = line.outputs
    assert output.finish_reason == "cancelled"
    return output.text


def ended(store: JobStore, batch_id: str) -> Callable[[], bool]:
    return lambda: batch(store, batch_id).status.is_terminal


class Gate:
    """Calls of a method wait, once it is shut, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.waiting = 0
        self._open = threading.Event()
        self.open()
        method = getattr(target, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.waiting += 1
            assert self._open.wait(10)
            self.waiting -= 1
            self.calls.append(args)
            return method(*args, **kwargs)

        monkeypatch.setattr(target, name, call)

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


def test_every_row_once_with_its_own_seed(host: Host, store: JobStore, engine: FakeEngine) -> None:
    rows: list[Row] = [f"p{i}" for i in range(40)]
    rows[7] = {"prompt": "own", "seed": 5, "max_tokens": 9}
    batch_id = add_batch(store, rows, n=2)
    serve(host)
    found = texts(store, batch_id)
    assert found.pop("8") == ["own#5", "own#6"]
    assert found == {
        str(i + 1): [f"p{i}#{100 + 2 * i}", f"p{i}#{101 + 2 * i}"] for i in range(40) if i != 7
    }
    done = batch(store, batch_id)
    assert done.status is BatchStatus.COMPLETED
    assert done.counts.succeeded == 40
    assert done.usage.completion_tokens == 39 * 2 * 3 + 2 * 9
    assert {line.fingerprint for line in store.batches.results(batch_id, 0, 50)} == {"fake/1"}
    assert set(engine.priorities) == {-1}
    assert engine.largest == 6  # two slots stay free
    assert len(host._leases) == 0


def test_jobs_go_first_and_rows_fill_the_rest(
    host: Host, store: JobStore, engine: FakeEngine
) -> None:
    batch_id = add_batch(store, ["hold"] * 20)
    serving(host)
    until(lambda: len(engine.live) == 6)
    assert batch(store, batch_id).counts.running == 7  # one waits in the engine
    jobs = [submit(store, "hold") for _ in range(2)]
    threads = [serving(host) for _ in jobs]
    until(lambda: len(engine.live) == 8)
    for job_id in jobs:
        host._leases.cancel(job_id, 1)
    for thread in threads:
        thread.join(5)
    assert [store.get(job_id).status for job_id in jobs] == [JobStatus.CANCELLED] * 2
    job_id = submit(store, "a")
    serve(host)
    assert store.get(job_id).status is JobStatus.SUCCEEDED
    assert len(engine.live) == 6
    assert batch(store, batch_id).counts.running == 7


def test_rows_make_room_for_jobs(host: Host, store: JobStore, engine: FakeEngine) -> None:
    jobs = [submit(store, "hold") for _ in range(3)]
    for _ in jobs:
        serving(host)
    until(lambda: len(engine.live) == 3)
    batch_id = add_batch(store, [f"p{i}" for i in range(30)])
    serve(host)
    assert batch(store, batch_id).counts.succeeded == 30
    assert engine.largest == 6  # three jobs and three rows
    assert len(host._leases) == 3


def test_a_freed_slot_is_filled_while_redis_is_slow(
    host: Host, store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Row] = [*["hold"] * 5, {"prompt": "short", "max_tokens": 300}, *["hold"] * 5]
    add_batch(store, rows)
    gate = Gate(monkeypatch, store, "claim_next")
    serving(host)
    until(lambda: len(engine.live) == 6 and len(engine.waiting) == 1)
    gate.shut()
    until(lambda: gate.waiting)  # the short one has ended
    until(lambda: not engine.waiting)
    assert len(engine.live) == 6
    at = max(i for i, prompts in enumerate(engine.seen) if "short" in prompts)
    until(lambda: len(engine.seen) > at + 1)
    assert len(engine.seen[at + 1]) == 6
    gate.open()
    until(lambda: len(engine.waiting) == 1)


def test_rows_that_ended_meanwhile_are_written_in_one_call(
    host: Host, store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = add_batch(store, [{"prompt": f"p{i}", "max_tokens": 3 + i} for i in range(7)])
    claims = Gate(monkeypatch, store, "claim_next")
    finish = Gate(monkeypatch, store.batches, "finish")
    works = host.claim(MODEL)
    assert len(works) == 7
    claims.shut()
    threading.Thread(target=host.run, args=(works,), daemon=True).start()
    until(lambda: len(engine.added) == 7 and not engine.has_work)
    claims.open()
    until(ended(store, batch_id))
    assert sum(len(ends) for [ends] in finish.calls) == 7
    assert len(finish.calls) <= 2  # those that had ended when it asked for more, and the rest
    assert len(claims.calls) <= 4


def test_a_row_of_more_outputs_than_there_is_room_runs(
    host: Host, store: JobStore, engine: FakeEngine
) -> None:
    batch_id = add_batch(store, [{"prompt": "many", "n": 30}, "one", {"prompt": "m", "n": 20}])
    serve(host)
    assert {k: len(v) for k, v in texts(store, batch_id).items()} == {"1": 30, "2": 1, "3": 20}
    assert engine.largest == 6


def test_a_row_that_fails_takes_no_other_along(
    host: Host, store: JobStore, engine: FakeEngine
) -> None:
    rows = [f"p{i}" for i in range(20)]
    rows[3], rows[8], rows[12] = "boom", "long", "boom"
    batch_id = add_batch(store, rows)
    serve(host)
    assert errors(store, batch_id) == {
        "4": "engine_fault",
        "9": "invalid_request",
        "13": "engine_fault",
    }
    done = batch(store, batch_id)
    assert (done.status, done.counts.succeeded) == (BatchStatus.COMPLETED, 17)


def test_a_cancelled_batch_keeps_what_its_rows_had(
    host: Host, store: JobStore, engine: FakeEngine
) -> None:
    batch_id = add_batch(store, [*["hold"] * 10, "a"])
    other_id = add_batch(store, ["a", "b"])
    thread = serving(host)
    until(lambda: engine.steps > 5 and len(engine.live) == 6)
    store.batches.cancel(batch_id)
    host._leases.beat()
    thread.join(5)
    done = batch(store, batch_id)
    assert done.status is BatchStatus.CANCELLED
    assert (done.counts.cancelled, done.counts.succeeded) == (11, 0)
    lines = store.batches.failures(batch_id, 0, 100)
    assert sum(bool(line.outputs) and partial(line) != "" for line in lines) >= 5
    assert batch(store, other_id).counts.succeeded == 2
    assert len(host._leases) == 0


def test_what_runs_too_long_keeps_its_text_and_fails(
    make: MakeHost, store: JobStore, engine: FakeEngine
) -> None:
    host = make(engine, job_timeout_seconds=0.05)
    batch_id = add_batch(store, ["hold", "a"])
    serve(host)
    [line] = store.batches.failures(batch_id, 0, 10)
    assert line.error is not None
    assert (line.custom_id, line.error.code) == ("1", "job_timeout")
    assert partial(line) == "hold#100"
    assert texts(store, batch_id) == {"2": ["a#101"]}


def test_a_row_that_jobs_kept_waiting_does_not_time_out(make: MakeHost, store: JobStore) -> None:
    engine = FakeEngine(slots=3, reserved_slots=1)
    host = make(engine, slots=3, reserved_slots=1)
    batch_id = add_batch(store, ["hold", "hold", "a"])
    serving(host)
    until(lambda: len(engine.live) == 2 and len(engine.waiting) == 1)
    job_id = submit(store, ["hold", "hold"])
    serving(host)
    until(lambda: len(engine.live) == 3 and len(engine.waiting) == 2)
    feeder = host._feeders[MODEL]
    for row in feeder._running:
        row.deadline = 0.0
    feeder.wake()
    until(lambda: batch(store, batch_id).counts.failed == 2)
    assert set(errors(store, batch_id).values()) == {"job_timeout"}
    assert batch(store, batch_id).counts.running == 1
    host._leases.cancel(job_id, 1)
    until(ended(store, batch_id))
    assert texts(store, batch_id) == {"3": ["a#102"]}


def test_rows_of_a_hung_engine_fail(
    make: MakeHost, store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.feeder.ENDING_SECONDS", 0.05)
    hung, step = threading.Event(), engine.step
    host = make(engine, job_timeout_seconds=0.1)
    batch_id = add_batch(store, ["hold", "hold"])
    thread = serving(host)
    until(lambda: len(engine.live) == 2 and engine.steps > 2)
    monkeypatch.setattr(engine, "step", lambda: (hung.wait(10), step())[1])
    thread.join(5)
    assert errors(store, batch_id) == {"1": "job_timeout", "2": "job_timeout"}
    hung.set()
    until(lambda: not engine.live)


def test_draining_hands_rows_back_in_one_call(
    make: MakeHost, store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make(engine, drain_seconds=0.3)
    rows: list[Row] = [*["hold"] * 3, {"prompt": "short", "max_tokens": 50}, *["hold"] * 20]
    batch_id = add_batch(store, rows)
    job_id = submit(store, "hold")
    hand_back = Gate(monkeypatch, store, "hand_back")
    threads = [serving(host), serving(host)]
    until(lambda: len(engine.live) == 6 and store.get(job_id).status is JobStatus.RUNNING)
    host.drain()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    until(lambda: batch(store, batch_id).counts.running == 0)
    assert len(hand_back.calls) == 1
    assert store.get(job_id).status is JobStatus.QUEUED
    counts = batch(store, batch_id).counts
    assert (counts.succeeded, counts.pending) == (1, 23)
    assert host.claim(MODEL) == []
    [again] = store.claim_next(MODEL, worker="successor", jobs=False, rows=1)
    assert (again.id, again.attempt, again.company) == (f"{batch_id}:0", 2, Company.ANY)


def test_a_drain_ends_early_when_the_rows_have_ended(
    make: MakeHost, store: JobStore, engine: FakeEngine
) -> None:
    host = make(engine, drain_seconds=60.0)
    batch_id = add_batch(store, [{"prompt": "a", "max_tokens": 100}] * 20)
    thread = serving(host)
    until(lambda: len(engine.live) == 6)
    host.drain()
    thread.join(5)
    assert not thread.is_alive()
    assert host._grace_over.is_set()
    counts = batch(store, batch_id).counts
    assert (counts.running, counts.failed) == (0, 0)
    assert 6 <= counts.succeeded < 20


def test_rows_whose_leases_are_lost_are_dropped_and_come_again_apart(
    host: Host, store: JobStore, engine: FakeEngine
) -> None:
    batch_id = add_batch(store, [{"prompt": f"p{i}", "max_tokens": 200} for i in range(6)])
    thread = serving(host)
    until(lambda: len(engine.live) == 6 and engine.steps > 3)
    later = add_batch(store, [{"prompt": f"q{i}", "max_tokens": 5} for i in range(20)])
    store.clock_offset_ms = 60_000
    assert store.sweep() is not None
    host._leases.beat()
    steps = engine.steps
    thread.join(10)
    assert texts(store, batch_id).keys() == {str(i + 1) for i in range(6)}
    assert batch(store, later).counts.succeeded == 20
    again = [prompts for prompts in engine.seen[steps + 1 :] if any(p[0] == "p" for p in prompts)]
    assert again
    assert all(p[0] == "p" for prompts in again for p in prompts)


@pytest.mark.parametrize("crashes", [1, 2])
def test_suspects_run_apart_from_all_other_work(
    host: Host, store: JobStore, server: fakeredis.FakeServer, engine: FakeEngine, crashes: int
) -> None:
    """A job and two rows that a worker died of, among much other work of two models."""
    suspects = add_batch(store, [{"prompt": f"suspect{i}", "max_tokens": 30} for i in range(2)])
    job_id = submit(store, "suspect job", max_tokens=30)

    def sweep() -> None:
        fakeredis.FakeRedis(server=server).delete(keys.JANITOR)
        assert store.sweep() is not None

    for _ in range(crashes):
        sweep()
        while store.claim_next(MODEL, worker="dead", rows=9, company=Company.SUSPECTS):
            pass
        while store.claim_next(MODEL, worker="dead", rows=9):
            pass
        store.clock_offset_ms += 60_000
    rows = add_batch(store, [{"prompt": f"p{i}", "max_tokens": 20} for i in range(40)])
    thread = serving(host)
    until(lambda: len(engine.live) == 6)
    sweep()
    jobs = [submit(store, "j", max_tokens=20) for _ in range(10)]
    others = [submit(store, "j", model=OTHER) for _ in range(5)]
    threads = [thread, *(serving(host) for _ in range(3)), serving(host, OTHER)]
    for each in threads:
        each.join(10)
    serve(host)  # as the janitor's tickets would make it
    serve(host, OTHER)
    for ended_id in [job_id, *jobs, *others]:
        assert store.get(ended_id).status is JobStatus.SUCCEEDED
    assert batch(store, suspects).counts.succeeded == 2
    assert batch(store, rows).counts.succeeded == 40
    beside = [prompts for prompts in engine.seen if any(str(p)[0] == "s" for p in prompts)]
    assert all(p[0] == "s" for prompts in beside for p in prompts)
    if crashes == 2:  # another would end them
        assert len(beside) == 90
        assert all(len(prompts) == 1 for prompts in beside)


def test_who_asks_while_something_runs_alone_waits_and_gets_its_turn(
    host: Host, store: JobStore, engine: FakeEngine
) -> None:
    suspect = submit(store, "hold")
    assert store.claim_next(MODEL, worker="dead")
    store.clock_offset_ms = 60_000
    assert store.sweep() is not None
    serving(host)
    until(lambda: len(engine.live) == 1)
    job_id, other_id = submit(store, "a"), submit(store, "a", model=OTHER)
    batch_id = add_batch(store, ["a", "b"])
    threads = [serving(host), serving(host), serving(host, OTHER)]
    steps = engine.steps
    until(lambda: engine.steps > steps + 50)
    assert all(thread.is_alive() for thread in threads)
    assert {tuple(prompts) for prompts in engine.seen} == {("hold",)}
    host._leases.cancel(suspect, 2)
    for ended_id in (job_id, other_id):
        until(lambda ended_id=ended_id: store.get(ended_id).status is JobStatus.SUCCEEDED)
    assert store.get(suspect).status is JobStatus.CANCELLED
    until(ended(store, batch_id))


def test_a_drain_lets_go_who_waits_for_something_alone(
    make: MakeHost, store: JobStore, engine: FakeEngine
) -> None:
    host = make(engine, drain_seconds=0.05)
    batch_id = add_batch(store, ["hold"])
    assert store.claim_next(MODEL, worker="dead", rows=1)
    store.clock_offset_ms = 60_000
    assert store.sweep() is not None
    threads = [serving(host)]
    until(lambda: len(engine.live) == 1)
    threads += [serving(host), serving(host, OTHER)]
    host.drain()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    until(lambda: batch(store, batch_id).counts.pending == 1)


def test_redis_away_loses_no_outcome_and_stops_no_engine(
    host: Host, store: JobStore, engine: FakeEngine, server: fakeredis.FakeServer
) -> None:
    rows = [{"prompt": f"p{i}", "max_tokens": 20 if i < 3 else 100} for i in range(30)]
    batch_id = add_batch(store, rows)
    thread = serving(host)
    until(lambda: len(engine.live) == 6)
    server.connected = False
    until(lambda: not engine.has_work)
    assert len(engine.added) == 7
    assert thread.is_alive()
    assert len(host._leases) == 7
    server.connected = True
    thread.join(10)
    assert batch(store, batch_id).counts.succeeded == 30
    assert len(texts(store, batch_id)) == 30


def test_a_worker_that_leaves_without_redis_does_not_wait_for_it(
    store: JobStore, engine: FakeEngine, server: fakeredis.FakeServer
) -> None:
    host = make_host(store, engine, drain_seconds=0.1)
    batch_id = add_batch(store, ["a", "b", "hold"])
    thread = serving(host)
    until(lambda: len(engine.live) == 1)
    server.connected = False
    until(lambda: len(engine.live) == 1)
    host.drain()
    thread.join(5)
    assert not thread.is_alive()
    host.stop()
    server.connected = True
    store.clock_offset_ms = 60_000
    assert store.sweep() is not None
    assert batch(store, batch_id).counts.pending >= 1


def test_each_model_has_its_own_feeder(host: Host, store: JobStore, engine: FakeEngine) -> None:
    first = add_batch(store, ["hold"] * 10)
    second = add_batch(store, [f"p{i}" for i in range(30)], model=OTHER)
    serving(host)
    until(lambda: len(engine.live) == 6)
    serve(host, OTHER)
    assert batch(store, second).counts.succeeded == 30
    assert batch(store, first).counts.running == 7


def test_a_second_ticket_wakes_the_feeder(
    host: Host, store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.feeder._LOOK_SECONDS", 3600.0)
    add_batch(store, ["hold"])
    thread = serving(host)
    until(lambda: len(engine.live) == 1)
    batch_id = add_batch(store, ["a", "b"])
    assert host.claim(MODEL) == []
    until(ended(store, batch_id))
    assert thread.is_alive()


def test_without_a_ticket_the_feeder_looks_by_itself(
    host: Host, store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.feeder._LOOK_SECONDS", 0.05)
    add_batch(store, ["hold"])
    serving(host)
    until(lambda: len(engine.live) == 1)
    until(ended(store, add_batch(store, ["a", "b"])))


def test_the_feeder_ends_and_another_begins(host: Host, store: JobStore) -> None:
    for _ in range(20):
        batch_id = add_batch(store, ["a", "b"])
        serve(host)
        assert batch(store, batch_id).counts.succeeded == 2


def test_rows_that_come_while_the_feeder_ends_are_not_overlooked(
    host: Host, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes a ticket then either wakes the feeder in time or is the next one."""
    monkeypatch.setattr("worker.feeder._LOOK_SECONDS", 3600.0)
    ids = []
    for _ in range(100):
        ids.append(add_batch(store, [{"prompt": "a", "max_tokens": 1}]))
        serving(host)
    for batch_id in ids:
        until(ended(store, batch_id))


def test_a_row_that_cannot_be_committed_takes_no_other_along(
    host: Host, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = store.batches.finish

    def broken(ends: Sequence[RowEnd]) -> list[bool]:
        for end in ends:
            if end.outputs and end.outputs[0].text.startswith("bad"):
                raise ZeroDivisionError
        return finish(ends)

    monkeypatch.setattr(store.batches, "finish", broken)
    batch_id = add_batch(store, ["a", "bad", "b", "c"])
    serve(host)
    assert errors(store, batch_id) == {"2": "internal_error"}
    assert len(texts(store, batch_id)) == 3
    assert len(host._leases) == 0


@pytest.mark.parametrize("where", ["claim", "submit", "everything"])
def test_a_mistake_of_ours_ends_no_feeding(
    host: Host, store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    failures = 1

    def once(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal failures
            if failures and (where != "claim" or host._leases):
                failures -= 1
                raise ZeroDivisionError
            return method(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if where == "claim":
            patch.setattr(store, "claim_next", once(store.claim_next))
        elif where == "submit":
            patch.setattr(host._batcher, "submit", once(host._batcher.submit))
        else:
            feeder = host._feeders[MODEL]
            patch.setattr(feeder, "_end_late_ones", once(feeder._end_late_ones))
        batch_id = add_batch(store, [f"p{i}" for i in range(20)])
        serve(host)
        assert failures == 0
    done = batch(store, batch_id)
    assert done.status is BatchStatus.COMPLETED
    assert set(errors(store, batch_id).values()) <= {"internal_error"}
    assert (done.counts.failed == 0) == (where == "claim")
    assert len(host._leases) == 0
    assert not engine.has_work
    batch_id = add_batch(store, [f"p{i}" for i in range(20)])
    serve(host)
    assert batch(store, batch_id).counts.succeeded == 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_engines_die_all_rows_go_back(
    host: Host, store: JobStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in one is suspect, then the process ends."""
    exits: list[int] = []
    monkeypatch.setattr("worker.host.os._exit", exits.append)
    monkeypatch.setattr("worker.host.logging.shutdown", lambda: None)

    def die() -> None:
        raise RuntimeError("reset failed, too")

    monkeypatch.setattr(engine, "reset", die)
    batch_id = add_batch(store, ["a", "boom", *["a"] * 100])
    thread = serving(host)
    thread.join(5)
    assert not thread.is_alive()
    until(lambda: bool(exits))
    assert exits == [EXIT_LOST]
    assert host.claim(MODEL) == []
    assert len(host._leases) == 0
    assert batch(store, batch_id).counts.running == 0
    suspects = store.claim_next(MODEL, worker="successor", rows=100)
    assert [work.company for work in suspects] == [Company.SUSPECTS] * len(suspects)
    assert f"{batch_id}:1" in {work.id for work in suspects}


def test_many_threads_hosts_and_kinds_of_work(make: MakeHost, store: JobStore) -> None:
    hosts = [make(FakeEngine(step_seconds=0.0, slots=8, reserved_slots=2)) for _ in range(2)]
    batches = [add_batch(store, [f"p{i}" for i in range(100)]) for _ in range(3)]
    jobs: list[str] = []
    threads = [serving(host) for host in hosts for _ in range(4)]
    for i in range(40):
        jobs.append(submit(store, f"j{i}"))
        threads.append(serving(hosts[i % 2]))
    for thread in threads:
        thread.join(20)
    works: Counter[str] = Counter()
    for batch_id in batches:
        assert batch(store, batch_id).counts.succeeded == 100
        works.update(texts(store, batch_id).keys())
    assert set(works.values()) == {3}
    assert all(store.get(job_id).status is JobStatus.SUCCEEDED for job_id in jobs)
    assert all(len(host._leases) == 0 for host in hosts)
