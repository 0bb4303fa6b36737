"""What the service adds to the engine's own time for one job, and how soon a cancel ends one."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from slm_core import Engine, SamplingParams

_PROMPT = "Once upon a time there was a little fox"


def _connect(url: str, api_key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {api_key}"}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=120)


def added_by_waiting(url: str, api_key: str, engine: Engine, *, repeats: int) -> dict[str, Any]:
    """ms from `POST /jobs` with `Prefer: wait` to its answer, less what the engine takes in this
    process for the same text just before, while the service idles. Medians."""
    wall, alone, added = [], [], []
    with _connect(url, api_key) as http:
        for seed in range(repeats + 3):
            params = SamplingParams(max_tokens=50, seed=seed, ignore_eos=True)
            started = time.perf_counter()
            [completion] = engine.generate([_PROMPT], params)
            own = time.perf_counter() - started
            body = {"prompt": _PROMPT, "max_tokens": 50, "seed": seed, "ignore_eos": True}
            started = time.perf_counter()
            answer = http.post("/jobs", json=body, headers={"Prefer": "wait=30"})
            took = time.perf_counter() - started
            if answer.status_code != 200:
                raise RuntimeError(answer.text)
            if answer.json()["outputs"][0]["text"] != completion.text:
                raise RuntimeError("the service's text differs from the engine's")
            if seed >= 3:  # the first ones warm both up
                alone.append(own * 1000)
                wall.append(took * 1000)
                added.append((took - own) * 1000)
    return {
        "wait_ms": round(statistics.median(wall), 2),
        "engine_ms": round(statistics.median(alone), 2),
        "wait_adds_ms": round(statistics.median(added), 2),
        "wait_repeats": repeats,
    }


def cancel_latency(url: str, api_key: str, *, repeats: int) -> dict[str, Any]:
    """ms from sending `POST /jobs/{id}/cancel` for a running job to its end, as another connection
    that waits for it learns."""
    took = []
    with _connect(url, api_key) as http, ThreadPoolExecutor(1) as other:
        for seed in range(repeats):
            body = {"prompt": _PROMPT, "max_tokens": 400, "n": 64, "seed": seed, "ignore_eos": True}
            job = "/jobs/" + http.post("/jobs", json=body).raise_for_status().json()["id"]
            while http.get(job).json()["status"] != "running":
                time.sleep(0.01)
            end = other.submit(lambda job=job: (http.get(f"{job}?wait=60"), time.perf_counter()))
            time.sleep(0.2)  # in the midst of decoding, and the other waits
            started = time.perf_counter()
            http.post(f"{job}/cancel").raise_for_status()
            answer, ended = end.result(60)
            if answer.json()["status"] != "cancelled":
                raise RuntimeError(answer.text[:500])
            took.append((ended - started) * 1000)
    return {
        "cancel_p50_ms": round(statistics.median(took), 1),
        "cancel_p95_ms": round(statistics.quantiles(took, n=20)[-1], 1),
        "cancel_repeats": repeats,
    }
