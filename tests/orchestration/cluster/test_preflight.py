from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raprune.errors import RapruneError
from raprune.orchestration.cluster.preflight import (
    LOW_ROOM,
    SMALLEST_ROOM,
    TEMPORARY,
    NodeFacts,
    Question,
    Room,
    gather,
    listen,
    look,
    looked_for,
    preflight,
    problems,
    question,
)
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store

TIB = 2**40
HERE = NodeFacts(node="node a", versions={"torch": "2.13", "raprune": "1 (code 12)"})
SPEC = SearchSpec.model_validate({"output": "/shared/run"})


def asked(spec: SearchSpec = SPEC) -> Question:
    return question(spec, Store(spec.output))


def told(*others: NodeFacts, spec: SearchSpec = SPEC) -> list[tuple[str, str, bool]]:
    return [(found.node, found.text, found.fatal) for found in problems([HERE, *others], asked(spec))]


def room(free: int, *, what: str = "output", size: int = 100 * TIB) -> NodeFacts:
    return NodeFacts(node="node b", versions=HERE.versions, rooms=(Room(what, "/disk", free, size),))


def test_nothing_stands_in_the_way_of_equal_nodes() -> None:
    assert told(NodeFacts(node="node b", versions=HERE.versions), room(TIB)) == []


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (NodeFacts(node="node b", failure="ModuleNotFoundError: No module named 'raprune'"), "No module named"),
        (NodeFacts(node="node b", versions={"torch": "2.12"}), "torch 2.12, where the driver has 2.13"),
        (NodeFacts(node="node b", unwritable={"output": "Permission denied."}), "/shared/run: cannot be written: Per"),
        (NodeFacts(node="node b", unseen={"output": ("node a",)}), "/shared/run: not the folder that node a wrote to"),
        (NodeFacts(node="node b", code={"model.name": "model.name 'm:f': importing m raised E"}), "importing m raised"),
        (room(SMALLEST_ROOM - 1), "256 MiB are needed"),
    ],
)
def test_problem_of_a_node_names_the_node_and_the_field(facts: NodeFacts, text: str) -> None:
    (found,) = told(facts)
    assert found[0] == "node b" and text in found[1] and found[2]
    (problem,) = problems([HERE, facts], asked())
    assert problem.hint.endswith(".")


def test_networks_of_timm_are_no_function_that_nodes_look_for() -> None:
    """A search of any was refused: `timm has no function tf_efficientnet_lite0`."""
    spec = SearchSpec.model_validate({"model": {"name": "timm:tf_efficientnet_lite0"}, "methods": ["own.methods:Mine"]})
    assert asked(spec).code == {"methods[0]": "own.methods:Mine"}


def test_streamed_split_that_a_node_cannot_read_is_a_problem() -> None:
    spec = SearchSpec.model_validate({"data": {"name": "parquet", "train": "/data/train.parquet", "stream": True}})
    assert asked(spec).data == {"data.train": "/data/train.parquet"}
    read_by_driver = asked(spec.model_copy(update={"data": spec.data.model_copy(update={"stream": False})}))
    assert read_by_driver.data == {}
    ((_, text, fatal),) = told(NodeFacts(node="node b", data={"data.train": "not there."}), spec=spec)
    assert text == "data.train /data/train.parquet: not there." and fatal


def test_disk_with_little_room_is_a_warning() -> None:
    ((_, text, fatal),) = told(room(LOW_ROOM - 1))
    assert "only 4,096 MiB free" in text and not fatal
    ((_, text, fatal),) = told(room(TIB, what=TEMPORARY))
    assert "99% full; above 95%" in text and not fatal
    assert told(room(TIB, what=TEMPORARY, size=2 * TIB)) == []


def test_question_asks_for_code_of_the_users_own_alone() -> None:
    spec = SearchSpec.model_validate({"model": {"name": "my.nets:small"}, "methods": ["l1", "my.methods:Best"]})
    assert asked(spec).code == {"model.name": "my.nets:small", "methods[1]": "my.methods:Best"}


def test_nodes_look_for_two_files_each_in_the_mean() -> None:
    nodes = [f"node {number}" for number in range(125)]
    writers = {"output": nodes, "statistics": nodes[1:]}
    asked_for = [looked_for(node, writers) for node in nodes]
    assert sum(len(found) for one in asked_for for found in one.values()) == (125 + 124) + (124 + 124)
    assert asked_for[0]["output"] == nodes and asked_for[1]["output"] == ["node 0"]
    assert asked_for[0]["statistics"] == ["node 1"], "the driver's node could not write there"


def test_node_sees_the_files_of_those_that_share_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raprune.orchestration.cluster.preflight.SEEN_S", 0.0)
    question = asked(SearchSpec.model_validate({"output": str(tmp_path / "run")}))
    look(question, "node a", str(tmp_path))
    names = {where: ["node a", "node b"] for where in question.places}
    assert listen(question, names) == dict.fromkeys(question.places, ("node b",))
    assert listen(question, {where: ["node a"] for where in question.places}) == {}


@pytest.mark.ray
def test_single_node_answers_in_this_process_and_leaves_nothing(ray_cluster: None, tmp_path: Path) -> None:
    spec = SearchSpec.model_validate({"output": str(tmp_path / "runs" / "run")})
    started = time.monotonic()
    (facts,) = gather(asked(spec))
    assert time.monotonic() - started < 2.0, "a tenth of that where nothing else runs"
    assert not (facts.failure or facts.unwritable or facts.unseen or facts.code)
    assert {one.what for one in facts.rooms} == {TEMPORARY, "output", "statistics"} and facts.versions["torch"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_job_that_cannot_be_done_is_refused_with_nothing_written(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    changes = {"statistics": str(tmp_path / "file" / "x"), "model": {"name": "nowhere.nets:small"}}
    spec = SearchSpec.model_validate({"output": str(tmp_path / "run"), **changes})
    with pytest.raises(RapruneError, match=r"(?s)not ready.*statistics.*cannot be written.*nowhere.nets") as told:
        preflight(spec, Store(spec.output), console=Console(file=io.StringIO()))
    assert len(str(told.value).splitlines()) <= 6
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


NODES = """
import json, os, sys
from raprune.orchestration.cluster.connect import SETTINGS, connect
os.environ |= SETTINGS | {"RAY_AUTH_TOKEN": "0" * 64, "RAY_AUTH_MODE": "token", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
from ray.cluster_utils import Cluster
differences = json.loads(sys.argv[1])
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes.add_node(num_cpus=1)
nodes.add_node(num_cpus=1, env_vars=differences)
connect(nodes.address)
from raprune.errors import RapruneError
from raprune.orchestration.cluster.preflight import preflight
from raprune.spec.job import SearchSpec
from raprune.store.folder import Store
from rich.console import Console
for output in sys.argv[2:]:
    try:
        preflight(SearchSpec.model_validate({"output": output}), Store(output), console=Console(stderr=True))
        print(json.dumps("ready"))
    except RapruneError as error:
        print(json.dumps(str(error)))
import ray
ray.shutdown()
nodes.shutdown()
"""


SERVER = """
import sys, urllib.request
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/runs", method="PUT")).close()
print(f"http://{host}:{port}", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def buckets() -> Iterator[list[str]]:
    """The endpoints of two servers, each with a bucket `runs` of its own: in one process they would share it."""
    servers = [
        subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    yield [server.stdout.readline().strip() for server in servers if server.stdout]
    for server in servers:
        # Its input ends, and so does it.
        server.communicate()


@pytest.mark.nightly
@pytest.mark.ray
def test_nodes_with_other_storage_or_versions_are_named(tmp_path: Path, buckets: list[str]) -> None:
    """Three nodes. One sees another storage under the same URI, and has another Optuna installed."""
    other = tmp_path / "site" / "optuna-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: optuna\nVersion: 0.1\n")
    mine = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": buckets[0],
    }
    its = mine | {"AWS_ENDPOINT_URL": buckets[1], "PYTHONPATH": str(tmp_path / "site")}
    local = str(tmp_path / "runs" / "run")
    ran = subprocess.run(
        [sys.executable, "-c", NODES, json.dumps(its), "s3://runs/folder/run", local],
        capture_output=True,
        text=True,
        env=os.environ | mine,
        check=False,
    )
    answers: list[Any] = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('"')]
    assert len(answers) == 2, ran.stderr[-2000:]
    apart, together = answers
    assert "optuna 0.1, where the driver has" in apart and "optuna 0.1, where the driver has" in together
    assert "runs/folder/run: not the folder that node" in apart and "not the folder" not in together
    for endpoint in buckets:
        with urllib.request.urlopen(f"{endpoint}/runs?list-type=2") as listing:
            assert b".preflight" not in listing.read()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
