"""What the images install, copy and run, and what compose allows them; read, and run from copies.

There is no container engine where tests run.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXTRAS = {"api": ("api", "callbacks"), "worker": ("worker",)}  # by image
OURS = ("api", "slm_client", "slm_core", "slm_jobs", "training", "worker")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", re.MULTILINE)
_IMPORTED = f"""
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
ours = {{n: m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] in {OURS}}}
print(json.dumps(ours))
"""

each_image = pytest.mark.parametrize("image", EXTRAS)


def normal(package: str) -> str:
    return re.sub("[-_.]+", "-", package).lower()


def pins(name: str) -> dict[str, str]:
    found = _PIN.findall((ROOT / name).read_text())
    return {normal(package): version for package, version in found}


def instructions(image: str, kind: str) -> list[str]:
    text = (ROOT / f"Dockerfile.{image}").read_text().replace("\\\n", " ")
    found = re.findall(rf"^{kind}\s+(.*)$", text, re.MULTILINE)
    return [" ".join(line.split()) for line in found]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services: dict[str, Any] = document["services"]
    return services


# The lock


@each_image
def test_every_package_is_locked_at_the_version_that_is_tested(image: str) -> None:
    text = (ROOT / f"requirements-{image}.lock").read_text()
    locked = pins(f"requirements-{image}.lock")
    assert locked.items() <= pins("constraints.txt").items()
    entries = [e for e in text.replace("\\\n", "").splitlines() if not e.startswith("#")]
    assert len(entries) == len(locked)
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
    assert not re.search("://|--index|--find-links", text)


@each_image
def test_the_lock_holds_what_the_image_needs(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed, left = {"setuptools"}, list(project["dependencies"])
    for extra in (*EXTRAS[image], "store"):
        left += project["optional-dependencies"][extra]
    for requirement in left:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        needed |= {normal(name)} - {project["name"], "torch"}
    assert needed <= pins(f"requirements-{image}.lock").keys()


@each_image
def test_only_torch_is_installed_without_a_hash(image: str) -> None:
    installs = re.findall("pip install ([^&]*)", " && ".join(instructions(image, "RUN")))
    lock, *torch, ours = [command.strip() for command in installs]
    assert lock == (f"--require-hashes --only-binary :all: --requirement requirements-{image}.lock")
    assert (
        torch
        == {"api": [], "worker": ["--only-binary :all: --constraint constraints.txt torch"]}[image]
    )
    assert ours == "--no-index --no-deps --no-build-isolation ."


# The images


@each_image
def test_an_image_runs_as_nobody_in_particular(image: str) -> None:
    text = (ROOT / f"Dockerfile.{image}").read_text()
    [user] = instructions(image, "USER")
    assert int(user) > 1_000
    after = text[text.index("\nUSER ") :]
    assert "\nCMD [" in after
    assert "\nHEALTHCHECK " in text
    assert not re.search(r"^(COPY|RUN|ADD) ", after, re.MULTILINE)
    assert "\nADD " not in text


def copied(image: str, target: Path) -> Path:
    """What the image's last stage holds in /app of ours."""
    stage = (ROOT / f"Dockerfile.{image}").read_text().rpartition("\nFROM ")[2]
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
    assert loaded.keys() >= set(modules)
    assert all(Path(file).is_relative_to(app) for file in loaded.values())


def test_the_api_bounds_the_headers_of_strangers() -> None:
    """httptools gathers them without end; h11 stops at 64 KiB."""
    [command] = instructions("api", "CMD")[-1:]
    words = json.loads(command)
    assert words[words.index("--http") + 1] == "h11"
    assert "--limit-concurrency" in words


# Compose


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


def test_only_the_api_has_a_port_and_only_here(services: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {"api": ["127.0.0.1:8000:8000"]}


def test_who_reaches_whom(services: dict[str, Any]) -> None:
    networks = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["networks"]
    internal = {name for name, options in networks.items() if (options or {}).get("internal")}
    on = {name: set(service["networks"]) for name, service in services.items()}
    assert on["redis"] | on["worker"] <= internal
    assert not on["callbacks"] & (on["api"] | on["worker"])
    assert all(on[name] & on["redis"] for name in on)


def test_every_service_is_looked_after(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        built = service.get("build", {}).get("dockerfile", "")
        # Callbacks have no port to ask at; their process ends when it cannot go on.
        assert name == "callbacks" or built or service["healthcheck"]["test"]
