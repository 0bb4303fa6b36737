"""The manifests fit each other, the images and the settings. Read only: this needs no cluster."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from benchmarks.capacity import JOBS, ROWS, Costs, need
from benchmarks.capacity_tables import RESULT, SHIPPED
from slm_jobs.settings import Settings
from tests.docs.pages import blocks
from worker.host import MAX_JOBS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
BASE = "base"
OVERLAYS = ("base", "autoscale", "gpu")
SCHEMAS = "1.30"  # of the oldest Kubernetes that these are for
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
}
MADE_BY_HAND = {"slm-api-key", "slm-redis", "slm-tls"}
WORKLOADS = ("Deployment", "StatefulSet", "Job")
COMPONENT = "app.kubernetes.io/component"
PART_OF = {"app.kubernetes.io/part-of": "slm"}  # which kustomize adds

Document = dict[str, Any]
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def kustomization(overlay: str) -> Document:
    document: Document = yaml.safe_load((FOLDER / overlay / "kustomization.yaml").read_text())
    return document


@cache
def documents(overlay: str) -> tuple[Document, ...]:
    """Those of the overlay's own files, without those of its base."""
    found: list[Document] = []
    for name in kustomization(overlay)["resources"]:
        if name.endswith(".yaml"):
            found += yaml.safe_load_all((FOLDER / overlay / name).read_text())
    return tuple(found)


@cache
def rendered(overlay: str, folder: Path = FOLDER) -> tuple[Document, ...]:
    """As kustomize makes them; skips where there is none."""
    if not (kubectl := shutil.which("kubectl")):
        pytest.skip("there is no kubectl, which has kustomize in it: overlays are not rendered")
    command = [kubectl, "kustomize", str(folder / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(*kinds: str, overlay: str = BASE) -> list[Document]:
    return [document for document in documents(overlay) if document["kind"] in kinds]


def named(kind: str, name: str, overlay: str = BASE) -> Document:
    [found] = [d for d in of_kind(kind, overlay=overlay) if d["metadata"]["name"] == name]
    return found


def pod(workload: Document) -> Document:
    template: Document = workload["spec"]["template"]
    return template


def container(workload: Document) -> Document:
    [only] = pod(workload)["spec"]["containers"]
    found: Document = only
    return found


def selected(selector: Document) -> list[Document]:
    """The workloads whose pods a label selector selects."""
    wanted = selector.get("matchLabels", {})
    found = []
    for workload in of_kind(*WORKLOADS):
        labels = PART_OF | pod(workload)["metadata"]["labels"]
        expressions = all(
            e["operator"] == "In" and labels.get(e["key"]) in e["values"]
            for e in selector.get("matchExpressions", [])
        )
        if wanted.items() <= labels.items() and expressions:
            found.append(workload)
    return found


def ports(workload: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(workload).get("ports", [])}


def inside(value: Any, key: str) -> Iterator[Any]:
    """Every value under `key`, however deep."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == key:
                yield each
            yield from inside(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from inside(each, key)


def instruction(image: str, name: str) -> str:
    text = (ROOT / f"Dockerfile.{image}").read_text().replace("\\\n", " ")
    last: str = re.findall(rf"^{name}\s+(.*)$", text, re.MULTILINE)[-1]
    return last


# What there is


@each_overlay
def test_every_file_is_part_of_it(overlay: str) -> None:
    there = {path.name for path in (FOLDER / overlay).glob("*.yaml")} - {"kustomization.yaml"}
    told = kustomization(overlay)
    patches = [patch["path"] for patch in told.get("patches", [])]
    named_files = [name for name in (*told["resources"], *patches) if name.endswith(".yaml")]
    assert there == set(named_files)


@each_overlay
def test_documents_are_as_the_official_schemas_have_them(overlay: str) -> None:
    for document in documents(overlay):
        check_schema(document)


@each_overlay
def test_what_kustomize_makes_of_them_is_too(overlay: str) -> None:
    made = rendered(overlay)
    for document in made:
        check_schema(document)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "slm"
    names = [(document["kind"], document["metadata"]["name"]) for document in made]
    assert len(set(names)) == len(names)


def check_schema(document: Document) -> None:
    if (document["apiVersion"], document["kind"]) in CUSTOM:
        return
    kubernetes_validate.validate(document, SCHEMAS, strict=True)


def test_labels_of_custom_kinds_are_looked_at_by_other_tests() -> None:
    assert {(d["apiVersion"], d["kind"]) for d in documents("autoscale")} == CUSTOM


# References


def services() -> list[Document]:
    """Those that lead to pods: one leads strangers to none."""
    return [service for service in of_kind("Service") if service["metadata"]["name"] != "nobody"]


def test_selectors_select_what_they_are_for() -> None:
    for workload in of_kind("Deployment", "StatefulSet"):
        assert selected(workload["spec"]["selector"]) == [workload]
        for spread in pod(workload)["spec"].get("topologySpreadConstraints", []):
            assert selected(spread["labelSelector"]) == [workload]
    for service in services():
        [workload] = selected({"matchLabels": service["spec"]["selector"]})
        assert workload["metadata"]["name"] == service["metadata"]["name"]
    for budget in of_kind("PodDisruptionBudget"):
        [workload] = selected(budget["spec"]["selector"])
        assert workload["metadata"]["name"] == budget["metadata"]["name"]


def test_every_service_of_compose_is_there() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    plain = {name for name, service in services.items() if not service.get("profiles")}
    ours = {w["metadata"]["name"] for w in of_kind("Deployment", "StatefulSet")}
    assert ours == plain


def test_ports_lead_somewhere() -> None:
    for service in services():
        [workload] = selected({"matchLabels": service["spec"]["selector"]})
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports(workload).keys()
    for workload in of_kind(*WORKLOADS):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            for port in inside(container(workload).get(probe, {}), "port"):
                assert port in ports(workload)
    for ingress in of_kind("Ingress"):
        for backend in inside(ingress["spec"]["rules"], "service"):
            service = named("Service", backend["name"])
            assert backend["port"]["name"] in {p["name"] for p in service["spec"]["ports"]}


def test_what_the_settings_say_of_ports_is_so() -> None:
    port = int(named("ConfigMap", "slm-settings")["data"]["SLM_METRICS_PORT"])
    for name in ("worker", "callbacks"):
        assert ports(named("Deployment", name)) == {"metrics": port}
    assert str(ports(named("Deployment", "api"))["http"]) in instruction("api", "CMD")


def test_configurations_and_secrets_exist() -> None:
    there = {d["metadata"]["name"] for d in of_kind("ConfigMap", "Secret")} | MADE_BY_HAND
    for document in documents(BASE):
        wanted = [ref["name"] for ref in inside(document, "configMapRef")]
        wanted += [ref["name"] for ref in inside(document, "secretKeyRef")]
        wanted += list(inside(document, "secretName"))
        assert set(wanted) <= there
    header = (FOLDER / BASE / "kustomization.yaml").read_text()
    assert all(name in header for name in MADE_BY_HAND)
    assert of_kind("Secret") == []  # no file of a repository is the place for one
    [block] = [b for b in blocks("docs/scaling.md") if "create secret" in b.text]
    made = dict(
        re.findall(r"create secret generic (\S+) ((?:.|\n)*?)(?=\nkubectl|\nPASS)", block.text)
    )
    for document in documents(BASE):
        for ref in inside(document, "secretKeyRef"):
            assert f"--from-literal={ref['key']}=" in made[ref["name"]]


def test_volumes_exist() -> None:
    for workload in of_kind(*WORKLOADS):
        volumes = {v["name"] for v in pod(workload)["spec"].get("volumes", [])}
        volumes |= {v["metadata"]["name"] for v in workload["spec"].get("volumeClaimTemplates", [])}
        assert {m["name"] for m in container(workload).get("volumeMounts", [])} == volumes


def test_network_policies_let_through_what_is_needed_and_close_the_rest() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in of_kind("NetworkPolicy")}
    assert policies.pop("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for spec in policies.values():
        opened = {p["port"] for rule in spec.get("ingress", []) for p in rule["ports"]}
        for workload in selected(spec["podSelector"]):
            assert opened <= set(ports(workload).values())
    names = {w["metadata"]["name"] for w in selected(policies["to-redis-and-dns"]["podSelector"])}
    assert names == {"api", "worker", "callbacks", "bootstrap-key"}
    [source] = policies["redis"]["ingress"][0]["from"]
    assert source["podSelector"] == policies["to-redis-and-dns"]["podSelector"]
    assert len(policies["to-redis-and-dns"]["egress"]) == 2
    outward = [name for name, spec in policies.items() if list(inside(spec, "ipBlock"))]
    assert outward == ["callbacks"]


def test_the_rule_for_a_redis_of_ones_own_needs_its_comment_signs_removed_only() -> None:
    text = (FOLDER / BASE / "network.yaml").read_text()
    opened = re.sub(r"^(    )# (- to:|    +\S.*|  ports:)$", r"\1\2", text, flags=re.MULTILINE)
    policies = {d["metadata"]["name"]: d for d in yaml.safe_load_all(opened)}
    policy = policies["to-redis-and-dns"]
    check_schema(policy)
    [_, own, _] = policy["spec"]["egress"]
    assert [port["port"] for port in own["ports"]] == [6379, 26379]
    assert list(inside(own, "cidr"))


def test_redis_has_a_password_and_keeps_its_name_when_it_cannot_write() -> None:
    redis = container(named("StatefulSet", "redis"))
    variables = {v["name"]: v for v in redis["env"]}
    assert redis["args"][redis["args"].index("--requirepass") + 1] == "$(REDISCLI_AUTH)"
    secret = variables["REDISCLI_AUTH"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "slm-redis", "key": "password"}
    assert named("Service", "redis")["spec"]["publishNotReadyAddresses"] is True


def test_strangers_get_no_metrics() -> None:
    [rule] = named("Ingress", "api")["spec"]["rules"]
    led = {p["path"]: p["backend"]["service"]["name"] for p in rule["http"]["paths"]}
    assert led == {"/metrics": "nobody", "/": "api"}
    assert "selector" not in named("Service", "nobody")["spec"]
    nginx = [b.text for b in blocks("docs/operating.md") if b.language == "nginx"]
    assert "location = /metrics { return 404; }" in nginx[0]


# With the images


def test_pods_run_as_restricted_as_the_namespace_asks() -> None:
    for workload in of_kind(*WORKLOADS):
        spec = pod(workload)["spec"]
        own = container(workload)["securityContext"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert own["readOnlyRootFilesystem"] is True
        assert own["allowPrivilegeEscalation"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False  # these would be variables of ours, and Celery's
        assert container(workload)["resources"]["limits"]["memory"]


def test_users_are_those_of_the_images() -> None:
    for workload in of_kind("Deployment", "Job"):
        image = container(workload)["image"].removeprefix("slm-")
        uid = pod(workload)["spec"]["securityContext"]["runAsUser"]
        assert instruction(image, "USER") == str(uid)
        assert f"--uid {uid} " in instruction(image, "RUN")


def test_images_are_named_once() -> None:
    used = {container(w)["image"] for w in of_kind("Deployment", "Job")}
    assert used == {image["name"] for image in kustomization(BASE)["images"]}


def test_probes_ask_what_the_images_ask() -> None:
    for workload in of_kind("Deployment"):
        it = container(workload)
        probes = [probe["httpGet"] for name, probe in it.items() if name.endswith("Probe")]
        assert len(probes) >= 2
        image = it["image"].removeprefix("slm-")
        if workload["metadata"]["name"] == "callbacks":
            image = "worker"  # which answers in the same way
        for probe in probes:
            assert probe.keys() == {"path", "port"}
            check = instruction(image, "HEALTHCHECK")
            assert f"'{probe['path']}'" in check
            assert f" {ports(workload)[probe['port']]}," in check


def test_redis_is_set_as_under_compose() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    redis = container(named("StatefulSet", "redis"))

    def options(words: list[str]) -> dict[str, str]:
        return dict(zip(words[1::2], words[2::2], strict=True))

    ours, theirs = options(redis["args"]), options(services["redis"]["command"])
    assert ours.pop("--requirepass")
    assert ours.pop("--maxmemory") == "$(MAXMEMORY)"
    assert theirs.pop("--maxmemory") == redis_memory(redis)
    assert ours == theirs
    assert redis["image"] == services["redis"]["image"]


def redis_memory(redis: Document) -> str:
    [most] = [v["value"] for v in redis["env"] if v["name"] == "MAXMEMORY"]
    return str(most)


def redis_of(overlay: str) -> Document:
    if overlay == BASE:
        return container(named("StatefulSet", "redis"))
    return container(yaml.safe_load((FOLDER / overlay / "redis.yaml").read_text()))


@pytest.mark.parametrize("overlay", [BASE, "autoscale"])
def test_redis_holds_what_so_many_busy_workers_make(overlay: str) -> None:
    redis = redis_of(overlay)
    memory = int(redis_memory(redis).removesuffix("gb"))
    limit = redis["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Gi")) >= 2 * memory  # its file is rewritten by a copy
    workers = 1
    if overlay != BASE:
        workers = named("ScaledObject", "worker", overlay)["spec"]["maxReplicaCount"]
    data = named("ConfigMap", "slm-settings")["data"]
    load = replace(JOBS, kept_seconds=int(data["SLM_JOB_TTL_SECONDS"]))
    costs = Costs.of(json.loads(RESULT.read_text("utf-8")))
    assert need(costs, load, workers).memory_gb <= 0.9 * memory
    assert int(data["SLM_JOB_TTL_SECONDS"]) == JOBS.kept_seconds
    assert int(data["SLM_BATCH_TTL_SECONDS"]) == ROWS.kept_seconds
    [shown] = [gb for names, gb in SHIPPED.items() if f"`{overlay}`" in names]
    assert shown == memory


# With the settings


def test_variables_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"SLM_{name.upper()}" for name in Settings.model_fields}
    data = named("ConfigMap", "slm-settings")["data"]
    variables = dict(data)
    assert variables.pop("FORWARDED_ALLOW_IPS") == "127.0.0.1"  # uvicorn's
    for source in (*documents(BASE), *gpu_patches()):
        for variable in (v for env in inside(source, "env") for v in env):
            variables[variable["name"]] = variable.get("value", "")
    for name in ("MAXMEMORY", "REDISCLI_AUTH"):  # Redis's
        del variables[name]
    assert variables.keys() <= known
    for name, value in variables.items():
        if value:
            monkeypatch.setenv(name, value)
    assert Settings.from_environment().slots == 128


def gpu_patches() -> list[Document]:
    patch: Document = yaml.safe_load((FOLDER / "gpu" / "worker.yaml").read_text())
    return [patch]


def test_workers_have_as_many_threads_as_cores() -> None:
    worker = container(named("Deployment", "worker"))
    [threads] = [v for v in worker["env"] if v["name"] == "SLM_THREADS"]
    field = threads["valueFrom"]["resourceFieldRef"]
    assert field == {"containerName": worker["name"], "resource": "limits.cpu"}
    assert worker["resources"]["limits"]["cpu"].isdigit()


def test_what_ends_has_time_to_end() -> None:
    data = named("ConfigMap", "slm-settings")["data"]
    settings = Settings.model_construct()

    def grace(name: str) -> int:
        return int(pod(named("Deployment", name))["spec"].get("terminationGracePeriodSeconds", 30))

    assert grace("worker") >= int(data["SLM_DRAIN_SECONDS"]) + 10
    assert grace("callbacks") > settings.callback_timeout_seconds
    stop = container(named("Deployment", "api"))["lifecycle"]["preStop"]["exec"]["command"]
    uvicorn = re.search(r'"--timeout-graceful-shutdown", "(\d+)"', instruction("api", "CMD"))
    assert uvicorn
    assert grace("api") > int(stop[1]) + int(uvicorn[1])


def test_uploads_and_answers_may_be_as_long_as_the_service_lets_them() -> None:
    annotations = named("Ingress", "api")["metadata"]["annotations"]
    told = {name.rpartition("/")[2]: value for name, value in annotations.items()}
    settings = Settings.model_construct()
    assert told["proxy-body-size"] == "1g"
    assert settings.max_batch_bytes == 1 << 30
    assert int(told["proxy-read-timeout"]) > settings.sync_timeout_seconds
    [rule] = named("Ingress", "api")["spec"]["rules"]
    allowed = named("ConfigMap", "slm-settings")["data"]["SLM_ALLOWED_HOSTS"].split(",")
    within = {"api", "api.slm", "api.slm.svc", "api.slm.svc.cluster.local"}
    assert {rule["host"]} | within == set(allowed)


# Autoscaling


def test_who_scales_owns_the_number() -> None:
    hpa = named("HorizontalPodAutoscaler", "api")["spec"]
    assert "replicas" not in named("Deployment", hpa["scaleTargetRef"]["name"])["spec"]
    scaled = named("ScaledObject", "worker", "autoscale")["spec"]
    assert "replicas" not in named("Deployment", scaled["scaleTargetRef"]["name"])["spec"]
    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]


def test_series_that_scale_exist_and_count_each_thing_once() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    for trigger in named("ScaledObject", "worker", "autoscale")["spec"]["triggers"]:
        assert trigger["type"] == "prometheus"
        assert trigger["metricType"] == "AverageValue"  # the only one that has a fallback
        query = trigger["metadata"]["query"]
        series = re.findall(r"slm_\w+", query)
        assert series
        assert all(f"`{name}`" in page for name in series)
        assert query.count("sum(max by (model_name) (") == len(series)
        assert query.count('{namespace="slm"}') == len(series)
        assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_full_workers_stay() -> None:
    """What a worker holds is the target for each at most, so that full ones are never too many; and
    what its slots alone hold is 0.9 of it at least, which an autoscaler takes for the same."""
    settings = Settings.model_construct()
    [gpu] = [v for e in inside(gpu_patches(), "env") for v in e if v["name"] == "SLM_SLOTS"]
    for overlay, slots in (("autoscale", settings.slots), ("gpu", int(gpu["value"]))):
        most = slots - settings.reserved_slots + slots // 8  # with the rows that it has ready
        assert 0.9 * running_target(overlay) <= slots <= MAX_JOBS
        assert running_target(overlay) == most


def running_target(overlay: str) -> int:
    if overlay == "gpu":
        [patch] = yaml.safe_load((FOLDER / "gpu" / "scaledobject.yaml").read_text())
        assert patch["path"] == "/spec/triggers/1/metadata/threshold"
        return int(patch["value"])
    triggers = named("ScaledObject", "worker", "autoscale")["spec"]["triggers"]
    return int(triggers[1]["metadata"]["threshold"])


def test_prometheus_scrapes_every_process() -> None:
    monitor = named("PodMonitor", "slm", "autoscale")["spec"]
    workloads = selected(monitor["selector"])
    assert {w["metadata"]["name"] for w in workloads} == {"api", "worker", "callbacks"}
    endpoints = {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}
    assert all(endpoints & ports(workload).keys() for workload in workloads)


def test_alerts_are_those_of_prometheus() -> None:
    made = runpy.run_path(str(FOLDER / "alerts.py"))
    assert made["MADE"].read_text("utf-8") == made["rendered"](), (
        "python deploy/kubernetes/alerts.py"
    )
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    assert named("PrometheusRule", "slm", "autoscale")["spec"] == rules


def gpu_worker(made: tuple[Document, ...]) -> Document:
    [worker] = [d for d in made if (d["kind"], d["metadata"]["name"]) == ("Deployment", "worker")]
    return worker


def test_gpu_workers_have_their_own_image_wherever_the_others_were_pushed(tmp_path: Path) -> None:
    [patch] = gpu_patches()
    [image] = kustomization("gpu")["images"]
    assert container(patch)["image"] == image["name"]
    assert image["name"] not in {image["name"] for image in kustomization(BASE)["images"]}
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    base = kustomization(BASE)  # after `kustomize edit set image`
    for each in base["images"]:
        each["newName"] = f"registry.example/{each['name']}"
    (tmp_path / BASE / "kustomization.yaml").write_text(yaml.safe_dump(base))
    made = rendered("gpu", tmp_path)
    images = {i for d in made for i in inside(d, "image")}
    assert container(gpu_worker(made))["image"].partition(":")[0] == "slm-worker-gpu"
    assert "registry.example/slm-api:latest" in images


def test_gpu_workers_ask_for_a_gpu() -> None:
    worker = gpu_worker(rendered("gpu"))
    assert container(worker)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    variables = {v["name"]: v.get("value") for v in container(worker)["env"]}
    assert variables["SLM_DEVICE"] == "cuda"
    assert {"SLM_REDIS_URL", "SLM_THREADS"} <= variables.keys()  # the base's are still there
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert container(worker)["image"].partition(":")[0] == services["worker-gpu"]["image"]
