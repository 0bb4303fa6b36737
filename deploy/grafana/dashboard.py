"""python deploy/grafana/dashboard.py

Writes `dashboards/slm.json`, which Grafana (11 or newer) reads: change it here, not there. Gauges
of Redis come from every api alike, hence `max`; what processes count for themselves is summed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("dashboards") / "slm.json"
_WIDTH = 24  # columns of a dashboard
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_M = 'model_name=~"$model_name"'
_RATE = "[$__rate_interval]"

Query = tuple[str, str]  # an expression, and how the legend calls its series
Panel = dict[str, Any]


def fleet(name: str, by: str = "model_name") -> str:
    """A gauge of Redis, by model."""
    return f"max by ({by}) (slm_{name}{{{_M}}})"


def rate(name: str, by: str, labels: str = _M) -> str:
    """A counter, per second."""
    return f"sum by ({by}) (rate(slm_{name}_total{{{labels}}}{_RATE}))"


def quantiles(name: str, labels: str = _M, by: str = "") -> list[Query]:
    """The median and what one in 20, and one in 100, exceed."""
    groups = f"{by}, le" if by else "le"
    buckets = f"sum by ({groups}) (rate(slm_{name}_bucket{{{labels}}}{_RATE}))"
    legend = f" {{{{{by}}}}}" if by else ""
    return [
        (f"histogram_quantile({share}, {buckets})", f"p{round(100 * share)}{legend}")
        for share in (0.5, 0.95, 0.99)
    ]


def _panel(
    kind: str, title: str, about: str, queries: Sequence[Query], width: int, height: int
) -> Panel:
    targets = [
        {"refId": chr(65 + i), "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
        for i, (expr, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": _SOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": targets,
    }


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> dict[str, Any]:
    return {
        "mode": "absolute",
        "steps": [{"value": value, "color": color} for value, color in steps],
    }


def number(
    title: str,
    about: str,
    expr: str,
    *,
    unit: str = "short",
    steps: Sequence[tuple[float | None, str]] = ((None, "text"),),
    width: int = 4,
) -> Panel:
    """One number as it is now. `steps`: from which value on it has which colour."""
    panel = _panel("stat", title, about, [(expr, "")], width, 4)
    panel["fieldConfig"] = {
        "defaults": {"unit": unit, "thresholds": _thresholds(steps)},
        "overrides": [],
    }
    panel["options"] = {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"]},
    }
    return panel


def lines(
    title: str,
    about: str,
    queries: Sequence[Query],
    *,
    unit: str = "short",
    limit: float | None = None,
    most: float | None = None,
    stacked: bool = False,
    width: int = 8,
) -> Panel:
    """Numbers over time. Above `limit` the ground is red; the axis ends at `most`."""
    panel = _panel("timeseries", title, about, queries, width, 8)
    steps: list[tuple[float | None, str]] = [(None, "green")]
    custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
    if limit is not None:
        steps.append((limit, "red"))
        custom["thresholdsStyle"] = {"mode": "area"}
    if stacked:
        custom |= {"stacking": {"mode": "normal"}, "fillOpacity": 40}
    defaults = {"unit": unit, "min": 0, "custom": custom, "thresholds": _thresholds(steps)}
    if most is not None:
        defaults["max"] = most
    panel["fieldConfig"] = {"defaults": defaults, "overrides": []}
    panel["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


def heat(title: str, about: str, name: str) -> Panel:
    """A histogram over time."""
    expr = f"sum by (le) (increase(slm_{name}_bucket{{{_M}}}{_RATE}))"
    panel = _panel("heatmap", title, about, [(expr, "{{le}}")], 8, 8)
    panel["targets"][0]["format"] = "heatmap"
    panel["options"] = {
        "calculate": False,
        "yAxis": {"unit": "s"},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "cellGap": 1,
        "tooltip": {"mode": "single", "yHistogram": True},
    }
    return panel


_DEAD = ((None, "green"), (1, "red"))
_ALIVE = ((None, "red"), (1, "green"))

ROWS: dict[str, list[Panel]] = {
    "Overview": [
        number("Redis", "1: it answers the api.", "min(slm_redis_up)", steps=_ALIVE),
        number(
            "Workers",
            "Alive, of the model that has fewest.",
            f"min({fleet('workers')})",
            steps=_ALIVE,
        ),
        number(
            "Waiting jobs",
            "Jobs that no worker has begun.",
            f"sum({fleet('num_requests_waiting')})",
            steps=((None, "green"), (100, "orange")),
        ),
        number(
            "Slots in use",
            "Share of the sequences that all workers could decode at once.",
            f"sum(slm_slots_in_use{{{_M}}}) / sum(slm_engine_slots{{{_M}}})",
            unit="percentunit",
        ),
        number(
            "Tokens per second",
            "Generated, by all workers.",
            f"sum(rate(slm_generation_tokens_total{{{_M}}}{_RATE}))",
        ),
        number(
            "Dead letters",
            "Jobs that failed, and were not redriven or dropped.",
            "max(slm_dead_letters)",
            steps=_DEAD,
        ),
        lines(
            "Jobs and rows that ended, per second",
            "By finish reason; failed ones by their error code.",
            [
                (rate("request_success", "finished_reason"), "{{finished_reason}}"),
                (rate("request_failure", "code"), "{{code}}"),
            ],
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Tokens per second",
            "Prompts taken in, and text generated.",
            [
                (rate("generation_tokens", "model_name"), "generated {{model_name}}"),
                (rate("prompt_tokens", "model_name"), "prompts {{model_name}}"),
            ],
        ),
        lines(
            "Jobs and rows",
            "Those that wait, and those that workers hold.",
            [
                (f"sum({fleet('num_requests_waiting')})", "jobs waiting"),
                (f"sum({fleet('num_requests_running')})", "jobs running"),
                (f"sum({fleet('num_batch_rows_waiting')})", "rows waiting"),
                (f"sum({fleet('num_batch_rows_running')})", "rows running"),
            ],
        ),
    ],
    "Latency of jobs": [
        lines(
            "Time to first token",
            "From a job's creation.",
            quantiles("time_to_first_token_seconds"),
            unit="s",
            limit=10,
        ),
        lines(
            "Inter-token latency",
            "From a sequence's token to its next, rows of batches included.",
            quantiles("inter_token_latency_seconds"),
            unit="s",
        ),
        lines(
            "End to end",
            "From a job's creation to its end.",
            quantiles("e2e_request_latency_seconds"),
            unit="s",
        ),
        heat("Time to first token", "How many jobs took how long.", "time_to_first_token_seconds"),
        heat(
            "Inter-token latency",
            "How many tokens came how long after the one before.",
            "inter_token_latency_seconds",
        ),
        heat("End to end", "How many jobs took how long.", "e2e_request_latency_seconds"),
        lines(
            "Where the time goes",
            "One job in 20 takes longer to be claimed, then to its first token, then to its last.",
            [
                (quantiles(f"request_{part}_time_seconds")[1][0], part)
                for part in ("queue", "prefill", "decode")
            ],
            unit="s",
            width=24,
        ),
    ],
    "Engine": [
        lines(
            "Slots",
            "Sequences being decoded, and how many could be, by worker.",
            [
                (f"slm_slots_in_use{{{_M}}}", "{{model_name}} {{instance}}"),
                (fleet("slots"), "all there are of {{model_name}}"),
            ],
        ),
        lines(
            "KV cache in use",
            "Share of its positions, by worker.",
            [(f"slm_kv_cache_usage_ratio{{{_M}}}", "{{model_name}} {{instance}}")],
            unit="percentunit",
            most=1,
        ),
        lines(
            "Padding efficiency",
            "Of the positions that are computed, those that had to be. 1: nothing is padding.",
            [
                (
                    f"{rate('engine_tokens_needed', 'model_name')} / "
                    f"{rate('engine_tokens_computed', 'model_name')}",
                    "{{model_name}}",
                )
            ],
            unit="percentunit",
            most=1,
        ),
        lines(
            "Step time",
            "A step in phase prefill also takes prompts in.",
            quantiles("engine_step_seconds", by="phase"),
            unit="s",
            width=12,
        ),
        lines(
            "Steps per second",
            "Of all workers.",
            [
                (
                    f"sum by (phase) (rate(slm_engine_step_seconds_count{{{_M}}}{_RATE}))",
                    "{{phase}}",
                )
            ],
            width=12,
        ),
    ],
    "Queue and reliability": [
        lines(
            "Waiting tokens",
            "What waiting jobs and rows may take at most; autoscalers go by it.",
            [(fleet("waiting_tokens"), "{{model_name}}")],
        ),
        lines(
            "Oldest waiting job",
            "Its age.",
            [(fleet("oldest_waiting_seconds"), "{{model_name}}")],
            unit="s",
            limit=300,
        ),
        lines(
            "Refusals per second",
            "Requests refused, by the limit that was reached; queue: too much waits already.",
            [(rate("rate_limit_refusals", "limit", ""), "{{limit}}")],
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Leases and fences",
            "Work taken back from workers that fell silent, and their results that came too late.",
            [
                (f"sum(increase(slm_leases_recovered_total{_RATE}))", "leases recovered"),
                (
                    f"sum(increase(slm_fence_rejections_total{{{_M}}}{_RATE}))",
                    "results refused",
                ),
            ],
        ),
        lines(
            "Dead letters",
            "Those that stand there, and those that come.",
            [
                ("max(slm_dead_letters)", "there are"),
                (f"sum(increase(slm_dead_lettered_total{{{_M}}}{_RATE}))", "new"),
            ],
        ),
        lines(
            "Memory of Redis",
            "From 90 % of the limit on no job is taken. 0: there is none.",
            [
                ("max(slm_redis_memory_used_bytes)", "used"),
                ("max(slm_redis_memory_max_bytes)", "limit"),
            ],
            unit="bytes",
        ),
    ],
    "Callbacks": [
        lines(
            "Attempts per second",
            "By outcome.",
            [(rate("callback_attempts", "outcome", ""), "{{outcome}}")],
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Duration of an attempt",
            "Until the receiver has answered, or time was up.",
            quantiles("callback_latency_seconds", labels=""),
            unit="s",
        ),
        lines(
            "Pending",
            "To be delivered, now or later, being attempted now, and given up.",
            [
                ("max(slm_callbacks_pending)", "pending"),
                ("sum(slm_callbacks_running)", "running"),
                (f"sum(increase(slm_callbacks_given_up_total{_RATE}))", "given up"),
            ],
            width=4,
        ),
        lines(
            "Overdue",
            "For how long the longest due one has waited for an attempt.",
            [("max(slm_callbacks_overdue_seconds)", "longest")],
            unit="s",
            limit=300,
            width=4,
        ),
    ],
    "HTTP and processes": [
        lines(
            "Requests per second",
            "By route.",
            [(rate("http_requests", "method, route", ""), "{{method}} {{route}}")],
            unit="reqps",
        ),
        lines(
            "Answers per second",
            "By status; 499: the caller went away.",
            [(rate("http_requests", "status", ""), "{{status}}")],
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Time to answer",
            "One request in 20 takes longer, by route. Waits that callers asked for count.",
            [(quantiles("http_request_duration_seconds", "", "route")[1][0], "{{route}}")],
            unit="s",
        ),
        lines(
            "Memory",
            "Of each process.",
            [('process_resident_memory_bytes{job=~".*slm.*"}', "{{job}} {{instance}}")],
            unit="bytes",
            width=12,
        ),
        lines(
            "Processor",
            "Cores that each process uses.",
            [
                (
                    f'rate(process_cpu_seconds_total{{job=~".*slm.*"}}{_RATE})',
                    "{{job}} {{instance}}",
                )
            ],
            width=12,
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """As Grafana has it: panels in rows from left to right, from top to bottom."""
    panels: list[Panel] = []
    top = 0
    for title, row in ROWS.items():
        head = {"type": "row", "title": title, "collapsed": False, "panels": []}
        panels.append({**head, "gridPos": {"x": 0, "y": top, "w": _WIDTH, "h": 1}})
        top, left, height = top + 1, 0, 0
        for panel in row:
            place = panel["gridPos"]
            if left + place["w"] > _WIDTH:
                top, left, height = top + height, 0, 0
            panels.append({**panel, "gridPos": {"x": left, "y": top, **place}})
            left, height = left + place["w"], max(height, place["h"])
        top += height
    for place_in_list, panel in enumerate(panels, 1):
        panel["id"] = place_in_list
    return {
        "uid": "slm",
        "title": "SLM jobs",
        "description": "Queue, workers, callbacks and api. docs/metrics.md says what series mean.",
        "tags": ["slm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _VARIABLES},
        "panels": panels,
    }


_VARIABLES = [
    {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
    {
        "name": "model_name",
        "label": "Model",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": "label_values(slm_workers, model_name)", "refId": "models"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    },
]


def document() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), "utf-8")
