"""What submitting is compared with: FastAPI and Celery's `.delay()`, without keys or limits.

Run it as `uvicorn benchmarks.plain:app`; Redis is named by `SLM_REDIS_URL`.
"""

from __future__ import annotations

import os

from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel

tasks = Celery("plain", broker=os.environ.get("SLM_REDIS_URL", "redis://127.0.0.1:6379/0"))
tasks.conf.task_ignore_result = True
app = FastAPI()


class Body(BaseModel):
    prompt: str
    max_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = 40
    seed: int | None = None
    metadata: dict[str, str] = {}


class Taken(BaseModel):
    id: str
    status: str = "queued"


@tasks.task(name="plain.generate")
def generate(body: dict[str, object]) -> None:
    """Never runs here: there is no worker."""


@app.post("/jobs", status_code=202)
def create_job(body: Body) -> Taken:
    return Taken(id=generate.delay(body.model_dump()).id)


@app.get("/nothing", status_code=202)
async def nothing() -> None:
    """As little as the framework can do: it must be far faster than what is compared."""
