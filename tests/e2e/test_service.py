"""The whole path, real processes over real HTTP: nothing lost, nothing doubled, the same text."""

from __future__ import annotations

import random
import signal
import threading
import time
from typing import Any

import httpx
import pytest
import redis

from slm_client import ApiError
from slm_client.job import Job
from slm_core import Engine, SamplingParams
from tests.e2e.service import Service, until

pytestmark = pytest.mark.timeout(240)

WORDS = ("once upon a time there was a little fox who lived under the old oak tree " * 2).split()


def requests(count: int, seed: int, longest: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "prompt": " ".join(rng.choices(WORDS, k=rng.randint(1, 40))),
            "max_tokens": rng.randint(1, longest),
            "temperature": rng.choice([0.0, 0.8, 1.2]),
            "top_k": rng.choice([None, 5, 40]),
            "seed": rng.randrange(2**53),
            "ignore_eos": True,
        }
        for _ in range(count)
    ]


def expected_texts(engine: Engine, bodies: list[dict[str, Any]]) -> list[str]:
    """What the engine gives for each; in one batch, which is faster than one by one."""
    params = [SamplingParams(**{k: v for k, v in b.items() if k != "prompt"}) for b in bodies]
    return [c.text for c in engine.generate([b["prompt"] for b in bodies], params)]


def texts_alone(engine: Engine, bodies: list[dict[str, Any]]) -> list[str]:
    return [text for body in bodies for text in expected_texts(engine, [body])]


def submit(service: Service, bodies: list[dict[str, Any]]) -> list[str]:
    return [service.client.submit(**body).id for body in bodies]


def finish(service: Service, ids: list[str]) -> list[Job]:
    return [service.client.wait(job_id, timeout=120) for job_id in ids]


def texts(jobs: list[Job]) -> list[str]:
    assert [job.status for job in jobs] == ["succeeded"] * len(jobs)
    return [job.outputs[0].text for job in jobs]


def running(service: Service, ids: list[str]) -> int:
    return sum(service.client.get(job_id).status == "running" for job_id in ids)


def test_two_workers_share_200_jobs_and_each_runs_once(service: Service, reference: Engine) -> None:
    bodies = requests(200, seed=1, longest=120)
    ids = submit(service, bodies)
    jobs = finish(service, ids)
    assert texts(jobs) == texts_alone(reference, bodies)
    assert [job.raw["attempt"] for job in jobs] == [1] * 200
    store = redis.Redis.from_url(service.redis.url, decode_responses=True)
    ran_on = [store.hget(f"slm:job:{job_id}", "worker") for job_id in ids]
    store.close()
    assert len(set(ran_on)) == 2
    assert min(ran_on.count(worker) for worker in set(ran_on)) > 20


def test_jobs_of_a_killed_worker_finish_on_the_other(service: Service, reference: Engine) -> None:
    bodies = requests(60, seed=2, longest=400)
    ids = submit(service, bodies)
    until(lambda: running(service, ids) >= 20, "both workers are busy")
    service.kill_worker(service.workers[0])
    jobs = finish(service, ids)
    assert texts(jobs) == expected_texts(reference, bodies)
    assert max(job.raw["attempt"] for job in jobs) == 2


def test_sigterm_hands_running_jobs_back(service: Service, reference: Engine) -> None:
    bodies = requests(60, seed=3, longest=400)
    ids = submit(service, bodies)
    until(lambda: running(service, ids) >= 20, "both workers are busy")
    leaving = service.workers.pop(0)
    leaving.send_signal(signal.SIGTERM)
    assert leaving.wait(15) == 0
    assert service.alive_workers() == 1
    jobs = finish(service, ids)
    assert texts(jobs) == expected_texts(reference, bodies)
    store = redis.Redis.from_url(service.redis.url, decode_responses=True)
    assert {store.hget(f"slm:job:{job_id}", "crashes") for job_id in ids} == {"0"}
    store.close()


def test_a_second_sigterm_ends_the_grace(service: Service, reference: Engine) -> None:
    service.env["SLM_DRAIN_SECONDS"] = "60"
    patient = service.start_worker()
    service.env["SLM_DRAIN_SECONDS"] = "0.3"
    service.wait_for_workers(3)
    bodies = requests(60, seed=5, longest=400)
    ids = submit(service, bodies)
    until(lambda: running(service, ids) >= 40, "all workers are busy")
    service.workers.remove(patient)
    patient.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    patient.send_signal(signal.SIGTERM)
    assert patient.wait(10) == 0
    assert texts(finish(service, ids)) == expected_texts(reference, bodies)


def test_a_killed_redis_loses_nothing(service: Service, reference: Engine) -> None:
    bodies = requests(60, seed=4, longest=400)
    ids = submit(service, bodies)
    until(lambda: running(service, ids) >= 20, "both workers are busy")
    time.sleep(1.1)  # append-only file with `everysec`: a lost machine may lose this much
    service.redis.kill()
    started = time.monotonic()
    answer = httpx.post(
        f"{service.url}/jobs",
        json={"prompt": "x"},
        headers=service.headers,
        trust_env=False,
        timeout=20,
    )
    assert time.monotonic() - started < 10
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    service.redis.start()
    assert texts(finish(service, ids)) == expected_texts(reference, bodies)
    [later] = finish(service, submit(service, bodies[:1]))
    assert texts([later]) == expected_texts(reference, bodies[:1])


def test_a_worker_added_later_joins(service: Service) -> None:
    for worker in list(service.workers)[1:]:
        service.kill_worker(worker)
    service.wait_for_workers(1)
    stop = threading.Event()
    ids: list[str] = []
    store = redis.Redis.from_url(service.redis.url, decode_responses=True)

    def keep_busy() -> None:
        while not stop.wait(0.1):
            if store.zcard("slm:waiting:tiny") < 40:
                ids.extend(submit(service, requests(20, seed=len(ids), longest=400)))

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        service.start_worker()
        service.wait_for_workers(2)

        def both_run() -> bool:
            held = [store.hget(f"slm:job:{i}", "worker") for i in store.zrange("slm:leases", 0, -1)]
            return len(set(filter(None, held))) == 2

        until(both_run, "the new worker runs jobs", timeout=10)  # 2 s, on a quiet machine
    finally:
        stop.set()
        thread.join()
        store.close()
    finish(service, ids)


def test_errors_are_problem_documents(service: Service) -> None:
    with pytest.raises(ApiError) as caught:
        service.client.submit("word " * 500, max_tokens=100)
    assert (caught.value.status, caught.value.code) == (422, "prompt_too_long")
    assert "512" in str(caught.value)
    with pytest.raises(ApiError) as caught:
        service.client.submit("x", model="nothing")
    assert caught.value.code == "unknown_model"
    with pytest.raises(ApiError) as caught:
        service.client.get("job_nothing")
    assert (caught.value.status, caught.value.code) == (404, "job_not_found")
