"""Tests of small networks of `transformers`: traced, proved, cut and run at half of their channels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from raprune.channels.cut import cut
from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.trace import trace
from raprune.cost.flops import prunable_params_fraction
from raprune.records import Candidate
from tests.channels.networks import image
from tests.channels.proved import outputs
from tests.tools import require_module

pytestmark = pytest.mark.nightly

_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}


def vit(library: Any) -> nn.Module:
    return library.ViTForImageClassification(library.ViTConfig(**_WIDTHS, intermediate_size=64))


def swin(library: Any) -> nn.Module:
    config = library.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4
    )
    return library.SwinForImageClassification(config)


def convnext(library: Any) -> nn.Module:
    return library.ConvNextForImageClassification(library.ConvNextConfig(**_STAGES, image_size=32))


def segformer(library: Any) -> nn.Module:
    config = library.SegformerConfig(**_STAGES, num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16)
    return library.SegformerForSemanticSegmentation(config)


def detr(library: Any) -> nn.Module:
    backbone = library.ResNetConfig(**_STAGES, embedding_size=8, layer_type="basic", out_features=["stage4"])
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = library.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        num_queries=6,
        **layers,
        **heads,
    )
    return library.DetrForObjectDetection(config)


def clip(library: Any) -> nn.Module:
    config = library.CLIPVisionConfig(**_WIDTHS, intermediate_size=64, projection_dim=16)
    return library.CLIPVisionModelWithProjection(config)


def dinov2(library: Any) -> nn.Module:
    return library.Dinov2ForImageClassification(library.Dinov2Config(**_WIDTHS))


NETWORKS: list[tuple[Callable[[Any], nn.Module], int, float, int, set[str]]] = [
    (vit, 32, 0.99, 2, set()),
    (swin, 32, 0.99, 3, set()),
    (convnext, 32, 0.99, 0, set()),
    (segformer, 64, 0.99, 3, set()),
    # The encoder's stream meets sines and cosines of as many channels.
    (detr, 64, 0.95, 3, {"meets a constant of the shape of the channels"}),
    # The stream is an output.
    (clip, 32, 0.65, 2, set()),
    (dinov2, 32, 0.99, 2, set()),
]


def built(make: Callable[[Any], nn.Module]) -> nn.Module:
    """Return the network with random weights; tables that begin as zeros are random as well."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers imports whatever is there, such as torchao
        model = make(require_module("transformers")).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    return model


def reasons(graph: ChannelGraph) -> set[str]:
    told = {frozen.reason.partition(" (in ")[0] for frozen in graph.frozen}
    return told - {"the network's output"}


@pytest.mark.parametrize(("make", "pixels", "least", "heads", "stay"), NETWORKS)
def test_transformers_network_is_proved_and_cut(
    make: Callable[[Any], nn.Module], pixels: int, least: float, heads: int, stay: set[str]
) -> None:
    model, x = built(make), image((1, 3, pixels, pixels))
    proof = prove(model, trace(model, x), x)
    graph = proof.graph
    assert proof.frozen == {}
    assert reasons(graph) == stay
    assert prunable_params_fraction(graph) >= least
    assert sum(group.name.endswith(".heads") for group in graph.groups) == heads
    kept = {group.name: tuple(range(0, group.num_channels, 2)) for group in graph.groups}
    smaller = cut(model, graph, Candidate("half", kept))
    two = image((2, 3, pixels, pixels))
    with torch.no_grad():
        dense, half = model(two), smaller(two)
    assert {name: value.shape for name, value in half.items() if isinstance(value, torch.Tensor)} == {
        name: value.shape for name, value in dense.items() if isinstance(value, torch.Tensor)
    }
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert outputs(smaller, x).isfinite().all()
