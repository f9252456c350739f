"""Whatever is wrong with a request: one screen, the right code, nothing written, no Ray started."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from raprune.cli import app

DIGITS = Path(__file__).parents[1] / "raprune" / "data" / "digits.parquet"


def make_files(folder: Path) -> None:
    """Files that are wrong, each in its own way."""
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.safetensors").write_text("not weights")
    torch.save({"nothing": torch.zeros(3)}, folder / "other.pt")
    (folder / "code.pt").write_bytes(pickle.dumps(os.getcwd, protocol=2))
    (folder / "cut.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"picture": [b"x"], "label": [0]}), folder / "columns.parquet")
    pq.write_table(pa.table({"image": [b"x"] * 8, "label": [0, 1] * 4}), folder / "undecodable.parquet")
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}), folder / "no.parquet"
    )
    (folder / "job.toml").write_text('colour = "red"')
    (folder / "broken.toml").write_text("budget.flops = [")
    (folder / "file").write_text("")
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text("{}")


CASES = [
    # what, code, what the screen says
    ("--model resnet18000 --data digits", 2, "resnet18000"),
    ("--model nowhere.to.be:found --data digits", 2, "nowhere.to.be"),
    ("--model resnet18 --data digits", 1, "resnet18"),
    ("--weights missing.safetensors --data digits", 2, "missing.safetensors"),
    ("--weights empty.safetensors --data digits", 1, "empty.safetensors"),
    ("--weights text.safetensors --data digits", 1, "text.safetensors"),
    ("--weights other.pt --data digits", 1, "other.pt"),
    ("--weights code.pt --data digits", 1, "refused: the file holds pickled objects"),
    ("--data imagenot", 2, "imagenot"),
    ("--data cifar10", 2, "data.train"),
    ("--data cifar10 --train nowhere", 2, "nowhere: the folder holds no cifar10"),
    ("--data parquet", 2, "data.train"),
    ("--data parquet --train missing.parquet", 2, "missing.parquet"),
    ("--data parquet --train cut.parquet", 1, "cut.parquet"),
    ("--data parquet --train columns.parquet", 1, "image"),
    ("--data parquet --train undecodable.parquet", 1, "undecodable.parquet"),
    ("--data parquet --train no.parquet", 1, "no.parquet"),
    ("--methods l2,l3", 2, "l3"),
    ("--set settings.l2.power=2", 2, "settings.l2.power: the method has no such hyper-parameter"),
    ("--set settings.binary_search.norm=l9", 2, "settings.binary_search.norm 'l9': not one of 'l1', 'l2'"),
    ("--set settings.binary_search.sweeps=many", 2, "settings.binary_search.sweeps 'many': not of the kind"),
    ("--set settings.l3.power=2", 2, "l3"),
    ('--set allocations=["by-hand"]', 2, "allocation 'by-hand': no such allocation"),
    ("--budget-flops 0.00001 --data digits", 2, "out of reach"),
    ("--budget-flops 0.1 --min-channels 30 --data digits", 2, "lowest"),
    ("--budget-flops 2", 2, "budget.flops"),
    ("--exclude nothing.* --data digits", 2, "nothing.*"),
    ("--output run", 1, "holds a run already"),
    ("--output file/run", 1, "file"),
    ("job.toml", 2, "colour: no such field"),
    ("broken.toml", 2, "broken.toml"),
]


@pytest.mark.parametrize(("arguments", "code", "told"), CASES, ids=[case[0] for case in CASES])
def test_bad_input(arguments: str, code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    done = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["search", *arguments.split()])
    assert done.exit_code == code
    assert told in " ".join(done.stderr.split())
    assert done.stderr.startswith("Error: ") and "bug" not in done.stderr and "Traceback" not in done.output
    assert len(done.stderr.splitlines()) <= 20
    checked = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["check", *for_check(arguments)])
    assert (checked.exit_code, checked.stderr) == (code, done.stderr), "check refuses it with the same words"
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def for_check(arguments: str) -> list[str]:
    """The arguments of `search` as `check` takes them: a flag that it has not is set as its field."""
    words = arguments.split()
    if words[0] == "--methods":
        return ["--set", f"methods={json.dumps(words[1].split(','))}", *words[2:]]
    if words[0] == "--output":
        return ["--set", f"output={words[1]}", *words[2:]]
    if "--min-channels" in words:
        at = words.index("--min-channels")
        return [*words[:at], "--set", f"search.min_channels={words[at + 1]}", *words[at + 2 :]]
    return words


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--method l3", "method 'l3': no such method. Valid: "),
        ("--allocation by-hand", "allocation 'by-hand': no such allocation. Valid: global_rank, isomorphic, "),
        ("--method l2 --set settings.l2.power=2", "settings.l2.power: the method has no such hyper-parameter"),
        ("--output file/net", "file is a file"),
    ],
)
def test_prune_refuses_before_it_trains(
    arguments: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("raprune.pruning.export.train_dense", lambda *_, **__: pytest.fail("it trains first"))
    job = "--model digits-net --data digits"
    done = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["prune", *job.split(), *arguments.split()])
    assert done.exit_code in (1, 2)
    assert told in " ".join(done.stderr.split()) and "bug" not in done.stderr
