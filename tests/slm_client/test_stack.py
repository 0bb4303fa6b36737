from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slm_client import Client, StartError
from slm_client.child import Part
from slm_client.cores import cores
from slm_client.redis_server import RedisServer, answers
from slm_client.stack import Plan, Stack, StackOptions, make_plan, service_parts
from tests.slm_client.processes import eventually, lives, sleeper
from tests.slm_client.test_manifests import make_checkpoint


@pytest.fixture
def options(data_dir: Path) -> StackOptions:
    return StackOptions(port=0, data_dir=data_dir)


@pytest.mark.usefixtures("standins")
def test_a_stack_serves_and_stops(options: StackOptions, data_dir: Path) -> None:
    events: list[str] = []
    with Stack(replace(options, workers=2), on_event=events.append) as stack:
        assert stack.ready()
        with Client(stack.url, stack.api_key) as client:
            assert client.generate("Once").succeeded
        pids = stack.pids()
        assert list(pids) == ["redis", "api", "callbacks", "worker-1", "worker-2"]
        redis_port = int(stack.plan.redis_url.split(":")[2].split("/")[0])
        assert answers(redis_port)
    assert not stack.ready()
    assert not any(lives(pid) for pid in pids.values())
    assert events[-4:] == [
        "stopping worker-1, worker-2",
        "stopping callbacks",
        "stopping api",
        "stopping redis",
    ]
    assert list((data_dir / "redis").glob("appendonly*"))
    log = (data_dir / "logs" / "worker-2.log").read_text()
    assert f"-{stack.plan.options.port}-2@%h --without-gossip --without-mingle" in log
    assert f"has {max(1, cores() // 2)} threads" in log
    assert "worker stopped" in log  # it got SIGTERM
    assert "api stopped" in (data_dir / "logs" / "api.log").read_text()


@pytest.mark.usefixtures("standins")
def test_redis_comes_back_with_its_data_where_it_was(options: StackOptions) -> None:
    with Stack(options) as stack:
        port = int(stack.plan.redis_url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"SET name Lily\r\n")
            assert connection.recv(16) == b"+OK\r\n"
        os.kill(stack.pids()["redis"], signal.SIGKILL)
        eventually(lambda: answers(port))
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET name\r\n")
            assert connection.recv(16) == b"$4\r\nLily\r\n"


@pytest.mark.usefixtures("standins")
def test_scratch_data_is_gone_the_next_time(options: StackOptions, data_dir: Path) -> None:
    options = replace(options, keep_data=False)
    with Stack(options) as stack:
        assert stack.plan.env["SLM_DRAIN_SECONDS"] == "0"
    (data_dir / "scratch" / "left-over").touch()
    (data_dir / "redis").mkdir()
    with Stack(options):
        assert not (data_dir / "scratch" / "left-over").exists()
        assert (data_dir / "redis").exists()


@pytest.mark.usefixtures("standins")
def test_a_worker_that_cannot_start(options: StackOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_TEST_WORKER", "broken")
    stack = Stack(options)
    with pytest.raises(StartError, match="worker-1 did not start") as caught:
        stack.start()
    assert "the checkpoint is not there" in str(caught.value)
    assert stack.pids() == {}
    monkeypatch.setenv("SLM_TEST_WORKER", "")
    with Stack(options):  # the lock is free again
        pass


def one_sleeper(plan: Plan) -> list[list[Part]]:
    return [[sleeper("a")]]


def test_two_stacks_on_one_folder(options: StackOptions) -> None:
    with Stack(options, parts=one_sleeper) as first:
        with pytest.raises(StartError, match="in use by another slm"):
            Stack(options).start()
        assert first.pids()["a"]


@pytest.fixture(autouse=True)
def _ready_without_api(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "standins" not in request.fixturenames:
        monkeypatch.setattr(Client, "ready", lambda _: True)


def test_a_busy_port_starts_nothing(options: StackOptions) -> None:
    started: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        stack = Stack(replace(options, port=port), parts=lambda plan: started.append(plan) or [[]])
        with pytest.raises(StartError, match="choose another --port"):
            stack.start()
    assert not started


def test_ctrl_c_during_the_start_stops_what_runs(
    options: StackOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "ready", lambda _: os.kill(os.getpid(), signal.SIGINT))
    stack = Stack(options, parts=one_sleeper)
    with pytest.raises(KeyboardInterrupt):
        stack.start()
    assert stack.pids() == {}
    monkeypatch.setattr(Client, "ready", lambda _: True)
    with Stack(options, parts=one_sleeper):
        pass


def test_the_plan_follows_options_and_environment(
    options: StackOptions,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    redis_server: RedisServer,
) -> None:
    data_dir.mkdir()
    monkeypatch.setenv("SLM_MODELS_FILE", "models.toml")
    plan = make_plan(options, 0)
    assert plan.env["SLM_MODELS_FILE"] == str(Path.cwd() / "models.toml")
    assert plan.env["SLM_THREADS"] == str(cores())
    assert plan.options.port > 0
    monkeypatch.setenv("SLM_THREADS", "3")
    checkpoint = make_checkpoint(data_dir.parent / "Small")
    plan = make_plan(
        replace(options, model=checkpoint, slots=5, redis_url=redis_server.url, workers=3), 0
    )
    assert plan.env["SLM_MODELS_FILE"] == str(data_dir / "only-model.toml")
    assert (plan.env["SLM_THREADS"], plan.env["SLM_SLOTS"]) == ("3", "5")
    assert plan.env["SLM_REDIS_URL"] == redis_server.url
    stages = service_parts(plan)
    assert [[part.name for part in stage] for stage in stages] == [
        ["api-key"],
        ["api"],
        ["callbacks"],
        ["worker-1", "worker-2", "worker-3"],
    ]
    key_file = str(data_dir / "api_key")
    assert list(stages[0][0].command[2:]) == ["slm_jobs.bootstrap_key", "--file", key_file]
    assert list(stages[1][0].command[:4]) == [sys.executable, "-m", "uvicorn", "api.app:app"]
    callbacks, worker = stages[2][0], stages[3][0]
    assert (list(callbacks.command[1:]), callbacks.grace) == (["-m", "worker.callbacks"], 25)
    assert list(worker.command[:6]) == [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "worker.app",
        "worker",
    ]
    assert worker.grace == 30
    monkeypatch.setenv("SLM_DRAIN_SECONDS", "60")
    monkeypatch.setenv("SLM_CALLBACK_TIMEOUT_SECONDS", "wrong")
    assert [service_parts(plan)[stage][0].grace for stage in (2, 3)] == [25, 70]
    monkeypatch.setenv("SLM_CALLBACK_TIMEOUT_SECONDS", "5")
    assert service_parts(plan)[2][0].grace == 10


def test_each_part_has_a_port_of_its_own_for_metrics(
    options: StackOptions, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir.mkdir()
    plan = make_plan(replace(options, workers=2), 0)

    def ports() -> list[str | None]:
        parts = [part for stage in service_parts(plan)[-2:] for part in stage]
        return [part.env.get("SLM_METRICS_PORT") for part in parts]

    assert ports() == [None] * 3
    monkeypatch.setenv("SLM_METRICS_PORT", "9100")
    assert ports() == ["9100", "9101", "9102"]
    monkeypatch.setenv("SLM_METRICS_PORT", "wrong")
    assert ports() == [None] * 3  # the parts have it from us, and say so


def test_the_environment_says_which_hosts_are_allowed(
    options: StackOptions, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir.mkdir()
    plan = make_plan(options, 0)
    assert plan.env["SLM_ALLOWED_HOSTS"] == "localhost,127.0.0.1,[::1]"
    monkeypatch.setenv("SLM_ALLOWED_HOSTS", "slm.example,127.0.0.1")
    assert "SLM_ALLOWED_HOSTS" not in make_plan(options, 0).env  # children have it from us


@pytest.mark.usefixtures("standins")
def test_the_key_outlives_the_data(options: StackOptions, data_dir: Path) -> None:
    options = replace(options, keep_data=False)
    with Stack(options) as stack:
        key = stack.api_key
        assert (data_dir / "api_key").stat().st_mode & 0o777 == 0o600
        assert key == (data_dir / "api_key").read_text().strip()
    with Stack(options) as stack:  # an empty Redis learns it again
        assert stack.api_key == key
        (data_dir / "api_key").unlink()
        with pytest.raises(StartError, match="api_key is gone"):
            _ = stack.api_key


def test_a_file_that_holds_no_key(options: StackOptions, data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "api_key").write_text("something else\n")
    stack = Stack(options)
    with pytest.raises(StartError, match="api-key failed: it ended with exit code 1") as caught:
        stack.start()
    assert "holds no key that is valid here" in str(caught.value)
    assert stack.pids() == {}


@pytest.mark.usefixtures("standins")
def test_workers_are_told_which_models_to_serve(
    options: StackOptions, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_WORKER_MODELS", "tiny,big")
    data_dir.mkdir()
    (data_dir / "models.toml").touch()
    with Stack(options):
        pass
    log = (data_dir / "logs" / "worker-1.log").read_text()
    assert "serves tiny,big of " in log
    assert log.splitlines()[1].endswith(f"slm_jobs/models.toml{os.pathsep}{data_dir}/models.toml")


def test_redis_holds_the_lock_too(options: StackOptions, data_dir: Path) -> None:
    data_dir.mkdir()
    (redis,) = service_parts(make_plan(options, 7))[0]
    assert (redis.name, list(redis.pass_fds)) == ("redis", [7])
