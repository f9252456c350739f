"""The normalisation that the public weights of a network were trained with."""

from __future__ import annotations

import importlib.util

from raprune.data.normalisation import Normalisation, common
from raprune.spec.job import ModelSpec


def usual_normalisation(spec: ModelSpec) -> Normalisation | None:
    """Return the normalisation of the public weights for the network of `spec`, if it is torchvision's or timm's.

    Return None for other networks, and if `spec` names no weights: the network is then trained here, with any
    normalisation.
    """
    if spec.weights is None:
        return None
    found = _of_timm(spec.name) if spec.name.startswith("timm:") else _of_torchvision(spec)
    if found is None:
        return None
    mean, std = found
    known = next((n.origin for n in common(len(mean)) if (n.mean, n.std) == found), "")
    return Normalisation(mean=mean, std=std, origin=f"{known}, " * bool(known) + f"the default for {spec.name}")


def _of_timm(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if not importlib.util.find_spec("timm"):
        return None
    from timm.models import get_pretrained_cfg, is_model

    plain = name.removeprefix("timm:")
    config = get_pretrained_cfg(plain) if is_model(plain) else None
    return None if config is None else (tuple(config.mean), tuple(config.std))


def _of_torchvision(spec: ModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    from torchvision import models

    if spec.name not in models.list_models(module=models):
        return None
    if spec.name in ("googlenet", "inception_v3") and not spec.arguments.get("transform_input"):
        # The weights expect pixels in [-1, 1]. torchvision normalises by ImageNet's figures, and its pretrained
        # networks convert the input (transform_input); a network built without it needs pixels in [-1, 1].
        return (0.5,) * 3, (0.5,) * 3
    transforms = models.get_model_weights(spec.name).DEFAULT.transforms()
    return tuple(transforms.mean), tuple(transforms.std)
