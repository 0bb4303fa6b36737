"""Writes the alerts of deploy/prometheus for the Prometheus operator: autoscale/alerts.yaml.

python deploy/kubernetes/alerts.py
"""

from __future__ import annotations

import textwrap
from pathlib import Path

FOLDER = Path(__file__).parent
RULES = FOLDER.parent / "prometheus" / "alerts.yml"
MADE = FOLDER / "autoscale" / "alerts.yaml"
HEADER = """\
# Written by deploy/kubernetes/alerts.py from deploy/prometheus/alerts.yml: change that one.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: slm
spec:
"""


def rendered() -> str:
    _, line, groups = RULES.read_text("utf-8").partition("groups:\n")
    return HEADER + textwrap.indent(line + groups, "  ")


if __name__ == "__main__":
    MADE.write_text(rendered(), "utf-8")
