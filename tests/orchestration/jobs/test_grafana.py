"""The Grafana dashboard: what it asks for, where it is put, and that a real Prometheus answers all that it asks."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it has no types
from typer.testing import CliRunner

from raprune.cli import app
from raprune.errors import RapruneError, UsageError
from raprune.orchestration.jobs.grafana import UID, install, source
from raprune.results.front import budget_of, front
from raprune.store.folder import Store
from tests.orchestration.processes import below, free_ports, kill
from tests.tools import require

ROOT = Path(__file__).parents[3]
DASHBOARD: dict[str, Any] = json.loads(source().read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = {(p["title"], t["refId"]): t["expr"] for p in PANELS for t in p["targets"]}


def test_grafana_knows_every_field_and_every_unit() -> None:
    """Read and written again by Grafana's own types, nothing is lost."""
    from grafana_foundation_sdk.cog import encoder, plugins
    from grafana_foundation_sdk.models import dashboard, units

    plugins.register_default_plugins()
    again = json.loads(encoder.JSONEncoder().encode(dashboard.Dashboard.from_json(DASHBOARD)))
    assert list(lost(DASHBOARD, again)) == []
    known = {value for value in vars(units).values() if isinstance(value, str)}
    assert {panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS} <= known


def lost(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """Where `found` is not what was wanted; what it has besides does not matter."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            yield from lost(value, found.get(key), f"{path}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for index, (value, other) in enumerate(zip(wanted, found, strict=True)):
            yield from lost(value, other, f"{path}[{index}]")
    elif wanted != found:
        yield f"{path}: {wanted!r} became {found!r}"


def test_panels_have_ids_and_places_of_their_own_and_targets_that_ask() -> None:
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0
        assert panel["targets"] and panel["description"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["expr"] and target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for one, other in itertools.combinations((panel["gridPos"] for panel in PANELS), 2):
        apart = any(
            a[start] + a[size] <= b[start]
            for a, b in ((one, other), (other, one))
            for start, size in (("x", "w"), ("y", "h"))
        )
        assert apart, (one, other)


def test_all_that_a_run_exports_is_asked_for_by_its_names_and_nothing_else() -> None:
    from raprune.orchestration.gauges import COUNTERS, GAUGES

    exported = {f"ray_{name}": m for name, m in GAUGES.items()}
    exported |= {f"ray_{name}_total": m for name, m in COUNTERS.items()}
    assert set(re.findall(r"\bray_raprune_\w+", " ".join(QUERIES.values()))) == set(exported)
    for (title, _), expr in QUERIES.items():
        tags = {tag for name in re.findall(r"\bray_raprune_\w+", expr) for tag in exported[name].tags}
        used = set(re.findall(r"(\w+)=~?\"", expr))
        used |= {name for found in re.findall(r"(?:by|on) \(([^)]*)\)", expr) for name in found.split(", ")}
        assert used <= tags | {"run", "WorkerId"}, title
        assert 'run=~"$run"' in expr
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    asked = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD)))
    assert variables == {"datasource", "run", "cost"} == asked


def grafana_of_ray(metrics: Path, *, uid: str = "rayDataDashboard") -> Path:
    """What Ray writes for a Grafana, by its own templates."""
    from ray.dashboard.modules.metrics.templates import DASHBOARD_PROVISIONING_TEMPLATE

    grafana, dashboards = metrics / "grafana", metrics / "grafana" / "dashboards"
    (grafana / "provisioning" / "dashboards").mkdir(parents=True)
    dashboards.mkdir()
    (grafana / "provisioning" / "dashboards" / "default.yml").write_text(
        DASHBOARD_PROVISIONING_TEMPLATE.format(dashboard_output_folder=dashboards)
    )
    (dashboards / "data_grafana_dashboard.json").write_text(json.dumps({"uid": uid, "title": "Data"}))
    return grafana


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("session", ["ray/session_latest", "session_latest"])
def test_it_goes_where_rays_own_grafana_looks_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: str
) -> None:
    grafana = grafana_of_ray(tmp_path / session / "metrics")
    before = files(grafana)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    ran = CliRunner().invoke(app, ["dashboards", "install"])
    assert ran.exit_code == 0, ran.output
    assert str(grafana / "grafana.ini") in ran.output and "/d/raprune" in ran.output
    assert files(grafana) == before | {"dashboards/raprune-grafana.json": source().read_bytes()}
    after = files(grafana)
    assert CliRunner().invoke(app, ["dashboards", "install"]).output == ran.output
    assert files(grafana) == after


def test_a_dashboard_that_ray_wrote_under_our_uid_is_replaced(tmp_path: Path) -> None:
    """As it does when it is told RAY_GRAFANA_DATA_DASHBOARD_UID=raprune, for a tab of its own in the Metrics tab."""
    grafana = grafana_of_ray(tmp_path, uid=UID)
    (grafana / "dashboards" / "broken.json").write_text("{")
    installed = install(str(grafana))
    assert installed.dashboard.name == "data_grafana_dashboard.json" and not installed.is_own
    assert installed.dashboard.read_bytes() == source().read_bytes()
    assert len(files(grafana)) == 3


def test_another_grafana_gets_a_provider_that_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc" / "provisioning" / "dashboards").mkdir(parents=True)
    (tmp_path / "etc" / "provisioning" / "dashboards" / "sample.yaml").write_text("apiVersion: 1\n")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        ran = CliRunner().invoke(app, ["dashboards", "install", "--folder", "etc"])
        assert ran.exit_code == 0 and "restart it" in ran.output
        assert set(files(tmp_path / "etc")) == {
            "provisioning/dashboards/raprune.yml",
            "provisioning/dashboards/sample.yaml",
            "raprune/raprune-grafana.json",
        }
    provider = yaml.safe_load((tmp_path / "etc/provisioning/dashboards/raprune.yml").read_text())
    assert provider["apiVersion"] == 1
    [one] = provider["providers"]
    assert one["type"] == "file" and one["options"]["path"] == str(tmp_path / "etc" / "raprune")


def test_server_that_is_no_grafana_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_METRICS_OUTPUT_ROOT", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UsageError, match="session_latest/metrics/grafana: not there") as caught:
        install()
    assert "ray start --head" in caught.value.hint and str(source()) in caught.value.hint
    with pytest.raises(UsageError, match=r"--folder .*: it has no provisioning/dashboards"):
        install(str(tmp_path))
    with pytest.raises(UsageError, match="no such folder"):
        install(str(tmp_path / "nothing"))
    grafana = grafana_of_ray(tmp_path / "metrics")
    (grafana / "provisioning/dashboards/default.yml").write_text("providers: [{name: Ray}]")
    with pytest.raises(RapruneError, match=r"default.yml: not a file of dashboard providers"):
        install(str(grafana))
    (grafana / "provisioning/dashboards/default.yml").unlink()
    (grafana / "raprune").write_text("in the way")
    with pytest.raises(RapruneError, match="cannot write"):
        install(str(grafana))


def test_a_wheel_brings_it_along(tmp_path: Path) -> None:
    uv = require("uv")
    subprocess.run([uv, "build", "--quiet", "--wheel", "-o", str(tmp_path), str(ROOT)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "site")
    code = "import raprune.orchestration.jobs.grafana as d; print(d.source())"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(told).is_relative_to(tmp_path / "site") and Path(told).read_bytes() == source().read_bytes()


@dataclass(frozen=True)
class Watched:
    """A cluster that a Prometheus scrapes."""

    address: str
    dashboard: str
    prometheus: str
    folder: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """A head with two processors in processes of its own, and Debian's Prometheus with the targets that Ray names."""
    binary = require("prometheus")
    # Short: sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="rp", dir="/tmp"))
    ports = dict(zip(("ray", "client", "dashboard", "prometheus"), itertools.count(free_ports(4)), strict=False))
    grafana = http.server.HTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=grafana.serve_forever, daemon=True).start()
    prometheus = f"http://127.0.0.1:{ports['prometheus']}"
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Under `uv run` Ray would build the environment again for its workers, which share this one.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_GRAFANA_HOST": f"http://127.0.0.1:{grafana.server_port}",
        "RAY_GRAFANA_DATA_DASHBOARD_UID": UID,
        "RAY_PROMETHEUS_HOST": prometheus,
        "RAY_TMPDIR": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        arguments = f"""--port {ports["ray"]} --ray-client-server-port {ports["client"]} --num-cpus 2
            --include-dashboard true --dashboard-host 127.0.0.1 --dashboard-port {ports["dashboard"]}
            --dashboard-agent-listen-port 0 --temp-dir {folder}/ray"""
        with (folder / "head.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    ["ray", "start", "--head", "--block", *arguments.split()], env=environment, stdout=log, stderr=log
                )
            )
        targets = folder / "ray/session_latest/prom_metrics_service_discovery.json"
        grafana_folder = folder / "ray/session_latest/metrics/grafana/dashboards/train_grafana_dashboard.json"
        wait_for(lambda: targets.exists() and grafana_folder.exists(), "Ray's dashboard", folder / "head.log")
        configured = yaml.safe_load((folder / "ray/session_latest/metrics/prometheus/prometheus.yml").read_text())
        configured["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configured))
        with (folder / "prometheus.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [
                        binary,
                        f"--config.file={folder}/prometheus.yml",
                        f"--storage.tsdb.path={folder}/data",
                        f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
                    ],
                    stdout=log,
                    stderr=log,
                )
            )
        wait_for(lambda: answers(f"{prometheus}/-/ready"), "Prometheus", folder / "prometheus.log")
        yield Watched(
            f"127.0.0.1:{ports['ray']}", f"http://127.0.0.1:{ports['dashboard']}", prometheus, folder, environment
        )
    finally:
        # At once: nothing of this cluster is asked for again, and Ray takes half a minute to end by itself.
        kill([pid for process in started for pid in (process.pid, *below(process.pid))])
        for process in started:
            process.wait()
        grafana.shutdown()
        grafana.server_close()
        shutil.rmtree(folder, ignore_errors=True)


class Healthy(http.server.BaseHTTPRequestHandler):
    """Says what Ray asks of a Grafana before it shows the Metrics tab."""

    def do_GET(self) -> None:
        body = b'{"database": "ok"}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def wait_for(is_there: Any, what: str, log: Path, timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not is_there():
        assert time.monotonic() < end, f"{what} did not come up: {log.read_text()[-2000:]}"
        time.sleep(0.5)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def query(watched: Watched, expr: str) -> list[dict[str, Any]]:
    """What Prometheus answers now to a panel's query, with Grafana's variables filled in."""
    filled = (
        expr.replace("$__rate_interval", "30s")
        .replace("$__range", "15m")
        .replace("$run", ".*")
        .replace("$cost", "flops")
    )
    body = urllib.parse.urlencode({"query": filled}).encode()
    with urllib.request.urlopen(f"{watched.prometheus}/api/v1/query", data=body, timeout=20) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


def told_by_ray(watched: Watched, path: str) -> Any:
    token = watched.environment["RAY_AUTH_TOKEN"]
    request = urllib.request.Request(watched.dashboard + path, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)["data"]


@pytest.mark.nightly
@pytest.mark.ray
def test_every_query_of_every_panel_is_answered_while_a_run_lives_and_the_front_after_it(
    watched: Watched, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = """--budget-flops 0.5 --budget-latency 1 --max-drop 0.5 --trials 12 --finalists 2 --epochs 1
        --rungs 0,0.25 --methods l2,random --model digits-net --data digits"""
    search = ["raprune", "search", "--address", watched.address, "--output", str(run), *flags.split()]
    unanswered = dict(QUERIES)
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(search, env=watched.environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 400
            while driver.poll() is None and time.monotonic() < end:
                unanswered = {key: expr for key, expr in unanswered.items() if not query(watched, expr)}
                time.sleep(1.0)
        finally:
            driver.terminate()
    assert driver.wait() == 0, (tmp_path / "log").read_text()
    assert unanswered == {}
    with urllib.request.urlopen(f"{watched.prometheus}/api/v1/label/run/values", timeout=20) as answer:
        assert str(run) in json.load(answer)["data"]

    # Nothing of the run lives any more: its last front is what the chart goes on to show.
    store = Store(run)
    rows = front(store.trials(), budget_of(store.record()))
    for ref, field in (("A", "val_accuracy"), ("B", "flops_fraction")):
        shown = query(watched, QUERIES["Pareto front", ref])
        assert {point["metric"]["candidate"]: float(point["value"][1]) for point in shown} == {
            row.candidate: pytest.approx(getattr(row, field)) for row in rows
        }
    [spent] = [p for p in query(watched, QUERIES["Time spent", "A"]) if p["metric"]["device"] == "worker"]
    assert float(spent["value"][1]) == pytest.approx(sum(trial.seconds for trial in store.trials()))
    [trials] = query(watched, QUERIES["Trials", "A"])
    assert float(trials["value"][1]) == len(store.trials())


@pytest.mark.nightly
@pytest.mark.ray
def test_ray_takes_the_dashboard_for_its_metrics_tab(watched: Watched) -> None:
    ran = subprocess.run(
        ["raprune", "dashboards", "install"], env=watched.environment, capture_output=True, text=True, check=True
    )
    grafana = watched.folder / "ray/session_latest/metrics/grafana"
    written = [json.loads(file.read_text()) for file in (grafana / "dashboards").glob("*.json")]
    assert [one["title"] for one in written if one["uid"] == UID] == ["raprune"], ran.stdout
    assert told_by_ray(watched, "/api/prometheus_health") == {}
    assert told_by_ray(watched, "/api/grafana_health")["dashboardUids"]["data"] == UID
