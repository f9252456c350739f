"""How graphs, rows, tables and runs show themselves: each fits a screen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import raprune
from raprune.errors import BudgetError, UsageError
from raprune.records import Candidate
from tests.orchestration.notebook.objects import Stripes, trained_net


def lines(text: str) -> list[str]:
    found = text.splitlines()
    assert len(found) <= 40 and all(len(line) <= 120 for line in found)
    return found


def test_graph_of_a_deep_network_fits_a_screen() -> None:
    parts = [part for _ in range(60) for part in (nn.Conv2d(8, 8, 1), nn.ReLU())]
    graph = raprune.trace(nn.Sequential(nn.Conv2d(1, 8, 1), *parts, nn.Flatten()), torch.zeros(1, 1, 2, 2))
    shown = lines(repr(graph))
    assert shown[0] == "ChannelGraph: 60 groups with 480 channels, for an input of 1x2x2"
    assert "... and 36 more groups" in shown and "8 channels stay whole, in 119" in shown
    html = graph._repr_html_()
    assert html.count("<tr>") == 25 and "36 more groups" in html
    assert len(repr(graph.groups[0])) < 500, "no arrays of indices"
    kept = {group.name: tuple(range(4)) for group in graph.groups}
    assert len(lines(repr(Candidate("by hand", kept)))) == 1


def test_budget_of_python_is_refused_in_our_words_and_shows_as_budget() -> None:
    assert repr(raprune.Budget(flops=0.3)).startswith("Budget(flops=0.3")
    assert raprune.Budget(latency="3ms").latency_ms == 3.0
    with pytest.raises(UsageError, match=r"budget: flops 30: must be a number above 0 and at most 1. For 30 %: 0.3"):
        raprune.Budget(flops=30)
    with pytest.raises(UsageError, match="Did you mean flops"):
        raprune.Budget(flop=0.3)


def test_prune_makes_one_network_without_ray_and_exports_it(tmp_path: Path) -> None:
    data, net = Stripes(200, seed=0), trained_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    pruned = raprune.prune(net, data, budget={"flops": 0.5}, method="l1")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert pruned.trial.metrics is not None and pruned.trial.metrics.flops_fraction <= 0.5
    assert "l1, uniform" in repr(pruned) and len(lines(repr(pruned))) == 1 and "<p>" in pruned._repr_html_()
    pruned.export(tmp_path / "out")
    images = torch.stack([data[number][0] for number in range(8)])
    again = raprune.load(net, str(tmp_path / "out"))
    assert torch.equal(again(images), pruned.model.cpu()(images))
    with pytest.raises(BudgetError, match=r"out of reach|smallest"):
        raprune.prune(net, data, budget={"flops": 0.0001})
    with pytest.raises(UsageError, match="epochs: only with fine-tuning"):
        raprune.prune(net, data, epochs=1.0)
