"""deploy/prometheus and deploy/grafana against what processes really tell, in a real Prometheus.

The stack here has a job with a callback behind it, so that every part has done something.
Prometheus and promtool come from `make .venv/tools/prometheus`; tests that lack them are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from slm_client.redis_server import free_port
from tests.e2e.service import Service, until

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "slm.json").read_text("utf-8"))
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
# As the runbook in docs/operating.md has them.
NAMES = {
    *("SlmNoWorkers", "SlmQueueGrowing", "SlmOldestJobTooOld", "SlmRedisDown", "SlmApiDown"),
    *("SlmApiErrors", "SlmDeadLetters", "SlmLeasesLost", "SlmCallbacksFailing"),
    *("SlmCallbacksBehind", "SlmSlowFirstToken", "SlmRedisNearlyFull"),
    *("SlmJobsExpire", "SlmRequestsFail"),
}
REQUEST_ID = "follow-me-7"


def tool(name: str) -> str:
    """Where it is. Skips the test if it is nowhere."""
    unpacked = ROOT / ".venv" / "tools" / "prometheus" / "usr" / "bin" / name
    found = shutil.which(str(unpacked)) or shutil.which(name)
    if not found:
        pytest.skip(f"no {name} here: `make .venv/tools/prometheus` gets that of Debian")
    return found


# Queries


def panels() -> Iterator[dict[str, Any]]:
    return (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def dashboard_queries() -> dict[str, str]:
    """Expressions of the dashboard as Grafana sends them, by where they are."""
    found = {}
    for panel in panels():
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "15s").replace("$model_name", ".*")
            found[f"{panel['title']} {target['refId']}"] = expr
    return found


def documented_queries() -> list[str]:
    """Those that docs/metrics.md shows."""
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8").partition("Some queries")[2]
    return [query for query in re.findall(r"`([^`]+)`", text) if "slm_" in query and "(" in query]


def alert_queries() -> dict[str, str]:
    return {rule["alert"]: rule["expr"] for rule in ALERTS}


def names_in(query: str) -> set[str]:
    """Series that a query names; not its functions and labels."""
    without_labels = re.sub(r"\{[^}]*\}|\([a-z_, ]+\) \(", "(", query)
    return set(re.findall(r"\b(?:slm|process)_[a-z0-9_]+", without_labels))


def test_names_are_found() -> None:
    query = 'sum by (le, slm_x) (rate(slm_a_bucket{b="slm_c"}[1m])) / process_d'
    assert names_in(query) == {"slm_a_bucket", "process_d"}


def test_alerts_are_those_of_the_runbook() -> None:
    assert {rule["alert"] for rule in ALERTS} == NAMES
    runbook = (ROOT / "docs" / "operating.md").read_text("utf-8")
    headings = set(re.findall(r"^#+ (Slm\w+)\s*$", runbook, re.MULTILINE))
    for rule in ALERTS:
        name = rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert rule["annotations"]["runbook_url"] == f"docs/operating.md#{name.lower()}"
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith("."), name
        assert name in headings


def test_scrapes_go_to_the_services_of_compose() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    asked = {
        (name, discovery["port"], discovery["type"])
        for job in config["scrape_configs"]
        for discovery in job["dns_sd_configs"]
        for name in discovery["names"]
    }
    assert asked == {
        ("api", 8000, "A"),
        ("worker", 9100, "A"),
        ("worker-gpu", 9100, "A"),
        ("callbacks", 9100, "A"),
    }
    assert {name for name, _, _ in asked} <= set(services)
    assert config["rule_files"] == ["alerts.yml"]
    assert {job["job_name"] for job in config["scrape_configs"]} >= {"slm-api", "slm-worker"}


# promtool


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [tool("promtool"), *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_and_configuration_are_valid() -> None:
    assert f"{len(NAMES)} rules found" in promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_when_it_should_and_not_otherwise() -> None:
    promtool("test", "rules", "alerts_test.yml")
    tests = (PROMETHEUS / "alerts_test.yml").read_text("utf-8")
    assert set(re.findall(r'alertname="(\w+)"', tests)) == NAMES


# Grafana


def test_the_dashboard_is_what_its_program_writes() -> None:
    spec = importlib.util.spec_from_file_location("slm_dashboard", GRAFANA / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text("utf-8") == module.document(), (
        "python deploy/grafana/dashboard.py"
    )


def test_panels_explain_themselves_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"


def test_grafana_finds_its_files_where_compose_puts_them() -> None:
    provisioning = GRAFANA / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "slm.yml").read_text())["providers"]
    volumes = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"][
        "volumes"
    ]
    places = dict(volume.split(":")[:2] for volume in volumes if volume.startswith("./"))
    assert places["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert places["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"


# A stack that has done something


class Stack(NamedTuple):
    service: Service
    pages: dict[str, str]  # job -> the address, without /metrics


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def receiver() -> Iterator[str]:
    """Takes every callback. Its address."""
    with HTTPServer(("127.0.0.1", 0), _Receiver) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def stack(
    checkpoint: Path, receiver: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """An api, a worker and a callback process that have run a job, a batch, and told of both."""
    folder = tmp_path_factory.mktemp("metrics")
    manifest = folder / "models.toml"
    manifest.write_text(f'[tiny]\ncheckpoint = "{checkpoint}"\n')
    with Service(folder, manifest) as service:
        service.env["SLM_LOG_LEVEL"] = "DEBUG"
        pages = {"slm-api": service.url}
        for job in ("slm-worker", "slm-callbacks"):
            pages[job] = f"http://127.0.0.1:{free_port()}"
        service.env["SLM_METRICS_PORT"] = pages["slm-worker"].rpartition(":")[2]
        service.start(workers=1)
        service.env["SLM_METRICS_PORT"] = pages["slm-callbacks"].rpartition(":")[2]
        service.start_callbacks()
        headers = {**service.headers, "X-Request-Id": REQUEST_ID, "Prefer": "wait=60"}
        with httpx.Client(base_url=service.url, headers=headers, trust_env=False) as http:
            asked = {"callback_url": receiver, "max_tokens": 20}
            answer = http.post("/jobs", json={"prompt": "Once upon", **asked}, timeout=90)
            assert answer.json()["status"] == "succeeded", answer.text
            batch = http.post("/batches", json={"rows": ["A cat", "A dog"], **asked}, timeout=90)
            assert batch.status_code == 202, batch.text
            http.get(f"/batches/{batch.json()['id']}", params={"wait": 60}, timeout=90)
        delivered = 'slm_callback_attempts_total{outcome="delivered"} 2.0'
        until(lambda: tells(pages["slm-callbacks"], delivered), "both callbacks have arrived")
        yield Stack(service, pages)


def page(url: str) -> str:
    return httpx.get(f"{url}/metrics", trust_env=False).raise_for_status().text


def tells(url: str, line: str) -> bool:
    try:
        return line in page(url)
    except httpx.TransportError:  # it is starting
        return False


def scraped(stack: Stack) -> dict[str, set[str]]:
    """The names of all samples, by job."""
    found = {}
    for job, url in stack.pages.items():
        families = text_string_to_metric_families(page(url))
        found[job] = {sample.name for family in families for sample in family.samples}
    return found


def test_every_series_that_is_asked_for_exists(stack: Stack) -> None:
    there = set().union(*scraped(stack).values())
    queries = {**dashboard_queries(), **alert_queries()}
    queries |= {query: query for query in documented_queries()}
    assert len(queries) > 60
    for place, query in queries.items():
        assert names_in(query), place
        assert names_in(query) <= there, place


def test_every_series_of_ours_is_asked_for_somewhere(stack: Stack) -> None:
    """What nobody looks at need not be counted."""
    asked = set().union(*map(names_in, [*dashboard_queries().values(), *alert_queries().values()]))
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked}
    there = {name for names in scraped(stack).values() for name in names if name.startswith("slm_")}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in there} <= families


def test_one_request_can_be_followed_through_all_logs(stack: Stack) -> None:
    logs = {path.stem: path.read_text("utf-8") for path in stack.service.folder.glob("*.log")}
    of = {
        name: [line for line in text.splitlines() if REQUEST_ID in line]
        for name, text in logs.items()
    }
    assert any("POST /jobs 200" in line for line in of.pop("api"))
    worker = next(lines for name, lines in of.items() if name.startswith("worker"))
    callbacks = next(lines for name, lines in of.items() if name.startswith("callbacks"))
    assert any("complete, 20 tokens" in line for line in worker)
    told = " ".join(line for line in callbacks if "delivered, 200" in line)
    assert "job.succeeded" in told
    assert "batch.completed" in told


class Server:
    """A Prometheus that scrapes the stack, as deploy/prometheus tells it but for the addresses."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(PROMETHEUS / "alerts.yml")]
        for job in config["scrape_configs"]:
            del job["dns_sd_configs"]
            address = stack.pages[job["job_name"]].removeprefix("http://")
            job["static_configs"] = [{"targets": [address]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            tool("prometheus"),
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def ask(self, path: str, **query: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=query, trust_env=False, timeout=30)
        if answer.status_code == 503:  # in plain text, while it starts
            answer.raise_for_status()
        document = answer.json()
        assert document["status"] == "success", document
        return document["data"]

    def value_of(self, query: str) -> list[Any]:
        result: list[Any] = self.ask("query", query=query)["result"]
        return result

    def has_scraped(self) -> bool:
        """Twice at least, so that there are rates."""
        try:
            found = self.value_of("count_over_time(up[1m])")
        except httpx.HTTPError:
            return False
        return len(found) == 3 and all(float(each["value"][1]) >= 3 for each in found)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


@pytest.fixture(scope="module")
def server(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(stack, tmp_path_factory.mktemp("prometheus"))
    try:
        until(server.has_scraped, "Prometheus has scraped all")
        yield server
    finally:
        server.stop()


def test_prometheus_takes_every_page(server: Server) -> None:
    targets = server.ask("targets")["activeTargets"]
    assert {target["labels"]["job"]: target["lastError"] for target in targets} == {
        "slm-api": "",
        "slm-worker": "",
        "slm-callbacks": "",
    }


def test_every_panel_shows_something(server: Server) -> None:
    empty = [place for place, query in dashboard_queries().items() if not server.value_of(query)]
    assert empty == []


def test_every_documented_query_has_an_answer(server: Server) -> None:
    assert [query for query in documented_queries() if not server.value_of(query)] == []


def test_a_stack_that_is_well_raises_no_alarm(server: Server) -> None:
    groups = server.ask("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(rules) == NAMES
    assert {rule["health"] for rule in rules.values()} == {"ok"}
    assert {name for name, rule in rules.items() if rule["state"] == "firing"} == set()
