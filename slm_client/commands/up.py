"""`slm up`: the whole service on this machine."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from slm_client import preflight
from slm_client.client import DEFAULT_URL
from slm_client.commands.options import DEFAULT_DATA_DIR, screen
from slm_client.stack import Plan, Stack, StackOptions

_ONE_SIGNAL = 0.5  # seconds in which several stop signals are one


def up(
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. Everybody needs an API key; but beyond this machine, keys "
            "and texts should travel through a proxy that encrypts."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000,
    data_dir: Annotated[
        Path, typer.Option(help="Folder for jobs, logs, models and the API key.")
    ] = DEFAULT_DATA_DIR,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Worker processes; they share the cores.")
    ] = 1,
    redis_url: Annotated[
        str | None,
        typer.Option(
            envvar="SLM_REDIS_URL",
            help="A Redis that runs already.",
            show_default="one of our own, in the data folder",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Serve only this checkpoint folder (config.json, model.safetensors).",
            show_default="the shipped models, and those of `slm models add`",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="Sequences that a worker decodes at once.",
            show_default="the worker's",
        ),
    ] = None,
) -> None:
    """Run the service here: Redis, the api, workers, and a process that delivers callbacks.

    What dies is restarted. Ctrl-C stops everything cleanly: running jobs get 20 s to finish, the
    rest, and callbacks that are still due, stay in the data folder for the next `slm up`. A second
    Ctrl-C stops at once.

    The first start makes an admin's API key and keeps it in the data folder; other commands find it
    there. `slm keys create` makes keys for others.

    SLM_THREADS sets the CPU threads of each worker; the default shares out the cores.
    SLM_WORKER_MODELS names the models that workers serve, SLM_MODELS_FILE the files that describe
    them. SLM_ALLOWED_HOSTS lists the host names under which the api may be called, with commas; the
    default is loopback and what --host says.

    Examples:

    \b
      slm up
      slm up --port 8080 --workers 2
      slm up --model runs/small --data-dir /var/lib/slm
      slm up --redis-url redis://127.0.0.1:6379/0
    """
    options = StackOptions(host, port, data_dir, workers, redis_url, model, slots)
    with stop_signals(), Stack(options, on_event=show_event) as stack:
        _show_plan(stack)
        _supervise(stack)
    screen.print("Stopped.")


def _supervise(stack: Stack) -> None:
    try:
        stack.supervise()
    except KeyboardInterrupt:
        screen.print("\nStopping: running jobs may finish. Ctrl-C again stops at once.")


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP from a closing terminal, act like Ctrl-C: they raise KeyboardInterrupt.

    Signals that follow within half a second count as one: shells and wrappers send doubles, and
    the second Ctrl-C kills. A signal that the caller has ignored (`nohup`) stays ignored.
    """
    last = float("-inf")

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal last
        last, before = time.monotonic(), last
        if last - before > _ONE_SIGNAL:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def show_event(event: str) -> None:
    screen.print(event, style="dim", markup=False, soft_wrap=True)


def _show_plan(stack: Stack) -> None:
    """What runs where, in plain words."""
    plan = stack.plan
    options = plan.options
    redis = preflight.without_password(plan.redis_url)
    data = f", data in {plan.redis_dir}" if plan.redis_dir else ""
    models = options.model.resolve() if options.model else "`slm models list` names them"
    lines = [
        "",
        "The service is ready. Ctrl-C stops it.",
        "",
        f"  page     {plan.url}/#key={stack.api_key}",
        f"  api      {plan.url}",
        f"  docs     {plan.url}/docs",
        f"  api key  in {plan.key_file}",
        f"  redis    {redis}{data}",
        f"  workers  {options.workers}, with {plan.threads} CPU threads each",
        f"  models   {models}",
        f"  logs     {plan.log_dir}",
        "",
        "Try it:",
        "",
        *(f"  {line}" for line in _examples(plan)),
        "",
    ]
    screen.print("\n".join(lines), markup=False, soft_wrap=True)


def _examples(plan: Plan) -> list[str]:
    url = "" if plan.url == DEFAULT_URL else f" --url {plan.url}"
    folder = shlex.quote(str(_near(plan.options.data_dir)))
    data_dir = "" if folder == str(DEFAULT_DATA_DIR) else f" --data-dir {folder}"
    key = f'-H "Authorization: Bearer $(cat {shlex.quote(str(_near(plan.key_file)))})"'
    return [
        f'slm generate "Once upon a time"{url}{data_dir}',
        f"curl -s {plan.url}/jobs {key} \\",
        """  -H 'content-type: application/json' -d '{"prompt": "Once upon a time"}'""",
        f"curl -s '{plan.url}/jobs/<id>?wait=30' {key}",
    ]


def _near(path: Path) -> Path:
    """As seen from here, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
