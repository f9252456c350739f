"""Small networks for the checks, one for each structure that a method must handle.

Each network takes images `(B, 3, 8, 8)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from raprune.channels.graph import ChannelGraph
from raprune.channels.proof import prove
from raprune.channels.trace import trace

CLASSES = 5


def conv(inside: int, outside: int, size: int = 3, **settings: int | bool) -> nn.Conv2d:
    """Build a convolution that keeps the image's size."""
    return nn.Conv2d(inside, outside, size, padding=size // 2, **settings)  # type: ignore[arg-type]  # ints and bools


class Net(nn.Module):
    """A stem of 8 channels, the body of the subclass, global pooling and a linear head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.head = nn.Linear(width, CLASSES)

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return logits


class Residual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stem_bn = nn.BatchNorm2d(8)
        self.conv1, self.bn1 = conv(8, 6, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = conv(6, 8, bias=False), nn.BatchNorm2d(8)

    def body(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem_bn(x))
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(inner)))


class DenseBlock(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.bn, self.grow = nn.BatchNorm2d(8), conv(8, 4)
        self.bn2, self.grow2 = nn.BatchNorm2d(12), conv(12, 4)
        self.transition = conv(16, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.grow(functional.relu(self.bn(x)))], 1)
        x = torch.cat([x, self.grow2(functional.relu(self.bn2(x)))], 1)
        return self.transition(x)


class Grouped(Net):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.grouped, self.expand = conv(8, 6, 1), conv(6, 12, groups=3), conv(12, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.reduce(x))
        return x + self.expand(functional.relu(self.grouped(inner)))


class FlattenLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = conv(3, 6), nn.MaxPool2d(4)
        self.hidden, self.head = nn.Linear(6 * 2 * 2, 7), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.pool(functional.relu(self.conv(x))), 1)
        logits: Tensor = self.head(functional.relu(self.hidden(x)))
        return logits


class WrittenAttention(nn.Module):
    """Attention written by hand with a fixed head size, a class token and a position embedding.

    The channels of the residual stream can be removed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 3 * 2 * 4), nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q @ k.transpose(-2, -1)) * 4**-0.5).softmax(dim=-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, 8))
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        x = x + self.attend(self.norm(x))
        logits: Tensor = self.head(x[:, 0])
        return logits


class Attention(nn.Module):
    """Attention whose code reads its sizes from attributes."""

    HEADS, WIDTH, CHANNELS = 3, 4, 10

    def __init__(self, *, fused: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.scale = 3, 4, 12, 4**-0.5
        self.fused = fused
        self.qkv, self.proj = nn.Linear(10, 36), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(self.mixed(q, k, v).transpose(1, 2).reshape(batch, tokens, self.attn_dim))
        return out

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused:
            return functional.scaled_dot_product_attention(q, k, v)
        return (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v


class Transformer(nn.Module):
    """One block in front of a classifier."""

    def __init__(self, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.embed, self.norm, self.attention = nn.Conv2d(3, 10, 4, 4), nn.LayerNorm(10), attention or Attention()
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.attention(self.norm(x))
        out: Tensor = self.head(x.mean(1))
        return out


class Transposed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.bn = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.last = conv(6, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.bn(self.up(x))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (Residual, Grouped, DenseBlock, FlattenLinear, WrittenAttention, Transformer, Transposed)
}
"""Networks by the names of their structures."""


def build(name: str) -> nn.Module:
    """Build a network of `NETWORKS` in evaluation mode, with seeded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[name]().eval()


@cache
def graph_of(name: str) -> ChannelGraph:
    """Return the proved graph of a network of `NETWORKS`."""
    model, image = build(name), torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return prove(model, trace(model, image), image).graph
