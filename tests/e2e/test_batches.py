"""A batch through real processes: every row once, whatever happens to workers and Redis."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from slm_client.batch import Result
from slm_core import Engine, SamplingParams
from tests.e2e.service import LEASE_SECONDS, SLOTS, Service, until
from tests.slm_client.processes import SLM

ROWS = int(os.environ.get("SLM_BATCH_ROWS", "2000"))  # 20,000 for the long form
KILLS = 5

pytestmark = pytest.mark.timeout(1_200)


def rows(count: int) -> list[dict[str, object]]:
    animals = ("fox", "cat", "dog", "owl", "hen", "bear", "mouse")
    return [
        {"custom_id": f"story-{i}", "prompt": f"The {animals[i % 7]} number {i} was"}
        for i in range(count)
    ]


def as_file(asked: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in asked).encode()


def check(results: list[Result], asked: list[dict[str, object]], reference: Engine) -> None:
    """Every custom_id once, in an order of its own; texts as the engine makes them."""
    times = Counter(result.custom_id for result in results)
    assert times == Counter(str(row["custom_id"]) for row in asked)
    assert [result.seq for result in results] == list(range(1, len(asked) + 1))
    by_id = {result.custom_id: result for result in results}
    for index in range(0, len(asked), max(1, len(asked) // 50)):
        params = SamplingParams(max_tokens=16, seed=7 + index, ignore_eos=True)
        [expected] = reference.generate([str(asked[index]["prompt"])], params)
        assert by_id[str(asked[index]["custom_id"])].text == expected.text


def test_every_row_comes_once(service: Service, reference: Engine) -> None:
    asked = rows(ROWS)
    batch = service.client.batches.create(
        as_file(asked), format="jsonl", seed=7, max_tokens=16, ignore_eos=True
    )
    results = list(service.client.batches.results(batch.id, follow=True))
    check(results, asked, reference)
    ended = service.client.batches.get(batch.id)
    assert (ended.status, ended.counts.succeeded) == ("completed", ROWS)
    assert ended.usage.completion_tokens == 16 * ROWS


def test_every_row_comes_once_whatever_dies(service: Service, reference: Engine) -> None:
    asked = rows(ROWS)
    rng = random.Random(5)
    batches = service.client.batches
    batch = batches.create(as_file(asked), format="jsonl", seed=7, max_tokens=16, ignore_eos=True)
    results: list[Result] = []

    def read() -> None:
        results.extend(batches.results(batch.id, follow=True))

    reader = threading.Thread(target=read)
    reader.start()
    for kill in range(KILLS):
        share = (kill + 1) * ROWS // (KILLS + 2)
        until(lambda n=share: len(results) >= n, "the batch goes on", timeout=300)
        service.kill_worker(rng.choice(service.workers))
        service.start_worker()
        if kill == KILLS // 2:
            service.redis.kill()
            time.sleep(0.5)
            service.redis.start()
    reader.join(600)
    assert not reader.is_alive()
    check(results, asked, reference)
    ended = batches.get(batch.id)
    assert (ended.status, ended.counts.succeeded, ended.counts.failed) == ("completed", ROWS, 0)


def test_a_worker_added_later_joins_within_two_seconds(service: Service) -> None:
    """Of its being ready, which loading a model comes before."""
    for worker in list(service.workers)[1:]:
        service.kill_worker(worker)
    time.sleep(LEASE_SECONDS)
    service.wait_for_workers(1)
    batch = service.client.batches.create_rows(rows(300), max_tokens=300, ignore_eos=True)
    service.start_worker()
    service.wait_for_workers(2)
    started = time.monotonic()
    until(lambda: service.running_rows() > 2 * SLOTS - 8, "both workers run rows", timeout=30)
    joined = time.monotonic() - started
    service.client.batches.cancel(batch.id)
    assert service.client.batches.wait(batch.id, timeout=60).status == "cancelled"
    assert joined < 10  # 2 s on an idle machine


def test_ctrl_c_leaves_a_batch_that_the_same_command_comes_back_to(
    service: Service, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("".join(f"{row['prompt']}\n" for row in rows(400)))
    command = [*SLM, "bulk", prompts, "-o", out, "--max-tokens", "60", "--url", service.url]
    env = {**os.environ, "SLM_API_KEY": service.api_key}
    bulk = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    with bulk:
        until(lambda: out.exists() and out.stat().st_size, "the first rows are written")
        bulk.send_signal(signal.SIGINT)
        _, said = bulk.communicate(timeout=30)
    assert bulk.returncode == 130
    assert "Traceback" not in said
    told = re.search(
        r"(batch_\w+) goes on in the service\. The same command comes back to it", said
    )
    assert told
    batch = service.client.batches.get(told[1])
    assert (batch.status, batch.cancel_requested) == ("running", False)

    again = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert f"The same was asked for before: {batch.id}" in again.stderr
    written = [json.loads(line)["custom_id"] for line in out.read_text().splitlines()]
    assert sorted(map(int, written)) == list(range(1, 401))
    assert not list(tmp_path.glob("*.batch"))
    assert next(service.client.batches.list(limit=1)).id == batch.id  # it made no other
