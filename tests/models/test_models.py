from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raprune.errors import ModelError, UsageError
from raprune.models import build_model, list_models
from raprune.models.cifar_resnet import BasicBlock, CifarResNet
from raprune.models.lenet import LeNet5
from raprune.spec.job import ModelSpec


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("digits-net", (1, 8, 8)),
        ("digits-net", (3, 9, 12)),
        ("lenet5", (1, 28, 28)),
        ("lenet5", (3, 32, 32)),
        ("cifar-resnet20", (3, 32, 32)),
        ("cifar-resnet20", (1, 28, 28)),
        ("cifar-vgg16-bn", (3, 32, 32)),
        ("shufflenet_v2_x0_5", (3, 32, 32)),
        ("googlenet", (3, 64, 64)),
        ("vit_b_32", (3, 64, 64)),
    ],
)
def test_a_network_gives_one_logit_for_each_class(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(ModelSpec(name=name), num_classes=7, image_shape=shape).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_cifar_resnets_have_the_papers_size(depth: int, count: int) -> None:
    # He et al. (2016), table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million.
    assert parameters(CifarResNet(depth)) == count


def test_lenet5_is_the_one_of_the_pruning_papers() -> None:
    assert parameters(LeNet5()) == 431_080


def test_the_vggs_have_their_convolutions() -> None:
    for depth, count in ((16, 14_724_042), (19, 20_035_018)):
        model = build_model(ModelSpec(name=f"cifar-vgg{depth}-bn"), num_classes=10, image_shape=(3, 32, 32))
        convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
        assert len(convolutions) == depth - 3
        assert parameters(model) == count


def test_basic_block_with_stride_pads_the_shortcut_with_zero_channels() -> None:
    block = BasicBlock(16, 32, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_the_list_has_the_own_networks_and_torchvisions() -> None:
    names = list_models()
    assert names[0] == "mnist-resnet"
    assert {"lenet5", "cifar-resnet56", "cifar-vgg19-bn", "resnet50", "maxvit_t"} <= set(names)
    assert len([name for name in names if not name.startswith("timm:")]) == 10 + 80 + 6 + 12, (
        "of torchvision 80 for classification, 6 for segmentation and 12 for detection"
    )


def test_arguments_reach_the_builder() -> None:
    model = build_model(ModelSpec(name="digits-net", arguments={"width": 4}), num_classes=10, image_shape=(1, 8, 8))
    assert model.state_dict()["conv1.weight"].shape[0] == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet5", "Did you mean resnet50"),
        ("cifar-resnet57", "Did you mean cifar-resnet56"),
        ("no-such-thing-at-all", "no such network"),
        ("some module:f", "package.module:function"),
        ("no_such_module:f", "ModuleNotFoundError"),
    ],
)
def test_build_model_unknown_name_is_refused(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_model(ModelSpec(name=name), num_classes=10, image_shape=(3, 32, 32))
    assert words in str(caught.value)


def test_timm_is_built_or_its_absence_explained() -> None:
    spec = ModelSpec(name="timm:resnet18")
    try:
        import timm  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match="timm is not installed"):
            build_model(spec, num_classes=10, image_shape=(3, 32, 32))
    else:
        model = build_model(spec, num_classes=10, image_shape=(1, 32, 32)).eval()
        assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_build_model_with_wrong_arguments_is_refused() -> None:
    with pytest.raises(ModelError, match="unexpected keyword argument 'depth'"):
        build_model(ModelSpec(name="digits-net", arguments={"depth": 4}), num_classes=10, image_shape=(1, 8, 8))
    with pytest.raises(ModelError, match="images of 8x8 pixels; LeNet-5 needs at least 16x16"):
        build_model(ModelSpec(name="lenet5"), num_classes=10, image_shape=(1, 8, 8))


def test_build_model_colour_network_for_grey_images_is_refused() -> None:
    with pytest.raises(ModelError, match="takes images of 3 channels; the data has 1"):
        build_model(ModelSpec(name="resnet18"), num_classes=10, image_shape=(1, 28, 28))


def test_build_model_user_function_gets_the_arguments_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_nets_module.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.Flatten(), nn.LazyLinear(num_classes))\n"
        "def shaped(image_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], 10))\n"
        "def fixed():\n"
        "    return nn.Flatten()\n"
        "def wrong(num_classes):\n"
        "    return 'a network'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def build(function: str, **arguments: int) -> torch.nn.Module:
        spec = ModelSpec(name=f"my_nets_module:{function}", arguments=dict(arguments))
        return build_model(spec, num_classes=5, image_shape=(1, 8, 8))

    assert build("tiny", width=6)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert build("shaped")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert build("fixed")(torch.zeros(2, 1, 8, 8)).shape == (2, 64)
    with pytest.raises(ModelError, match=r"returned str, not a torch\.nn\.Module"):
        build("wrong")
    with pytest.raises(UsageError, match=r"no function huge"):
        build("huge")
