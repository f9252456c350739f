"""Tests of the report as one file: complete, correct, the same each time, without other files or scripts."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

from raprune.errors import StoreError
from raprune.report.html import html, report, write_report
from raprune.report.html.job import job_of
from raprune.results.exports import keep_proof, read_proofs
from raprune.results.run_results import read_run_results
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from raprune.store.record import RunRecord
from tests.factories import GROUPS, TIMED, export_proof, failed_trial, make_run
from tests.tools import require

KEPT_SECRET = "s3://key:hunter2@bucket/train.parquet?token=hunter2"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = make_run(tmp_path_factory.mktemp("run"))
    described = store.run()
    described["spec"]["data"]["train"] = KEPT_SECRET
    described |= {
        "state": "finished",
        "finished_at": 1_800_000_060.0,
        "graph": {
            "groups": GROUPS,
            "frozen": [["linear", 10, "the network's output"]],
            "proof": {"permutation_error": 1.5e-16, "cut_error": 0.0},
        },
        "versions": {"python": "3.12.1", "raprune": "0.1.0"},
        "data": {"name": "digits", "fingerprint": "72231f54", "train": 1006, "validation": 251, "test": 540},
    }
    store.write_json("run.json", described)
    store.append([failed_trial(store, 90, "<script>boom</script>\nx")])
    write_report(store)
    return store


@pytest.fixture(scope="module")
def page(run: Store) -> str:
    return run.read_bytes("report/front.html").decode()


class Parsed(HTMLParser):
    """Parser of a page: its references, scripts and tables, and whether its elements are closed."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.referred: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self._open: list[str] = []
        self._caption = ""
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self.referred += [given[name] or "" for name in ("src", "href", "xlink:href", "action") if name in given]
        self.ids += [given["id"] or ""] if "id" in given else []
        assert not any(name.startswith("on") for name in given)
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr" and self._caption:
            self.tables[self._caption].append([])
        if tag == "td":
            self.tables[self._caption][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "caption":
            self._caption = data
            self.tables[data] = []
        elif inside == "td":
            self.tables[self._caption][-1][-1] += data
        elif inside == "h2":
            self.headings.append(data)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag
        if tag == "table":
            self._caption = ""


def test_report_loads_no_file_and_runs_no_script(page: str) -> None:
    parsed = Parsed(page)
    assert "script" not in parsed.tags and "default-src 'none'" in page
    assert all(reference.startswith("#") for reference in parsed.referred)
    assert {reference[1:] for reference in parsed.referred} <= set(parsed.ids) and len(parsed.ids) == len(
        set(parsed.ids)
    )
    assert not re.search(r"url\((?!#)|@import", page)


def test_report_is_small_enough_to_send(page: str) -> None:
    assert len(page.encode()) < 400_000


def test_report_holds_every_section(page: str) -> None:
    parsed = Parsed(page)
    assert parsed.headings == [
        "The request",
        "The front",
        "The chosen network",
        "Widths by layer",
        "The methods side by side",
        "Progress over compute time",
        "Reproduction",
    ]
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert (
        "keeps 30 % of the FLOPs and has 97.6 % test accuracy against 97.8 % of the dense network. The request" in words
    )
    assert "at most 30 % of the FLOPs (1,023,600)" in words and "1,006 train, 251 validation, 540 test" in words
    assert "1.5e-16 of their size" in words and "linear: the network&#x27;s output" in words
    assert "python 3.12.1, raprune 0.1.0" in words


def test_report_of_a_network_trained_on_validation_has_a_notice_and_the_normalisation(tmp_path: Path) -> None:
    store = make_run(tmp_path / "run")
    described = store.run()
    described["spec"]["model"]["weights"] = "given.safetensors"
    described["dense"] |= {"val_accuracy": 0.999, "val_images": 5_000}
    described["data"] = {"mean": [0.485], "std": [0.229], "normalisation": "given"}
    store.write_json("run.json", described)
    store.write_json("report/test.json", store.read_json("report/test.json") | {"images": 10_000})
    page = html(read_run_results(store))
    assert "scores 99.9% on validation and 97.8% on test: it was probably trained on the validation images" in page
    assert "mean (0.485), std (0.229) (given)" in page


def test_tables_of_the_report_hold_the_figures(run: Store, page: str) -> None:
    tables = Parsed(page).tables
    front = tables["The networks of the front"][1:]
    assert [cells[1] for cells in front] == [row["candidate"] for row in run.read_json("report/front.json")]
    assert [cells[0] for cells in front].count("★") == 1
    compared = tables["The best of each method, after equal fine-tuning"][1:]
    assert [cells[4] for cells in compared] == [row["candidate"] for row in run.read_json("report/ablation.json")]
    widths = {cells[0]: cells[1:] for cells in tables["Channels in each group"][1:]}
    assert widths["head<b>"][0] == "44" and widths.keys() == GROUPS.keys()
    beside = {cells[0]: cells[1:] for cells in tables["Comparison with the dense network"][1:]}
    assert beside["FLOPs for one image"] == ["3,412,000", "1,023,600", "30.0"]
    assert beside["test accuracy, % (360 images)"] == ["97.78", "97.60", "-0.18 ± 0.81 points"]


def test_error_of_a_trial_is_text_in_the_report(page: str) -> None:
    assert Parsed(page).tables["1 failed trials"][1:] == [["1", "<script>boom</script>"]]


def test_report_holds_no_secret(run: Store, page: str, tmp_path: Path) -> None:
    assert "hunter2" not in page and "s3://bucket/train.parquet" in page


def test_point_of_the_figure_links_to_its_row(run: Store, page: str) -> None:
    for row in run.read_json("report/front.json"):
        name = row["candidate"]
        assert f'<a href="#candidate-{name}"' in page and f'<tr id="candidate-{name}"' in page


def test_report_of_the_same_run_is_the_same_page(run: Store, page: str) -> None:
    assert html(read_run_results(run)) == page


def test_report_shows_measured_times(tmp_path: Path) -> None:
    store = make_run(tmp_path)
    rows = read_run_results(store).front
    timing = TIMED | {"batch_size": 64, "dense_ms": 4.0, "candidates": {row.candidate: 3.6 for row in rows}}
    store.write_json("report/latency.json", {"conditions": [timing | {"batch_size": 1}, timing], "budget": timing})
    write_report(store)
    first, *_ = store.read_json("report/front.json")
    assert (first["measured_ms"], first["speedup"]) == (pytest.approx(3.6), pytest.approx(1 / 0.9))
    page = store.read_bytes("report/front.html").decode()
    assert Parsed(page).tables["Comparison with the dense network"][4:7] == [
        ["time of a batch of 1, measured", "4 ms", "3.6 ms", "90.0"],
        ["time of a batch of 64, measured", "4 ms", "3.6 ms", "90.0"],
        ["latency of the budget, measured", "4 ms", "3.6 ms", "90.0"],
    ]
    assert all(f'class="number">faster, batch of {size}</th>' in page for size in (1, 64))
    _, *lines = Parsed(page).tables["The networks of the front"]
    assert all(line.count("1.11x") == 2 for line in lines)
    assert "hardly faster than the dense network at batch 64" in page and "float32 on AMD EPYC, 2 threads" in page


def test_report_shows_the_int8_file_of_the_chosen_network_beside_float32(tmp_path: Path) -> None:
    store = make_run(tmp_path)
    chosen = read_run_results(store).chosen
    assert chosen is not None
    proof = export_proof(chosen.candidate)
    keep_proof(store, proof)
    assert read_proofs(store) == {chosen.candidate: proof}
    assert Parsed(html(read_run_results(store))).tables["Exported as a program"][1:] == [
        ["model.onnx", "float32", "0.2", "93.75", "2.0e-06", "0.5 (1.60x)", "8 (2.5x)"],
        ["model-int8.onnx", "int8", "0.06", "92.50", "8.0e-01", "0.25 (3.2x)", "5 (4.0x)"],
    ]


def test_proof_of_a_later_version_with_more_fields_is_read(tmp_path: Path) -> None:
    store, proof = make_run(tmp_path), export_proof("c1")
    content = proof.to_json() | {"later": 1}
    content["files"][0] |= {"later": 1}
    store.write_json("report/exports/c1.json", content)
    assert read_proofs(store) == {"c1": proof}


def test_image_of_the_front_is_a_png(run: Store) -> None:
    with Image.open(io.BytesIO(run.read_bytes("report/front.png"))) as picture:
        assert picture.width == 2070
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 50


def test_report_of_an_unfinished_run_says_so(tmp_path: Path) -> None:
    store = make_run(tmp_path, tested=False)
    page = html(read_run_results(store))
    assert "This run is not finished" in page and "40 of 40 candidates were searched, 4 of 4 fine-tuned." in page
    assert "recorded until 2027-01-15 08:00 UTC" in page and "the test split was not used" in page


@pytest.mark.parametrize(
    "described",
    [{}, {"state": "searching", "dense": {"val_accuracy": None, "flops": 2, "params": 1}, "spec": {}}],
)
def test_report_of_a_run_that_has_just_begun_is_written(tmp_path: Path, described: dict[str, Any]) -> None:
    Store(tmp_path).create(RunRecord.model_validate(described))
    write_report(Store(tmp_path))
    assert Store(tmp_path).read_json("report/front.json") == []
    page = Store(tmp_path).read_bytes("report/front.html").decode()
    assert "No network within the budget is known yet." in page
    Parsed(page)


def test_job_in_the_report_is_the_job_of_the_run(tmp_path: Path) -> None:
    spec = load_spec(Path("jobs/resnet56_cifar10.toml"))
    path = tmp_path / "job.toml"
    path.write_text(text := job_of(spec.model_dump(mode="json")))
    again = load_spec(path)
    apart = {"output": "", "statistics": ""}
    assert again.model_copy(update=apart) == spec.model_copy(update=apart)
    assert len(text.splitlines()) < 30


def test_report_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        report(str(tmp_path / "none"), console=Console(file=io.StringIO()))


@pytest.mark.nightly
def test_report_into_another_folder_needs_neither_torch_nor_ray(run: Store, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    program = (
        # One kind of file: test_figures.py draws them all.
        "import sys\nfrom raprune.cli import app\nfrom raprune.report import figures\nfigures.KINDS = ('svg',)\n"
        f"try:\n    app(['report', {run.uri!r}, '--output', {str(sent)!r}])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert not {'torch', 'ray', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert f"Wrote {sent}/front.html" in done.stdout
    written = {path.relative_to(sent).as_posix() for path in sent.rglob("*.*")}
    assert {"front.html", "front.png", "front.json", "figures/front.svg", "figures/cost-wide.svg"} <= written
    assert not run.exists("report/figures/front.svg")
    assert json.loads((sent / "front.json").read_text()) == run.read_json("report/front.json")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = require("chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield launched
        launched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_has_no_accessibility_violation(browser: Browser, run: Store, scheme: Literal["light", "dark"]) -> None:
    """The page is opened from the disk and scanned by axe: no finding, and no other request."""
    shown = browser.new_page(bypass_csp=True, color_scheme=scheme)
    asked: list[str] = []
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(f"file://{run.uri}/report/front.html")
    found = Axe().run(shown).response["violations"]
    assert [(finding["impact"], finding["id"]) for finding in found] == []
    assert asked == [f"file://{run.uri}/report/front.html"]
    shown.close()


def test_point_of_the_figure_is_reached_by_keys_and_links_to_its_row(browser: Browser, run: Store) -> None:
    shown = browser.new_page()
    said: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.goto(f"file://{run.uri}/report/front.html")
    while not (at := shown.evaluate("document.activeElement.getAttribute('href') || ''")):
        shown.keyboard.press("Tab")
    shown.keyboard.press("Enter")
    assert shown.url.endswith(at)
    assert shown.evaluate("document.querySelector('tr:target').cells[1].textContent") == at.removeprefix("#candidate-")
    assert said == []
    shown.close()


def test_report_prints_on_a_few_pages_of_a4(browser: Browser, run: Store) -> None:
    shown = browser.new_page()
    shown.goto(f"file://{run.uri}/report/front.html")
    content = shown.pdf(prefer_css_page_size=True)
    assert 3 <= len(re.findall(rb"/Type /Page\b", content)) <= 6
    found = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content)
    assert found is not None
    assert [float(found[1]), float(found[2])] == pytest.approx([595, 842], abs=1)
    shown.close()
