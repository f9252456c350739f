"""Models: networks by name (small ones of the papers, torchvision's, timm's, the user's own) and their weights.

Imports `data` and the rooms above it. Open `weights.py` for files of weights, `mnist_resnet.py` for a network.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from raprune.data.arrays import ImageShape
from raprune.errors import ModelError, UsageError
from raprune.models.cifar_resnet import CifarResNet
from raprune.models.cifar_vgg import CifarVGG
from raprune.models.digits import DigitsNet
from raprune.models.given import given_model
from raprune.models.lenet import LeNet5
from raprune.models.mnist_resnet import MnistResNet
from raprune.models.weights import load_weights
from raprune.plugins import TIMM, check_name_form, is_user_function, load_function
from raprune.spec.job import ModelSpec
from raprune.spec.names import detection_models, list_models, segmentation_models, torchvision_models

__all__ = ["build_model", "image_shape_of", "list_models", "load_weights"]


def _resnet(depth: int) -> Callable[..., nn.Module]:
    def build(*, num_classes: int, image_shape: ImageShape) -> nn.Module:
        return CifarResNet(depth, num_classes=num_classes, in_channels=image_shape[0])

    return build


def _vgg(depth: int) -> Callable[..., nn.Module]:
    def build(*, num_classes: int, image_shape: ImageShape) -> nn.Module:
        return CifarVGG(depth, num_classes=num_classes, in_channels=image_shape[0])

    return build


def _digits_net(*, num_classes: int, image_shape: ImageShape, width: int = 16) -> nn.Module:
    return DigitsNet(num_classes=num_classes, in_channels=image_shape[0], width=width)


def _mnist_resnet(*, num_classes: int, image_shape: ImageShape) -> nn.Module:
    return MnistResNet(num_classes=num_classes, in_channels=image_shape[0])


OWN: dict[str, Callable[..., nn.Module]] = {
    "mnist-resnet": _mnist_resnet,
    "digits-net": _digits_net,
    "lenet5": LeNet5,
    "cifar-resnet20": _resnet(20),
    "cifar-resnet32": _resnet(32),
    "cifar-resnet44": _resnet(44),
    "cifar-resnet56": _resnet(56),
    "cifar-resnet110": _resnet(110),
    "cifar-vgg16-bn": _vgg(16),
    "cifar-vgg19-bn": _vgg(19),
}
"""Builder of each network by name. The keys are literals, because `spec/names.py` reads them from the source."""


OWN_IMAGES: dict[str, tuple[int, int]] = {
    "mnist-resnet": (1, 28),
    "digits-net": (1, 8),
    "lenet5": (1, 28),
    "cifar-": (3, 32),
}
"""Channels and size of the images that the networks of OWN are made for, by the beginning of the networks' names."""

STANDARD_SIZE = 224
"""Usual height and width of an image of ImageNet in training."""


def image_shape_of(name: str) -> ImageShape | None:
    """Return the shape `(channels, height, width)` of the images that a network is made for.

    For a network of torchvision this is the image size of its weights, the smallest size if there are several weights.
    For a user's function the shape is not known, and the result is None.
    """
    for beginning, (channels, size) in OWN_IMAGES.items():
        if name.startswith(beginning) and name in OWN:
            return channels, size, size
    if name.startswith("timm:") and importlib.util.find_spec("timm"):
        import timm

        config = timm.get_pretrained_cfg(name.removeprefix("timm:"))
        channels, height, width = config.input_size if config else (3, STANDARD_SIZE, STANDARD_SIZE)
        return channels, height, width
    if name in torchvision_models():
        from torchvision import models

        sizes = [weights.transforms.keywords["crop_size"] for weights in models.get_model_weights(name)]
        size = min(sizes, default=STANDARD_SIZE)
        return 3, size, size
    return None


def build_model(spec: ModelSpec, *, num_classes: int, image_shape: ImageShape, takes_images: bool = True) -> nn.Module:
    """Build the network of `spec` with `num_classes` outputs for images `(channels, height, width)`, in training mode.

    The weights are random, from torch's global generator; nothing is downloaded. `takes_images` is False for a network
    with several inputs, whose channels are not those of the images.

    Raises:
        UsageError: if the name is unknown.
        ModelError: if the builder fails, or the network takes images with another number of channels.
    """
    given = given_model(spec)
    if given is not None:
        return given.build()
    builder, arguments = _resolve(spec.name, num_classes, image_shape)
    try:
        model = builder(**{**arguments, **spec.arguments})
    except Exception as error:
        raise ModelError(
            f"model.name {spec.name!r}: building it with {_call(arguments, spec)} raised "
            f"{type(error).__name__}: {error}",
            hint="Check model.arguments, and whether the network takes images of this size.",
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model.name {spec.name!r} returned {type(model).__name__}, not a torch.nn.Module.",
            hint="The function must build and return the network.",
        )
    if takes_images:
        _check_channels(model, spec.name, image_shape)
    return model


def _resolve(name: str, num_classes: int, image_shape: ImageShape) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    if name in OWN:
        return OWN[name], {"num_classes": num_classes, "image_shape": image_shape}
    if name.startswith(TIMM):
        return _timm(name, num_classes, image_shape)
    check_name_form(name, field="model.name")
    if is_user_function(name):
        function = load_function(name, field="model.name")
        return function, _accepted(function, {"num_classes": num_classes, "image_shape": image_shape})
    if name in (*torchvision_models(), *segmentation_models(), *detection_models()):
        return _torchvision(name, num_classes, image_shape)
    close = difflib.get_close_matches(name, list_models(), n=3)
    raise UsageError(
        f"model.name {name!r}: no such network." + (f" Did you mean {' or '.join(close)}?" if close else ""),
        hint="`raprune models` lists the networks; name your own as package.module:function.",
    )


def _torchvision(
    name: str, num_classes: int, image_shape: ImageShape
) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    # Imported here, as timm below: importing torchvision takes a second that our own networks do not need.
    from torchvision import models

    arguments: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    if name in (*segmentation_models(), *detection_models()):
        arguments["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        # The auxiliary heads run only in training. Initialising these two networks takes a minute, and is usually
        # overwritten by loaded weights.
        arguments |= {"aux_logits": False, "init_weights": False}
    if name.startswith("vit_"):
        arguments["image_size"] = image_shape[1]
    if name == "maxvit_t":
        arguments["input_size"] = image_shape[1:]
    return models.get_model_builder(name), arguments


def _timm(name: str, num_classes: int, image_shape: ImageShape) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    if not importlib.util.find_spec("timm"):
        raise UsageError(f"model.name {name!r}: timm is not installed.", hint="pip install 'raprune[timm]'")
    import timm

    plain = name.removeprefix(TIMM)
    if not timm.is_model(plain):
        close = difflib.get_close_matches(plain, timm.list_models(), n=3)
        raise UsageError(
            f"model.name {name!r}: timm has no such network."
            + (f" Did you mean {' or '.join(f'timm:{match}' for match in close)}?" if close else ""),
            hint="`raprune models` lists the networks.",
        )
    arguments = {"model_name": plain, "pretrained": False, "num_classes": num_classes, "in_chans": image_shape[0]}
    return timm.create_model, arguments


def _accepted(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Return the `offered` arguments that the user's function names; only `num_classes` if it takes any keyword."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return {"num_classes": offered["num_classes"]}
    names = {parameter.name for parameter in parameters}
    return {key: value for key, value in offered.items() if key in names}


def _check_channels(model: nn.Module, name: str, image_shape: ImageShape) -> None:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels != image_shape[0]:
        raise ModelError(
            f"model.name {name!r} takes images of {first.in_channels} channels; the data has {image_shape[0]}.",
            hint="Use a network for such images (cifar-resnet20, digits-net, lenet5 take any channels), or convert the "
            "images.",
        )


def _call(arguments: dict[str, Any], spec: ModelSpec) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in {**arguments, **spec.arguments}.items())
