from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # Ray brings it, without types

from raprune.orchestration.coordinator import GAUGES

ROOT = Path(__file__).parents[2]


def test_the_on_premises_file_is_valid_for_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster/on-premises.yaml").read_text())
    validate_config(prepare_config(config))


def test_the_local_script_is_valid_shell() -> None:
    subprocess.run(["bash", "-n", str(ROOT / "cluster/local.sh")], check=True)


def test_the_dashboard_asks_for_gauges_that_the_coordinator_sets_and_for_all_of_them() -> None:
    text = (ROOT / "dashboards/raprune-grafana.json").read_text()
    dashboard = json.loads(text)
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = set(re.findall(r"ray_(raprune_\w+)", " ".join(expressions)))
    assert asked == set(GAUGES)
    labels = set(re.findall(r"(\w+)=~", text)) | set(re.findall(r"\{\{(\w+)\}\}", text))
    assert labels <= {"run", "state"}
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
