"""Small networks, one for each structure that a trace must understand. Each network takes images `(B, 3, 8, 8)`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torchvision.ops import FrozenBatchNorm2d

from raprune.checks.contract.networks import (
    CLASSES,
    Attention,
    DenseBlock,
    FlattenLinear,
    Grouped,
    Net,
    Residual,
    Transformer,
    Transposed,
    WrittenAttention,
    conv,
)

__all__ = ["CLASSES", "NETWORKS", "Attention", "Net", "Residual", "Transformer", "build", "conv", "image"]


class ZeroPadShortcut(Net):
    """The parameter-free shortcut of the CIFAR ResNets: strided, and padded with zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__(width=12)
        self.conv1, self.conv2 = conv(8, 12, stride=2), conv(12, 12)

    def body(self, x: Tensor) -> Tensor:
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return functional.relu(shortcut + self.conv2(functional.relu(self.conv1(x))))


class ResidualBlock(nn.Module):
    """A residual block, after a batch norm; `project` puts a layer into its shortcut."""

    def __init__(self, width: int, inner: int, *, project: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(width, inner), conv(inner, width)
        self.bn = nn.BatchNorm2d(width)
        self.project = conv(width, width, 1) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.project(x) + self.bn(self.conv2(functional.relu(self.conv1(x)))))


class Stages(nn.Module):
    """Blocks of each kind. `code` is the forward pass of the body."""

    def __init__(self, code: Callable[[Stages, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.code = code or (lambda net, x: net.stage(x))
        self.stem = conv(3, 8)
        self.stage = nn.Sequential(ResidualBlock(8, 6, project=True), ResidualBlock(8, 5), ResidualBlock(8, 4))
        self.plain = conv(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.code(self, functional.relu(self.stem(x)))
        return self.head(functional.relu(self.plain(x)).mean((2, 3)))


class Depthwise(Net):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.bn, self.pointwise = conv(8, 8, groups=8), nn.BatchNorm2d(8), conv(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.pointwise(functional.relu6(self.bn(self.depthwise(x))))


class DepthwiseMultiplier(Net):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.pointwise = conv(8, 16, groups=8), conv(16, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.pointwise(functional.relu(self.depthwise(x)))


class SqueezeExcite(Net):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = conv(8, 4, 1), conv(4, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        gate = self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(gate)


class ChannelShuffle(Net):
    """A block as in ShuffleNet v2: half of the channels bypass the convolution, then the halves are shuffled."""

    def __init__(self) -> None:
        super().__init__(width=6)
        self.branch, self.last = conv(4, 4), conv(8, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, functional.relu(self.branch(right))], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.last(x)


class SharedModule(Net):
    """One convolution runs twice, so that it reads the channels that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.again = conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return functional.relu(self.again(functional.relu(self.again(x))))


class SharedParameter(Net):
    """Two convolutions that share one weight."""

    def __init__(self) -> None:
        super().__init__(width=6)
        self.left, self.right = conv(8, 6), conv(8, 6)
        self.right.weight = self.left.weight

    def body(self, x: Tensor) -> Tensor:
        return functional.relu(self.left(x)) * torch.sigmoid(self.right(functional.relu(x)))


class LayerScale(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)
        self.scale = nn.Parameter(torch.full((1, 8, 1, 1), 0.1))

    def body(self, x: Tensor) -> Tensor:
        return x + self.scale * self.conv(x)


class ChannelsLastNorm(Net):
    """Layer norm over the channels as in ConvNeXt: the channels are moved to the end and back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def body(self, x: Tensor) -> Tensor:
        inner = self.norm(x.permute(0, 2, 3, 1))
        inner = self.down(functional.gelu(self.up(inner)))
        return x + inner.permute(0, 3, 1, 2)


class GroupNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.GroupNorm(2, 8), conv(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.norm(x)))


class ModuleAttention(nn.Module):
    """`nn.MultiheadAttention`, whose heads and widths can be removed, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.norm1, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        inner = self.norm1(x)
        x = x + self.attention(inner, inner, inner, need_weights=False)[0]
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


class SharedKeys(Attention):
    """All heads read the same keys and values, as in MobileNetV5."""

    def __init__(self) -> None:
        super().__init__()
        del self.qkv
        self.q, self.k, self.v = (
            nn.Linear(Attention.CHANNELS, size)
            for size in (Attention.HEADS * Attention.WIDTH, Attention.WIDTH, Attention.WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.k(x).unsqueeze(1), self.v(x).unsqueeze(1)
        out: Tensor = self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class JoinedBias(Attention):
    """The biases of queries, keys and values are parameters of their own, as in BEiT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(Attention.CHANNELS, 3 * Attention.HEADS * Attention.WIDTH, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.randn(Attention.HEADS * Attention.WIDTH)) for _ in range(2))
        self.register_buffer("k_bias", torch.zeros(Attention.HEADS * Attention.WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.k_bias, Tensor)
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = functional.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Mixer(nn.Module):
    """Layers over the channels and layers over the tokens, in turn, so that both axes carry channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.norm1, self.token_up, self.token_down = nn.LayerNorm(8), nn.Linear(4, 6), nn.Linear(6, 4)
        self.norm2, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.token_down(functional.gelu(self.token_up(self.norm1(x).transpose(1, 2))))
        x = x + tokens.transpose(1, 2)
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


class PixelShuffle(Net):
    def __init__(self) -> None:
        super().__init__(width=3)
        self.expand, self.last = conv(8, 4 * 4), conv(4, 3)

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(functional.pixel_shuffle(self.expand(x), 2)))


class ParametricReLU(Net):
    def __init__(self) -> None:
        super().__init__()
        self.prelu, self.conv, self.one = nn.PReLU(8), conv(8, 8), nn.PReLU()

    def body(self, x: Tensor) -> Tensor:
        return self.one(self.conv(self.prelu(x)))


class InPlace(Net):
    """Operations in place: relu_, +=, and parts written into a tensor of zeros."""

    def __init__(self) -> None:
        super().__init__(width=12)
        self.conv1, self.conv2 = conv(8, 8), conv(8, 4)

    def body(self, x: Tensor) -> Tensor:
        x += self.conv1(functional.relu_(x.clone()))
        right = self.conv2(x)
        out = x.new_zeros(x.shape[0], x.shape[1] + right.shape[1], *x.shape[2:])
        out[:, : x.shape[1]] = x
        out[:, x.shape[1] :] = right
        return out


class ChannelBuffer(Net):
    """A buffer with one value per channel, which can be sliced like a parameter."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.linspace(0.5, 1.5, 8).view(1, 8, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        return x * self.offset


class ChannelConstant(Net):
    """A constant with one value per channel that is no buffer, and so cannot be sliced."""

    def body(self, x: Tensor) -> Tensor:
        return x * torch.linspace(0.5, 1.5, 8).to(x).view(1, 8, 1, 1)


class StandardisedConv(nn.Conv2d):
    """A convolution whose weight is standardised before each use."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return functional.conv2d(x, weight, self.bias, padding=1)


class StandardisedWeight(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.standardised, self.last = StandardisedConv(8, 8, 3), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.standardised(x)))


class NormedWeight(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.normed, self.last = weight_norm(conv(8, 8)), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.normed(x)))


class SpectralWeight(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.normed, self.last = spectral_norm(conv(8, 8)), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.normed(x)))


class NormalisedFilters(nn.Conv2d):
    """A convolution whose weight goes through a batch norm, filter by filter, with a trained gain."""

    def __init__(self) -> None:
        super().__init__(8, 8, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(8, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(flat, None, None, weight=(self.gain * 0.5).view(-1), training=True, momentum=0.0)
        return functional.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


class FilterNorm(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.normed, self.last = NormalisedFilters(), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.normed(x)))


class FrozenNorm(Net):
    """A batch norm of fixed statistics, written with buffers that are combined before use."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = FrozenBatchNorm2d(8), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.norm(x)))


class PositionTables(Net):
    """An embedding of positions and a table of positions that is resized, which are added to the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.position, self.last = nn.Embedding(8, 8), nn.Parameter(torch.randn(1, 8, 3, 3)), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        rows = self.table(torch.arange(8, device=x.device)).t()[None, :, :, None]
        resized = functional.interpolate(self.position, size=x.shape[2:], mode="bicubic")
        return self.last(x + resized + rows.mean(2, keepdim=True))


class SelectiveKernels(Net):
    """Two branches that are stacked, weighted by a softmax over the stack, and added."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.select = conv(8, 8), conv(8, 8, 1), conv(8, 16, 1)

    def body(self, x: Tensor) -> Tensor:
        stacked = torch.stack([self.one(x), self.other(x)], 1)
        weights = self.select(stacked.sum(1).mean((2, 3), keepdim=True)).view(len(x), 2, -1, 1, 1).softmax(1)
        return (stacked * weights).sum(1)


class ReadStatistic(Net):
    """A table of which only the mean is used: no layer writes its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 8))

    def body(self, x: Tensor) -> Tensor:
        return x * self.table.mean(0)[None, :, None, None]


class Fourier(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.last = conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(torch.fft.rfft2(x).abs())


class SortedChannels(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.last = conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x.sort(dim=1).values)


class Strided(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.last = conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        return self.last(x.as_strided((x.shape[0], 8, 4, 4), (x.stride(0), 64, 16, 2)))


class Padded(Net):
    """Padding with zeros around the image, and with two zero channels behind the others."""

    def __init__(self) -> None:
        super().__init__(width=6)
        self.last = nn.Conv2d(10, 6, 3)

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.pad(x, (1, 1, 1, 1, 0, 2)))


class Windows(Net):
    """Shifted windows as in Swin: the image is rolled, cut into windows, and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def body(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rolled = torch.roll(x.permute(0, 2, 3, 1), (-2, -2), (1, 2))
        windows = rolled.view(batch, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        windows = self.down(functional.gelu(self.up(self.norm(windows.reshape(-1, 16, channels)))))
        whole = windows.view(batch, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        whole = torch.roll(whole.reshape(batch, height, width, channels), (2, 2), (1, 2))
        return x + whole.permute(0, 3, 1, 2)


class PatchMerging(Net):
    """Patch merging as in Swin: four neighbouring pixels are concatenated."""

    def __init__(self) -> None:
        super().__init__(width=6)
        self.norm, self.reduce = nn.LayerNorm(32), nn.Linear(32, 6)

    def body(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(parts, -1))).permute(0, 3, 1, 2)


class SoftmaxChannels(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.last = conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x.softmax(dim=1))


class ManyOutputs(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.side = conv(8, 8), conv(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:  # type: ignore[override]  # a dictionary
        x = functional.relu(self.stem(x))
        y = functional.relu(self.conv(x))
        return {"logits": self.head(y.mean((2, 3))), "maps": (self.side(x),)}


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.forgotten = conv(8, 8)


class UNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv(8, 10), conv(18, 8)

    def body(self, x: Tensor) -> Tensor:
        low = functional.relu(self.down(functional.avg_pool2d(x, 2)))
        high = functional.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
        return self.up(torch.cat([x, high], 1))


class SpatialGate(Net):
    """A gate: one channel scales all other channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = conv(8, 1)

    def body(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


class Unfolded(Net):
    """im2col by hand: the 9 neighbours of each channel become separate channels."""

    def __init__(self) -> None:
        super().__init__(width=6)
        self.last = conv(8 * 9, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        patches = functional.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        patches = patches.permute(0, 1, 4, 5, 2, 3).reshape(batch, channels * 9, height, width)
        return self.last(patches)


class Im2Col(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.last = conv(8 * 9, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        return self.last(functional.unfold(x, 3, padding=1).view(batch, 72, height, width))


class UnequalSplit(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.last = conv(5, 6)

    def body(self, x: Tensor) -> Tensor:
        left, right = x.split([3, 5], dim=1)
        return self.last(right * left.mean(1, keepdim=True))


class GatedLinear(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.expand, self.last = conv(8, 12), conv(6, 6)

    def body(self, x: Tensor) -> Tensor:
        value, gate = self.expand(x).chunk(2, dim=1)
        return self.last(value * torch.sigmoid(gate))


class Maxout(Net):
    """Maxout units: the maximum of two candidates per unit."""

    def __init__(self) -> None:
        super().__init__(width=6)
        self.expand, self.last = conv(8, 12), conv(6, 6)

    def body(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        return self.last(x.view(len(x), 6, 2, *x.shape[2:]).amax(2))


class FixedSlice(Net):
    """A slice that takes the first four channels by number."""

    def __init__(self) -> None:
        super().__init__(width=6)
        self.partial, self.last = conv(4, 4), conv(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.partial(x[:, :4]), x[:, 4:]], 1))


class FixedView(Net):
    """A view whose number of channels is fixed in Python: the trace cannot know that a cut network will not run."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = conv(8, 8)
        self.mixer = FixedMixer()

    def body(self, x: Tensor) -> Tensor:
        return self.mixer(self.squeeze(functional.relu(x)))


class FixedMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1).reshape(-1, 8) * self.weight).view(len(x), 8, 8, 8).permute(0, 3, 1, 2)


class ScaledBySize(Net):
    """A network that runs when it is cut, with other outputs: its scale follows the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.conv(x * x.shape[1] ** 0.5)


class InstanceNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.InstanceNorm2d(8, affine=True), conv(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.norm(x)))


class OneOutput(Net):
    """A linear layer with one output, and one with one input."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.score, self.spread = nn.Linear(8, 6), nn.Linear(6, 1), nn.Linear(1, 8)

    def body(self, x: Tensor) -> Tensor:
        score = self.score(functional.relu(self.hidden(x.mean((2, 3)))))
        return self.spread(score)[..., None, None]


class Einsum(Net):
    """A linear layer written as einsum with a bare parameter."""

    def __init__(self) -> None:
        super().__init__(width=6)
        self.mix = nn.Parameter(torch.randn(6, 8))

    def body(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,oc->bohw", x, self.mix)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        Residual, ZeroPadShortcut, DenseBlock, Grouped, Depthwise, DepthwiseMultiplier, SqueezeExcite, FlattenLinear,
        ChannelShuffle, SharedModule, SharedParameter, LayerScale, ChannelsLastNorm, GroupNorm, ModuleAttention,
        Transformer,
        WrittenAttention, Mixer, PixelShuffle, Transposed, ParametricReLU, InPlace, ChannelBuffer, ChannelConstant,
        StandardisedWeight, NormedWeight, SpectralWeight,
        FilterNorm, FrozenNorm, PositionTables, SelectiveKernels, ReadStatistic,
        Fourier, SortedChannels, Strided, Padded, Windows, PatchMerging,
        SoftmaxChannels, ManyOutputs, Unused, UNet, SpatialGate, Unfolded, Im2Col, UnequalSplit, GatedLinear, Maxout,
        FixedSlice, FixedView, ScaledBySize, InstanceNorm, OneOutput, Einsum,
    )
}  # fmt: skip
"""Name -> the network of that structure."""


def build(name: str) -> nn.Module:
    """Build a network of `NETWORKS` in evaluation mode, with seeded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[name]().eval()


def image(shape: tuple[int, ...] = (1, 3, 8, 8)) -> Tensor:
    """Return one seeded input."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
