"""What the images install, copy and run, and what compose allows them; read, and run from copies.

There is no container engine where tests run; `make smoke` builds and runs the images where one is.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from slm_client.redis_server import free_port
from slm_jobs.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILES = {
    "api": ROOT / "Dockerfile.api",
    "worker": ROOT / "Dockerfile.worker",
    "space": ROOT / "deploy" / "space" / "Dockerfile",
}
LOCKS = {"api": ("api", "callbacks"), "worker": ("worker",)}  # and the extras that each holds
INSTALLED = {"api": ["api"], "worker": ["worker"], "space": ["api", "worker"]}  # locks, by image
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = ("api", "slm_client", "slm_core", "slm_jobs", "training", "worker")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", re.MULTILINE)
_IMPORTED = f"""
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
ours = {{n: m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] in {OURS}}}
print(json.dumps({{"ours": ours, "heavy": sorted({{"torch", "numpy"}} & sys.modules.keys())}}))
"""

each_image = pytest.mark.parametrize("image", DOCKERFILES)
each_lock = pytest.mark.parametrize("lock", LOCKS)


def normal(package: str) -> str:
    return re.sub("[-_.]+", "-", package).lower()


def pins(name: str) -> dict[str, str]:
    found = _PIN.findall((ROOT / name).read_text())
    return {normal(package): version for package, version in found}


def instructions(image: str, kind: str) -> list[str]:
    text = DOCKERFILES[image].read_text().replace("\\\n", " ")
    found = re.findall(rf"^{kind}\s+(.*)$", text, re.MULTILINE)
    return [" ".join(line.split()) for line in found]


def command(image: str, kind: str) -> list[str]:
    """The words of the last CMD, or of the HEALTHCHECK's."""
    words: list[str] = json.loads(instructions(image, kind)[-1].rpartition("CMD ")[2])
    return words


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services: dict[str, Any] = document["services"]
    return services


# The lock


@each_lock
def test_every_package_is_locked_at_the_version_that_is_tested(lock: str) -> None:
    text = (ROOT / f"requirements-{lock}.lock").read_text()
    locked = pins(f"requirements-{lock}.lock")
    assert locked.items() <= pins("constraints.txt").items()
    entries = [e for e in text.replace("\\\n", "").splitlines() if not e.startswith("#")]
    assert len(entries) == len(locked)
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
    assert not re.search("://|--index|--find-links", text)


@each_lock
def test_the_lock_holds_what_the_image_needs(lock: str) -> None:
    needed, left = {"setuptools"}, list(PROJECT["dependencies"])
    for extra in (*LOCKS[lock], "store"):
        left += PROJECT["optional-dependencies"][extra]
    for requirement in left:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        needed |= {normal(name)} - {PROJECT["name"], "torch"}
    assert needed <= pins(f"requirements-{lock}.lock").keys()


@each_image
def test_only_torch_is_installed_without_a_hash(image: str) -> None:
    installs = re.findall("pip install ([^&]*)", " && ".join(instructions(image, "RUN")))
    locked, *torch, ours = [" ".join(each.split()) for each in installs]
    locks = " ".join(f"--requirement requirements-{lock}.lock" for lock in INSTALLED[image])
    assert locked == f"--require-hashes --only-binary :all: {locks}"
    index = '${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}'
    wanted = f"--only-binary :all: --constraint constraints.txt {index} torch"
    assert torch == ([] if image == "api" else [wanted])
    assert ours == "--no-index --no-deps --no-build-isolation ."
    assert instructions(image, "ARG") == ([] if image == "api" else ["TORCH_INDEX"])


def test_no_file_names_an_index_of_packages_or_images() -> None:
    for path in (*DOCKERFILES.values(), ROOT / "docker-compose.yml"):
        addresses = re.findall(r"(\w+)://([\w.]+)", path.read_text())
        assert set(addresses) <= {("redis", "redis"), ("http", "127.0.0.1")}, path
        images = re.findall(r"(?:FROM|image:) (\S+)", path.read_text())
        assert not any("." in image.partition("/")[0].partition(":")[0] for image in images), path


# The images


@each_image
def test_an_image_runs_as_nobody_in_particular(image: str) -> None:
    text = DOCKERFILES[image].read_text()
    [user] = instructions(image, "USER")
    assert int(user) >= 1_000
    after = text[text.index("\nUSER ") :]
    assert "\nCMD [" in after
    assert "\nHEALTHCHECK " in text
    assert not re.search(r"^(COPY|RUN|ADD) ", after, re.MULTILINE)
    assert "\nADD " not in text


@each_image
def test_an_image_says_what_it_is(image: str) -> None:
    labels = dict(
        re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', *instructions(image, "LABEL"))
    )
    assert labels["title"] == f"slm-{image}"
    assert labels["version"] == PROJECT["version"]
    assert labels["licenses"] == PROJECT["license"]
    assert labels["description"]


def settings_of(image: str) -> dict[str, str]:
    return dict(re.findall(r"(SLM_\w+)=(\S+)", " ".join(instructions(image, "ENV"))))


@each_image
def test_its_settings_are_some(image: str) -> None:
    values = {name.removeprefix("SLM_").lower(): v for name, v in settings_of(image).items()}
    assert values.keys() <= Settings.model_fields.keys()
    Settings(**values)


@each_image
def test_its_ports_are_those_that_it_listens_on(image: str) -> None:
    [ports] = instructions(image, "EXPOSE")
    listens = [settings_of(image).get("SLM_METRICS_PORT", "")]
    words = command(image, "CMD")
    if "--port" in words:
        listens.insert(0, words[words.index("--port") + 1])
    assert ports.split() == [port for port in listens if port]


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that does, and its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def health(words: list[str], port: int) -> int:
    """What a check of health says of a server on this port in place of its own."""
    *start, code = words
    assert start == ["python", "-IS", "-c"]  # little to import
    code, count = re.subn(r"'127\.0\.0\.1', \d+,", f"'127.0.0.1', {port},", code)
    assert count == 1
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, check=False)
    return done.returncode


@pytest.mark.parametrize("where", [*DOCKERFILES, "callbacks"])
def test_a_check_of_health_tells_good_from_bad(where: str, services: dict[str, Any]) -> None:
    if where == "callbacks":
        words = services["callbacks"]["healthcheck"]["test"][1:]
        port = settings_of("api")["SLM_METRICS_PORT"]
    else:
        words = command(where, "HEALTHCHECK")
        port = instructions(where, "EXPOSE")[0].split()[0]
    assert f"'127.0.0.1', {port}," in words[-1]
    with answering(200) as good, answering(503) as bad:
        assert [health(words, p) for p in (good, bad)] == [0, 1]
    assert health(words, free_port()) == 1


def copied(image: str, target: Path) -> Path:
    """What the image's last stage holds in /app of ours."""
    stage = DOCKERFILES[image].read_text().rpartition("\nFROM ")[2]
    for line in re.findall(r"^COPY ([^-].*)$", stage, re.MULTILINE):
        *sources, where = line.split()
        for source in (path for pattern in sources for path in sorted(ROOT.glob(pattern))):
            to = target / where / ("" if source.is_dir() else source.name)
            if source.is_dir():
                skip = shutil.ignore_patterns("__pycache__", "*.safetensors", "built")
                shutil.copytree(source, to, ignore=skip)
            else:
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, to)
    return target


@pytest.mark.parametrize(
    ("image", "modules"),
    [
        ("api", ["api.app", "worker.callbacks.__main__", "slm_jobs.bootstrap_key"]),
        ("worker", ["worker.factory", "worker.host", "slm_jobs.store"]),
        ("space", ["slm_client.cli", "api.app", "worker.callbacks.__main__"]),  # and the worker's
    ],
)
def test_an_image_holds_all_that_its_commands_import(
    image: str, modules: list[str], tmp_path: Path
) -> None:
    app = copied(image, tmp_path / "app")
    assert not [path for path in app.rglob("*") if path.suffix in (".key", ".pem", ".env")]
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED, *modules],
        cwd=app,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert loaded["ours"].keys() >= set(modules)
    assert all(Path(file).is_relative_to(app) for file in loaded["ours"].values())
    assert image != "api" or not loaded["heavy"]


def test_the_api_bounds_the_headers_of_strangers() -> None:
    """httptools gathers them without end; h11 stops at 64 KiB."""
    words = command("api", "CMD")
    assert words[words.index("--http") + 1] == "h11"
    assert "--limit-concurrency" in words


def test_the_space_is_what_its_page_says() -> None:
    text = (ROOT / "deploy" / "space" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    words = command("space", "CMD")
    assert words[:6] == ["slm", "up", "--host", "0.0.0.0", "--port", "7860"]  # noqa: S104
    assert (front["sdk"], front["app_port"]) == ("docker", 7860)
    assert instructions("space", "USER") == ["1000"]  # as whom hosted Spaces run
    assert f"--owner slm --group slm --mode 700 {words[words.index('--data-dir') + 1]}" in str(
        instructions("space", "RUN")
    )


# Compose

PROFILES = {"worker-gpu": ["gpu"], "prometheus": ["monitoring"], "grafana": ["monitoring"]}
PORTS = {"api": 8000, "prometheus": 9090, "grafana": 3000}


def test_what_is_started_by_itself(services: dict[str, Any]) -> None:
    assert {n: s["profiles"] for n, s in services.items() if "profiles" in s} == PROFILES
    assert services.keys() - PROFILES.keys() == {"redis", "api", "worker", "callbacks"}


def test_services_may_do_nothing_that_they_need_not(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["pids_limit"] <= 1024, name
        assert all(":size=" in folder for folder in service["tmpfs"]), name
        assert not service.keys() & {"privileged", "cap_add", "devices", "network_mode", "pid"}
        assert not any("docker.sock" in volume for volume in service.get("volumes", ()))
    assert services["redis"]["user"] not in ("root", "0")


def test_redis_keeps_what_it_is_given(services: dict[str, Any]) -> None:
    command = " ".join(services["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert services["redis"]["volumes"] == ["redis-data:/data"]


def test_ports_are_open_only_here(services: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {name: [f"127.0.0.1:{port}:{port}"] for name, port in PORTS.items()}


def test_who_reaches_whom(services: dict[str, Any]) -> None:
    networks = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["networks"]
    internal = {name for name, options in networks.items() if (options or {}).get("internal")}
    on = {name: set(service["networks"]) for name, service in services.items()}
    assert set().union(*on.values()) == networks.keys()
    assert on["redis"] | on["worker"] | on["worker-gpu"] <= internal
    assert not on["callbacks"] & (on["api"] | on["worker"])
    assert all(on[name] & on["redis"] for name in ("api", "callbacks", "worker", "worker-gpu"))
    assert not (on["prometheus"] | on["grafana"]) & on["redis"]
    assert all(on[name] & on["prometheus"] for name in ("api", "callbacks", "worker", "worker-gpu"))
    # A port of a container that is on internal networks alone is opened nowhere.
    assert all(on[name] - internal for name in PORTS)


def test_every_service_is_looked_after(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert "build" in service or service["healthcheck"]["test"], name
        assert not service.get("healthcheck", {}).get("disable"), name


def test_settings_of_services_are_some(services: dict[str, Any]) -> None:
    for name, service in services.items():
        given = {k for k in service.get("environment", ()) if k.startswith("SLM_")}
        assert {k.removeprefix("SLM_").lower() for k in given} <= Settings.model_fields.keys(), name


def test_records_are_kept_for_as_long_as_on_kubernetes(services: dict[str, Any]) -> None:
    file = ROOT / "deploy" / "kubernetes" / "base" / "settings.yaml"
    theirs = yaml.safe_load(file.read_text())["data"]
    for name in ("SLM_JOB_TTL_SECONDS", "SLM_BATCH_TTL_SECONDS"):
        told = {services[s]["environment"][name] for s in ("api", "worker", "callbacks")}
        assert told == {f"${{{name}:-{theirs[name]}}}"}


def test_what_a_proxy_says_of_the_scheme_is_believed_where_that_is_set(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a callback's link begins with http://."""
    name = "FORWARDED_ALLOW_IPS"
    told = services["api"]["environment"][name]
    assert told == f"${{{name}:-127.0.0.1}}"
    assert "--forwarded-allow-ips" not in command("api", "CMD")  # which would win

    async def scheme_of(sender: str) -> str:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            found.append(scope["scheme"])

        found: list[str] = []
        trusted = uvicorn.Config(app).forwarded_allow_ips
        headers = [(b"x-forwarded-proto", b"https")]
        scope = {"type": "http", "scheme": "http", "client": (sender, 1), "headers": headers}
        await ProxyHeadersMiddleware(app, trusted)(scope, None, None)
        return found[0]

    monkeypatch.delenv(name, raising=False)
    assert asyncio.run(scheme_of("10.1.2.3")) == "http"
    monkeypatch.setenv(name, "10.0.0.0/8")
    assert asyncio.run(scheme_of("10.1.2.3")) == "https"
    assert asyncio.run(scheme_of("192.0.2.1")) == "http"


def test_nothing_has_to_be_set_before(services: dict[str, Any]) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert all(":-" in variable for variable in re.findall(r"\$\{[^}]*\}", text))


def test_they_may_end_in_peace(services: dict[str, Any]) -> None:
    settings = Settings()

    def grace(name: str) -> float:
        return float(services[name]["stop_grace_period"].removesuffix("s"))

    assert grace("worker") >= settings.drain_seconds + 10
    assert grace("worker-gpu") == grace("worker")
    assert grace("callbacks") >= settings.callback_timeout_seconds + 10
    assert not any("SLM_DRAIN_SECONDS" in s.get("environment", ()) for s in services.values())


def test_there_may_be_any_number_of_workers(services: dict[str, Any]) -> None:
    for name in ("worker", "worker-gpu", "callbacks"):
        assert not services[name].keys() & {"container_name", "ports", "hostname", "volumes"}, name


def test_a_gpu_is_asked_for_where_there_is_one(services: dict[str, Any]) -> None:
    cpu, gpu = services["worker"], services["worker-gpu"]
    [device] = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert device["device_ids"] == ["0"]  # a count would be the same for each container
    assert gpu["environment"] == {**cpu["environment"], "SLM_DEVICE": "cuda"}
    assert "args" not in gpu["build"]  # PyPI's build of torch has CUDA
    assert cpu["build"]["args"] == {"TORCH_INDEX": "${TORCH_INDEX:-}"}
    assert gpu["image"] != cpu["image"]


def test_grafana_has_no_password_that_is_known_to_all(services: dict[str, Any]) -> None:
    environment = services["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_what_is_mounted_is_there_and_cannot_be_written(services: dict[str, Any]) -> None:
    mounts = [v for s in services.values() for v in s.get("volumes", ()) if v.startswith(".")]
    assert mounts
    for mount in mounts:
        source, _, mode = mount.split(":")
        assert (ROOT / source).is_dir(), mount
        assert mode == "ro", mount


def test_prometheus_asks_services_that_it_reaches(services: dict[str, Any]) -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    ports = {"api": 8000, "worker": 9100, "worker-gpu": 9100, "callbacks": 9100}
    found = {
        name: source["port"]
        for job in scraped["scrape_configs"]
        for source in job["dns_sd_configs"]
        for name in source["names"]
    }
    assert found == ports
    exposed = {instructions(i, "EXPOSE")[0] for i in ("api", "worker")}
    assert {str(port) for port in ports.values()} == set(" ".join(exposed).split())
    allowed = services["api"]["environment"]["SLM_ALLOWED_HOSTS"].split(",")
    assert "api" in allowed
