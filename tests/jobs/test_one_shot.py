"""The benchmark of one-shot pruning: attention of timm in the other libraries, and how far ahead a method is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kept_rows import KeptRows, Origin

from tests.tools import require_module

HERE = Origin(commit="aaaaaaa", date="2026-11-29", machine="2 cores")


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
@pytest.mark.parametrize("part", ["heads", "widths of heads", "attention whole"])
def test_torch_pruning_prunes_a_part_of_attention_and_keeps_its_scale(part: str) -> None:
    timm, peers, terms = (require_module(name) for name in ("timm", "one_shot_peers", "one_shot_terms"))
    torch.manual_seed(0)
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 3}
    model = timm.create_model("vit_tiny_patch16_224", **small).eval()
    image = torch.randn(1, 3, 16, 16)
    ground = SimpleNamespace(
        contest=terms.CONTESTS["vit"],
        workload=SimpleNamespace(model=model, device="cpu", example_input=lambda: image),
        calibration=None,
        stream_layers={
            "patch_embed.proj",
            *(f"blocks.{n}.{last}" for n in (0, 1) for last in ("attn.proj", "mlp.fc2")),
        },
        output_layers={"head"},
    )
    side = peers.TorchPruning(ground)
    assert ("local", terms.WHOLE, part) in side.settings
    pruned = side.pruned("Magnitude L2", 0.5, "local", terms.WHOLE, part)
    sizes = {terms.HEADS: (2, 8), terms.WIDTHS: (4, 4), terms.NEITHER: (4, 8)}[part]
    assert [(block.attn.num_heads, block.attn.head_dim) for block in pruned.blocks] == [sizes] * 2
    assert [block.attn.scale for block in pruned.blocks] == [8**-0.5] * 2
    assert pruned(image).shape == (1, 3)
    assert terms.flops(pruned, image) < 0.75 * terms.flops(terms.written_out(model), image)


def test_lead_is_over_the_best_of_the_others(tmp_path: Path) -> None:
    one_shot, terms, raprune = (require_module(f"one_shot{name}") for name in ("", "_terms", "_raprune"))
    kept, contest = KeptRows(tmp_path / "rows.jsonl", one_shot.Result, one_shot.key_of), terms.CONTESTS["vit"]
    row = one_shot.Result("vit", "raprune", "reconstruction", 0.5, "uniform", 100, test=0.7)
    kept.add(row, HERE)
    assert one_shot.lead(contest, 0.5, kept) is None
    kept.add(replace(row, name=raprune.UNREPAIRED, test=0.3), HERE)
    kept.add(replace(row, side="torch-pruning", name="Taylor", test=0.45), HERE)
    kept.add(replace(row, side="torch-kirigami", name="WeightTaylor", test=None), HERE)
    kept.add(replace(row, side="torch-pruning", name="LAMP", budget=0.7, test=0.69), HERE)
    assert one_shot.lead(contest, 0.5, kept) == pytest.approx(0.25)
