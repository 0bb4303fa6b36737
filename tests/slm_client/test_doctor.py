"""`slm doctor`: each thing is broken on purpose, and the line that tells of it is read."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from slm_client import doctor, preflight
from slm_client.doctor import Finding, Level, Place, engine, machine, packages, services
from slm_client.doctor.finding import fault, warning
from slm_client.redis_server import RedisServer, free_port
from tests.slm_client.fake_http import Answer
from tests.slm_client.fake_service import KEY, FakeService
from tests.slm_client.processes import slm
from tests.slm_jobs.test_redis_checks import CarelessRedis

GIB = 1 << 30
HEALTHY: dict[str, Any] = {
    "torch": "2.13.0",
    "threads": 2,
    "openmp": True,
    "cuda_build": None,
    "cuda": [],
    "kernels": {"avx2": "runs", "baseline": "runs"},
}


def levels(found: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.level.value) for finding in found]


def only(found: Iterable[Finding]) -> Finding:
    [finding] = found
    return finding


def write_manifest(folder: Path, **checkpoints: Path) -> Path:
    path = folder / "models.toml"
    entries = (f'[{name}]\ncheckpoint = "{place}"\n' for name, place in checkpoints.items())
    path.write_text("\n".join(entries))
    return path


# All of it


def test_a_machine_that_is_well(
    checkpoint: Path, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLM_MODELS_FILE", str(write_manifest(tmp_path, tiny=checkpoint)))
    nowhere = f"http://127.0.0.1:{free_port()}"
    port = str(free_port())
    result = slm("doctor", "--redis-url", redis_server.url, "--port", port, "--url", nowhere)
    assert "fault" not in result.stdout, result.stdout
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    checks = {line.split()[1] for line in lines[:-1]}
    assert checks == {
        *("python", "packages", "disk", "memory", "clock", "torch", "compiler", "kernels"),
        *("models", "redis", "service", "port"),
    }
    assert any("tiny generates: 4 tokens in " in line for line in lines)
    assert not (tmp_path / ".slm").exists()  # it changes nothing


def test_faults_are_1_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [fault("redis", "no\x1b Redis\n answers"), warning("disk", "little")]
    monkeypatch.setattr("slm_client.commands.doctor.examine", lambda _: iter(broken))
    result = slm("doctor", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["ok"] is False
    assert found["findings"][0] == {
        "check": "redis",
        "level": "fault",
        "says": "no Redis answers",
        "mend": "",
    }
    result = slm("doctor")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "Faults: 1. Warnings: 1."


def test_a_check_that_breaks_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    for module in (engine, services, packages):
        monkeypatch.setattr(module, "run" if module is not packages else "look", broken)
    place = Place("nonsense", None, Path(), "redis://127.0.0.1:1/0", free_port())
    found = list(doctor.examine(place))
    told = {finding.check: finding for finding in found}
    assert told["torch"].says == "this could not be checked: ZeroDivisionError: by zero."
    assert told["packages"].level is Level.WARNING
    assert told["redis"].says.startswith("no Redis answers at redis://127.0.0.1:1/0")
    assert told["service"].says == "'nonsense' is no address: it needs http:// in front"
    assert told["port"].level is Level.OK


# The machine


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(machine.python()).level is Level.OK
    monkeypatch.setattr(machine, "_OLDEST", (99, 0))
    found = only(machine.python())
    assert (found.level, found.mend[:4]) == (Level.FAULT, "Take")


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {finding.level for finding in packages.look()} == {Level.OK}
    really = metadata.version

    def version(name: str) -> str:
        if name == "fastapi":
            raise metadata.PackageNotFoundError(name)
        return "2.0.1+cpu" if name == "torch" else really(name)

    monkeypatch.setattr(metadata, "version", version)
    api, worker, callbacks, training = packages.look()
    assert api.says == "api: missing or too old: fastapi."
    assert "-m pip install --editable '.[api]'" in api.mend
    assert worker.says.endswith("torch>=2.11 (it is 2.0.1+cpu).")
    assert (callbacks.level, training.level) == (Level.OK, Level.OK)
    assert "torch>=2.11" in training.says


def test_packages_where_there_is_no_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    wanted = ["typer>=0.1", 'redis>=99; extra == "store"', 'slm-jobs[store]; extra == "api"']
    wanted += [f'celery>=5; extra == "{extra}"' for extra in ("worker", "callbacks", "train")]
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    found = list(packages.look())
    assert "redis>=99 (it is " in found[0].says
    assert found[0].mend.endswith("-m pip install 'slm-jobs[api]'`")
    assert [finding.level for finding in found[1:]] == [Level.OK] * 3


def test_a_data_folder_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(machine.disk(tmp_path / "new" / "data")).check == "disk"
    (tmp_path / "file").touch()
    found = only(machine.disk(tmp_path / "file" / "data"))
    assert (found.level, found.says) == (Level.FAULT, f"{tmp_path / 'file'} is no folder.")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    found = only(machine.disk(tmp_path))
    assert (found.level, "sudo chown" in found.mend) == (Level.FAULT, True)


@pytest.mark.parametrize(
    ("free", "level"), [(GIB // 8, Level.FAULT), (GIB, Level.WARNING), (9 * GIB, Level.OK)]
)
def test_room_on_the_disk(
    free: int, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free))
    assert only(machine.disk(tmp_path)).level is level


@pytest.mark.parametrize(
    ("free", "limit", "used", "cache", "level"),
    [
        (8 * GIB, "max", 0, 0, Level.OK),
        (GIB, "max", 0, 0, Level.WARNING),
        (8 * GIB, str(2 * GIB), GIB, 0, Level.WARNING),
        (8 * GIB, str(GIB), GIB, 0, Level.FAULT),
        (8 * GIB, str(4 * GIB), 4 * GIB, 3 * GIB, Level.OK),
        (8 * GIB, "", 0, 0, Level.OK),
    ],
)
def test_memory(
    free: int,
    limit: str,
    used: int,
    cache: int,
    level: Level,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {free // 1024} kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon {used - cache}\ninactive_file {cache}\n")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert only(machine.memory()).level is level


def test_memory_that_nobody_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "none")
    assert only(machine.memory()).says == "this system does not tell."


def test_a_clock_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(machine.clock()).level is Level.OK
    monkeypatch.setattr(time, "time", lambda: 86_400.0)
    found = only(machine.clock())
    assert (found.level, "1970-01-02" in found.says) == (Level.FAULT, True)


# The engine


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def told(monkeypatch: pytest.MonkeyPatch, stderr: str = "", **found: object) -> None:
    """What `python -m slm_core.kernels` prints from now on."""
    done = subprocess.CompletedProcess([], 0, json.dumps({**HEALTHY, **found}), stderr)
    monkeypatch.setattr(engine, "run", lambda *_, **__: done)


def test_a_torch_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = only(engine.look())
    assert (found.check, found.level) == ("torch", Level.FAULT)
    assert found.says == "torch cannot be used: ImportError: libcudart.so is missing."
    assert "pip install" in found.mend


@pytest.mark.usefixtures("no_compiler")
def test_no_compiler_where_the_kernels_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch)
    torch, compiler, kernels = engine.look()
    assert (torch.level, kernels.says) == (Level.OK, "avx2 runs here.")
    assert (
        compiler.says == "there is no C++ compiler g++, and none is needed: the kernels are built."
    )


@pytest.mark.usefixtures("no_compiler")
def test_no_compiler_and_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, kernels={"avx2": "missing", "baseline": "missing"})
    _, compiler, kernels = engine.look()
    assert (compiler.level, compiler.says) == (Level.WARNING, "there is no C++ compiler g++.")
    assert "apt-get install g++" in compiler.mend
    assert (kernels.level, kernels.says[:10]) == (Level.WARNING, "not built:")
    build = f"{sys.executable} -m slm_core.kernels.build"
    assert kernels.mend == f"With a compiler: `{build}`"


def test_kernels_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"avx2": "built", "baseline": "built"}
    told(monkeypatch, "cannot be loaded: libgomp.so.1\n", kernels=states)
    kernels = list(engine.look())[-1]
    assert kernels.level is Level.WARNING
    assert "cannot be loaded: libgomp.so.1;" in kernels.says


@pytest.mark.parametrize(
    ("cxx", "says"),
    [
        ("false", "false compiles nothing with OpenMP"),
        ("no-such-compiler -m64", "there is no C++ compiler no-such-compiler -m64"),
        ("'", "this could not be checked: ValueError: No closing quotation."),
    ],
)
def test_a_compiler_that_compiles_nothing(
    cxx: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, kernels={"baseline": "missing"})
    monkeypatch.setenv("CXX", cxx)
    found = list(doctor.guarded("torch", engine.look))
    assert found[1].level is Level.WARNING
    assert found[1].says.startswith(says)


def test_threads_and_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, openmp=False)
    monkeypatch.setenv("SLM_DEVICE", "cuda")
    monkeypatch.setenv("SLM_THREADS", "4096")
    found = [finding for finding in engine.look() if finding.check == "torch"]
    assert [finding.level.value for finding in found] == ["ok", "warning", "fault", "warning"]
    assert found[2].says == "SLM_DEVICE asks for CUDA, and torch is a build for CPUs."
    assert "SLM_THREADS is 4096" in found[3].says


def test_damaged_checkpoints(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = shutil.copytree(checkpoint, tmp_path / "cut")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    manifest = write_manifest(tmp_path, good=checkpoint, cut=cut)
    monkeypatch.setenv("SLM_MODELS_FILE", str(manifest))
    good, broken = engine.models(tmp_path)
    assert (good.level, good.says[:15]) == (Level.OK, "good generates:")
    assert (broken.level, broken.says[:5]) == (Level.FAULT, "cut: ")
    assert str(cut) in broken.mend
    (cut / "config.json").unlink()
    found = only(engine.models(tmp_path))
    assert found.level is Level.FAULT
    assert "[cut] has no usable" in found.says
    assert "`slm models check`" in found.mend


@pytest.mark.parametrize(
    ("number", "name", "mend"), [(9, "SIGKILL", "Memory has probably run out"), (4, "SIGILL", "")]
)
def test_a_model_that_kills_its_process(
    number: int, name: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        {"trying": "good"},
        {"model": "good", "tokens": 4, "seconds": 0.1, "fingerprint": "int8"},
        {"trying": "big"},
    ]
    killed = subprocess.CompletedProcess([], -number, "\n".join(map(json.dumps, lines)), "")
    answers = iter([subprocess.CompletedProcess([], 0, "", ""), killed])
    monkeypatch.setattr(engine, "run", lambda *_, **__: next(answers))
    good, big = engine.models(NOWHERE)
    assert (good.level, good.says[:15]) == (Level.OK, "good generates:")
    assert big.level is Level.FAULT
    says = f"they cannot be tried: the process was killed by {name} while trying big."
    assert big.says == says
    assert big.mend.startswith(mend)
    assert bool(big.mend) == bool(mend)


# Redis


@pytest.mark.parametrize("netloc", ["[::1", "\N{ACCOUNT OF}secret@h"])
def test_an_address_that_is_none(netloc: str) -> None:
    found = only(doctor.guarded("redis", lambda: services.redis(f"redis://:{netloc}/0")))
    assert found.level is Level.FAULT
    assert found.says.startswith("--redis-url must look like redis://")
    assert "secret" not in found.says


def test_a_careless_redis(tmp_path: Path) -> None:
    server = CarelessRedis(tmp_path / "redis")
    server.start()
    try:
        found = list(services.redis(server.url))
    finally:
        server.kill()
    assert levels(found) == [("redis", level) for level in ("ok", "warning", "warning", "ok")]
    assert "set its maxmemory-policy to noeviction (it is allkeys-lru)" in found[1].says
    assert "set its appendonly to yes" in found[2].says


def test_a_redis_with_another_password(tmp_path: Path) -> None:
    server = CarelessRedis(tmp_path / "redis", "--user managed on >secret ~* &* +@all")
    server.start()
    try:
        found = only(services.redis(server.url.replace("//", "//managed:guess@")))
    finally:
        server.kill()
    assert found.level is Level.FAULT
    assert "guess" not in found.says
    assert "password" in found.says


def test_what_is_no_redis(url: str) -> None:
    found = only(services.redis(url.replace("http", "redis")))
    assert found.level is Level.FAULT
    assert "Traceback" not in found.says


def test_no_redis_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert only(services.redis(None)).level is Level.OK
    fake = tmp_path / "redis-server"
    fake.write_text("#!/bin/sh\necho Redis server v=5.0.14 sha=0\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert only(services.redis(None)).says == f"{fake} is 5.0.14."
    fake.write_text("#!/bin/sh\necho 'cannot open shared object' >&2; exit 127\n")
    found = only(services.redis(None))
    assert (found.level, "cannot open shared object" in found.says) == (Level.FAULT, True)
    fake.unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    found = only(services.redis(None))
    assert (found.level, "apt-get install redis-server" in found.mend) == (Level.FAULT, True)


# The service and its port


def document(version: str) -> Answer:
    return 200, {}, {"info": {"version": version}}


OURS = document(metadata.version("slm-jobs"))
NOWHERE = Path("nowhere")
HEALTH: Answer = (200, {}, {"status": "ok"})


def test_no_service() -> None:
    found = only(services.service(f"http://127.0.0.1:{free_port()}", None, NOWHERE))
    assert (found.level, found.says[:15]) == (Level.OK, "none answers at")


def test_a_service_that_is_ready(url: str, service: FakeService) -> None:
    service.next_answers.extend([HEALTH, OURS])
    found = list(services.service(url, KEY, NOWHERE))
    assert [finding.says for finding in found] == [
        f"it is ready at {url}.",
        "it knows the API key.",
    ]


def test_a_service_that_is_not(url: str, service: FakeService) -> None:
    service.is_ready = False
    service.next_answers.extend([HEALTH, document("0.0.1")])
    version, ready, key = services.service(url, "another", NOWHERE)
    assert version.says.startswith("it is version 0.0.1, and this program ")
    assert (ready.level, "is not ready: no worker is alive" in ready.says) == (Level.FAULT, True)
    assert (key.level, key.says[:4]) == (Level.WARNING, "401 ")


def test_a_service_of_another_clock(
    url: str, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = datetime(2020, 11, 21, tzinfo=UTC)
    monkeypatch.setattr(services, "parsedate_to_datetime", lambda _: past)
    service.next_answers.extend([HEALTH, OURS])
    found = next(iter(services.service(url, KEY, NOWHERE)))
    assert (found.check, found.level) == ("clock", Level.WARNING)


def test_a_key_that_cannot_be_read(url: str, tmp_path: Path) -> None:
    (tmp_path / "api_key").write_bytes(b"\xff")
    found = only(doctor.guarded("service", lambda: services.service(url, None, tmp_path)))
    assert (found.level, "cannot read the API key in" in found.says) == (Level.FAULT, True)


def test_another_service(url: str, service: FakeService) -> None:
    service.next_answers.append((200, {}, ["hello"]))
    found = only(services.service(url, KEY, NOWHERE))
    assert found.says == f"what answers at {url} is not this service."


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_ports(taken: int, url: str, service: FakeService) -> None:
    free = free_port()
    assert only(services.port(free, url)).says == f"{free} is free."
    ours = int(url.rpartition(":")[2])
    service.next_answers.append(HEALTH)
    assert only(services.port(ours, url)).says.endswith(": the service that runs.")
    service.next_answers.append((404, {}, {}))
    found = only(services.port(ours, "http://127.0.0.1:1"))
    assert (found.level, f"`slm up --port {ours + 1}`" in found.mend) == (Level.FAULT, True)


def test_a_port_that_this_user_may_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(*_: object) -> socket.socket:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))  # root may have any

    monkeypatch.setattr(preflight, "_bind", bind)
    found = only(services.port(80, "http://127.0.0.1:1"))
    assert (found.level, "Permission denied" in found.says) == (Level.FAULT, True)
    assert "stop what uses it" not in found.says


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells")
def test_who_has_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1])"
    command = [sys.executable, "-u", "-c", f"{code}; input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        number = int(process.stdout.readline())
        monkeypatch.setattr(services, "_PATIENCE", 0.2)  # it accepts, and never answers
        found = only(services.port(number, "http://127.0.0.1:1"))
        process.kill()
    assert found.level is Level.FAULT
    assert f"{number} is taken by process {process.pid} (" in found.says
    assert shlex.split(found.says)  # a line, whatever the command is
