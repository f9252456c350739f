"""docs/python.md: each of its blocks runs, in one session and in their order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from raprune.store.folder import Store
from tests.orchestration.in_process import in_process

DOCUMENT = Path(__file__).parents[3] / "docs/python.md"


@pytest.mark.nightly
def test_every_block_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {"__name__": "__main__"}
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    with in_process():
        for block in blocks:
            exec(block, session)
    run, small = session["run"], session["small"]
    assert run.finished and Store(run.folder).record().job.model.name == "object:Tiny"
    assert (tmp_path / "front.svg").read_bytes().startswith(b"<?xml") and (tmp_path / "pruned/recipe.json").exists()
    image = session["test"][0][0][None]
    assert torch.equal(small(image), session["same"](image)), "an exported network is the loaded one"
    assert list(session["frame"]["candidate"]) == [row.candidate for row in run.front]
    narrow, dense = (sum(p.numel() for p in session[name].parameters()) for name in ("narrow", "dense"))
    assert narrow < dense
