from __future__ import annotations

import subprocess
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # Ray brings it, without types

ROOT = Path(__file__).parents[2]


def test_the_on_premises_file_is_valid_for_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster/on-premises.yaml").read_text())
    validate_config(prepare_config(config))


def test_the_local_script_is_valid_shell() -> None:
    subprocess.run(["bash", "-n", str(ROOT / "cluster/local.sh")], check=True)
