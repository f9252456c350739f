"""Steps of random networks: functions that take and give images `(B, C, H, W)`, and the makers of their modules.

A step is one way in which networks of our field handle channels: a convolution, a norm, attention, a split, a view, a
sum. Some steps are ordinary, others are there to trip a trace: raw reshapes, numbers from shapes, fixed positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 8
"""Height and width of the images."""


def resized(x: Tensor, size: int) -> Tensor:
    """Bring an image back to the size that all steps expect."""
    return x if x.shape[2] == size else functional.interpolate(x, size=(size, size))


class Of(nn.Module):
    """A step whose code is a function of the module and the tensor; the parts are its submodules and parameters."""

    fixed = False
    """True if statistics across channels are constants, as `norms_that_scale` sets it."""

    def __init__(self, code: Callable[..., Tensor], **parts: object) -> None:
        super().__init__()
        self.code = code
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)

    def statistic(self, value: Tensor) -> Tensor:
        """Return a statistic across channels, which a cut changes as it changes those of a norm."""
        return torch.full_like(value, 0.3) if self.fixed else value


def even(width: int, parts: int) -> int:
    """Return the largest number up to `parts` that divides `width`."""
    return next(n for n in range(min(width, parts), 0, -1) if width % n == 0)


def last(code: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run code on channels last."""
    return lambda m, x: code(m, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def as_tokens(code: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run code on tokens `(B, N, C)`."""

    def run(m: Any, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        out = code(m, x.flatten(2).transpose(1, 2))
        return out.transpose(1, 2).reshape(batch, -1, height, width)

    return run


def mixing(code: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run code on tokens, and add what it read: without a residual, attention makes all tokens nearly equal."""
    return as_tokens(lambda m, x: x + code(m, x))


def norm(width: int, kind: int) -> nn.Module:
    """One of the norms of images."""
    return [
        nn.BatchNorm2d(width),
        nn.GroupNorm(1, width),
        nn.GroupNorm(even(width, 4), width),
        nn.InstanceNorm2d(width, affine=True),
        nn.Identity(),
    ][kind % 5]


def activation(kind: int) -> nn.Module:
    """One of the activations; some do not keep zeros."""
    return [nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.Hardswish(), nn.Softplus(), nn.Identity(), nn.ELU()][kind % 7]


def conv_step(width: int, a: int, b: int, c: int) -> nn.Module:
    out = 4 * (1 + a % 4)
    groups = even(out, even(width, 1 + b % 4))
    groups = groups if width % groups == 0 else 1
    size = 1 + 2 * (c % 2)
    conv = nn.Conv2d(width, out, size, padding=size // 2, groups=groups, bias=bool(b % 2))
    return nn.Sequential(conv, norm(out, b), activation(c))


def depthwise(width: int, a: int, b: int, c: int) -> nn.Module:
    times = 1 + a % 2
    return nn.Sequential(
        nn.Conv2d(width, width * times, 3, padding=1, groups=width), norm(width * times, b), activation(c)
    )


def transposed(width: int, a: int, b: int, c: int) -> nn.Module:
    groups = even(width, 1 + b % 3)
    return nn.Sequential(
        nn.ConvTranspose2d(width, groups * (2 + a % 3), 2, stride=2, groups=groups), nn.MaxPool2d(2), activation(c)
    )


def squeeze_excite(width: int, a: int, b: int, c: int) -> nn.Module:
    inner = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 2 + a % 4, 1), activation(b), nn.Conv2d(2 + a % 4, width, 1)
    )
    return Of(lambda m, x: x * torch.sigmoid(m.inner(x)), inner=inner)


def shuffle(width: int, a: int, b: int, c: int) -> nn.Module:
    groups = even(width, 2 + a % 3)
    if b % 2:
        return Of(lambda m, x: x.view(len(x), groups, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2))
    return Of(lambda m, x: x.view(len(x), -1, groups, *x.shape[2:]).transpose(1, 2).reshape(x.shape))


def chunks(width: int, a: int, b: int, c: int) -> nn.Module:
    parts = even(width, 2 + a % 3)
    conv = nn.Conv2d(width // parts, width // parts, 3, padding=1)

    def code(m: Any, x: Tensor) -> Tensor:
        first, *rest = x.chunk(parts, 1)
        if b % 3 == 0:
            return torch.cat([m.conv(first), *rest], 1)
        return torch.cat([*rest, m.conv(first)], 1) if b % 3 == 1 else m.conv(sum(rest, first)) * first

    return Of(code, conv=conv)


def unequal_split(width: int, a: int, b: int, c: int) -> nn.Module:
    left = 1 + a % (width - 1)
    sizes = [left, width - left]
    convs = nn.ModuleList(nn.Conv2d(n, n + b % 2, 1) for n in sizes)

    def code(m: Any, x: Tensor) -> Tensor:
        parts = x.split(m.sizes, 1) if c % 2 else (x[:, :left], x[:, left:])
        return torch.cat([layer(part) for layer, part in zip(m.convs, parts, strict=True)], 1)

    return Of(code, convs=convs, sizes=sizes)


def linear_last(width: int, a: int, b: int, c: int) -> nn.Module:
    out = 4 * (1 + a % 4)
    parts = [nn.Linear(width, out), nn.LayerNorm(out) if b % 2 else nn.Identity(), activation(c), nn.Linear(out, width)]
    return Of(last(lambda m, x: m.inner(x)), inner=nn.Sequential(*parts))


def layer_norm(width: int, a: int, b: int, c: int) -> nn.Module:
    kinds = [
        nn.LayerNorm(width),
        nn.LayerNorm(width, elementwise_affine=False),
        nn.RMSNorm(width),
        nn.LayerNorm(width, bias=False),
    ]
    return Of(last(lambda m, x: m.norm(x)), norm=kinds[a % 4])


def attention(width: int, a: int, b: int, c: int) -> nn.Module:
    heads, dim = 1 + a % 3, 2 + b % 3
    inner = heads * dim
    fused, kind = bool(c % 2), (c // 2) % 5
    parts: dict[str, object] = {"qkv": nn.Linear(width, 3 * inner), "proj": nn.Linear(inner, width)}
    parts |= {"num_heads": heads, "head_dim": dim, "scale": dim**-0.5, "inner": inner}

    def code(m: Any, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        packed = m.qkv(x)
        if kind == 0:
            q, k, v = packed.reshape(batch, tokens, 3, m.num_heads, m.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        elif kind == 1:
            q, k, v = (p.unflatten(-1, (m.num_heads, -1)).transpose(1, 2) for p in packed.chunk(3, -1))
        elif kind == 2:
            q, k, v = packed.unflatten(-1, (m.num_heads, -1)).transpose(1, 2).chunk(3, -1)
        elif kind == 3:
            q, k, v = packed.reshape(batch, tokens, -1, 3, m.num_heads).permute(3, 0, 4, 1, 2).unbind(0)
        else:
            third = packed.shape[-1] // 3
            q, k, v = (p.view(batch, tokens, heads, third // heads).transpose(1, 2) for p in packed.split(third, -1))
        if fused:
            out = functional.scaled_dot_product_attention(q, k, v)
        else:
            out = (q * m.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return m.proj(out.transpose(1, 2).flatten(2))

    return Of(mixing(code), **parts)


def cross_attention(width: int, a: int, b: int, c: int) -> nn.Module:
    # Half of these widths is two at least: einsum multiplies what has one, without a product that is counted.
    heads, dim, wide = 1 + a % 3, 4 + b % 2, 4 + c % 3
    parts: dict[str, object] = {"q": nn.Linear(width, heads * dim), "k": nn.Linear(width, heads * dim)}
    parts |= {"v": nn.Linear(width, heads * wide), "proj": nn.Linear(heads * wide, width), "heads": heads}
    parts |= {"norm": nn.LayerNorm(dim), "bias": nn.Parameter(torch.randn(heads, 1, 1))}

    def code(m: Any, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (m.heads, -1)).transpose(1, 2) for f in (m.q, m.k, m.v))
        if a % 2:
            q, k = m.norm(q), m.norm(k)
        products = torch.einsum("bhid,bhjd->bhij", q, k) + (m.bias if b % 3 else 0)
        return m.proj(torch.einsum("bhij,bhjd->bihd", products.softmax(-1), v).flatten(2))

    return Of(mixing(code), **parts)


def module_attention(width: int, a: int, b: int, c: int) -> nn.Module:
    inner = nn.MultiheadAttention(width, even(width, 1 + a % 4), batch_first=True, bias=bool(c % 2))
    return Of(mixing(lambda m, x: m.inner(x, x, x, need_weights=bool(b % 2))[0]), inner=inner)


def encoder(width: int, a: int, b: int, c: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        width, even(width, 1 + a % 4), 4 + b, dropout=0.0, batch_first=True, norm_first=bool(c % 2)
    )
    return Of(as_tokens(lambda m, x: m.inner(x)), inner=layer)


def linear_attention(width: int, a: int, b: int, c: int) -> nn.Module:
    dim = 2 + a % 3
    parts = {"q": nn.Linear(width, dim), "k": nn.Linear(width, dim), "v": nn.Linear(width, width)}

    def code(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.q(x), m.k(x), m.v(x)
        if b % 2:
            return functional.elu(q) @ (functional.elu(k).transpose(1, 2) @ v) + x
        return (k.transpose(1, 2) @ v).softmax(-1).mean(1, keepdim=True) * v

    return Of(mixing(code), **parts)


def channel_attention(width: int, a: int, b: int, c: int) -> nn.Module:
    """Attention whose tokens are the channels, as in XCiT."""
    heads = even(width, 1 + a % 3)
    parts = {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}

    def code(m: Any, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        q, k, v = m.qkv(x).reshape(batch, tokens, 3, heads, channels // heads).permute(2, 0, 3, 4, 1).unbind(0)
        if b % 2:
            q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        out = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return m.proj(out.permute(0, 3, 1, 2).reshape(batch, tokens, channels))

    return Of(mixing(code), **parts)


def windows(width: int, a: int, b: int, c: int) -> nn.Module:
    """Linear layers over windows of the image, or over its rows."""

    def code(m: Any, x: Tensor) -> Tensor:
        batch, height, wide, channels = x.shape
        if a % 2:
            parts = x.view(batch, height // 4, 4, wide // 4, 4, channels).transpose(2, 3).reshape(-1, 16, channels)
            return (
                m.inner(parts)
                .view(batch, height // 4, wide // 4, 4, 4, -1)
                .transpose(2, 3)
                .reshape(batch, height, wide, -1)
            )
        return m.inner(x.transpose(1, 2).flatten(1, 2)).unflatten(1, (wide, height)).transpose(1, 2)

    return Of(last(code), inner=nn.Linear(width, width + b % 3))


def space_to_depth(width: int, a: int, b: int, c: int) -> nn.Module:
    """Merge four pixels into the channels, in one of several ways; the image keeps its size by resizing."""
    kind = a % 4

    def code(m: Any, x: Tensor) -> Tensor:
        if kind == 0:
            x = functional.pixel_unshuffle(x, 2)
        elif kind == 1:
            x = torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, 1::2]], 1)
        elif kind == 2:
            x = x.reshape(len(x), -1, x.shape[2] // 2, x.shape[3] // 2)  # raw memory, as some networks do
        else:
            x = functional.unfold(x, 2, stride=2).view(len(x), -1, x.shape[2] // 2, x.shape[3] // 2)
        return resized(m.conv(x), SIZE)

    return Of(code, conv=nn.Conv2d(4 * width, width, 1))


def depth_to_space(width: int, a: int, b: int, c: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, 4 * (2 + a % 3), 1), nn.PixelShuffle(2), nn.AvgPool2d(2))


def positions(width: int, a: int, b: int, c: int) -> nn.Module:
    table = nn.Parameter(torch.randn(1, width, SIZE, SIZE) if a % 2 else torch.randn(width, 1, 1))
    if a % 2:
        return Of(lambda m, x: x + functional.interpolate(m.table, x.shape[2:]) * (b % 2 + 0.5), table=table)
    return Of(lambda m, x: x * m.table, table=table)


def fixed_positions(width: int, a: int, b: int, c: int) -> nn.Module:
    half = width // 2
    kinds: list[Callable[..., Tensor]] = [
        lambda m, x: x[:, :half] * x[:, half : 2 * half],
        lambda m, x: x[:, : 2 * half : 2] + x[:, 1 : 2 * half : 2],
        lambda m, x: x.flip(1) + x,
        lambda m, x: x.roll(1, 1),
        lambda m, x: x.index_select(1, m.order),
        lambda m, x: functional.pad(x, (0, 0, 0, 0, 1, 1)),
        lambda m, x: torch.cat([x[:, -1:], x[:, :-1]], 1),
        lambda m, x: x.narrow(1, 1, width - 1),
        lambda m, x: torch.cat([x, torch.ones_like(x[:, :1])], 1),
    ]
    return Of(kinds[a % len(kinds)], order=torch.randperm(width, generator=torch.Generator().manual_seed(b)))


def response(m: Any, x: Tensor) -> Tensor:
    """Global response normalisation, without weights."""
    norms = x.norm(dim=(2, 3), keepdim=True)
    return x * (norms / (m.statistic(norms.mean(1, keepdim=True)) + 1))


def across_channels(width: int, a: int, b: int, c: int) -> nn.Module:
    kinds: list[Callable[..., Tensor]] = [
        lambda m, x: x * torch.sigmoid(m.statistic(x.mean(1, keepdim=True))),
        lambda m, x: x.softmax(1),
        lambda m, x: x / m.statistic(x.norm(dim=1, keepdim=True)).clamp_min(1e-12).expand_as(x),
        lambda m, x: x * x.shape[1] ** -0.5,
        lambda m, x: x - m.statistic(x.amax(1, keepdim=True)),
        response,
        lambda m, x: x.cumsum(1),
        lambda m, x: torch.cat([m.statistic(x.mean(1, keepdim=True)), m.statistic(x.amax(1, keepdim=True)), x], 1),
        lambda m, x: functional.local_response_norm(x, 3),
        lambda m, x: (x - m.statistic(x.mean(1, keepdim=True))) / (m.statistic(x.var(1, keepdim=True)) + 1).sqrt(),
        lambda m, x: x / (1 + m.statistic(x.square().sum(1, keepdim=True))).sqrt() * x.size(1) ** 0.5,
    ]
    return Of(kinds[a % len(kinds)])


def stacked(width: int, a: int, b: int, c: int) -> nn.Module:
    """Groups of channels as an axis of their own, which is summed, or weighed by a softmax over it."""
    groups = even(width, 2 + a % 3)

    def weighed(m: Any, x: Tensor) -> Tensor:
        weights = x.mean((2, 3)).view(len(x), groups, -1, 1, 1).softmax(1)
        return (x.unflatten(1, (groups, -1)) * weights).flatten(1, 2)

    kinds: list[Callable[..., Tensor]] = [
        lambda m, x: x.unflatten(1, (groups, -1)).sum(1),
        lambda m, x: (x.unflatten(1, (groups, -1)) * x.mean((2, 3)).view(len(x), groups, -1, 1, 1).softmax(1)).flatten(
            1, 2
        ),
        lambda m, x: m.statistic(x.unflatten(1, (-1, groups)).amax(2)),
        lambda m, x: x.view(len(x), groups, x.shape[1] // groups, *x.shape[2:]).permute(0, 2, 1, 3, 4).reshape(x.shape),
    ]
    return Of(kinds[b % len(kinds)])


def shared(width: int, a: int, b: int, c: int) -> nn.Module:
    """One layer used twice, or a weight used with its transpose."""
    conv, linear = nn.Conv2d(width, width, 1), nn.Linear(width, 4 + a % 4, bias=False)
    if b % 2:
        return Of(lambda m, x: m.conv(torch.relu(m.conv(x))), conv=conv)
    return Of(last(lambda m, x: functional.linear(torch.relu(m.linear(x)), m.linear.weight.t())), linear=linear)


class ComputedWeight(nn.Conv2d):
    """A convolution whose weight is computed from its parameter."""

    fixed = False
    """True if statistics of the weight are constants, as `norms_that_scale` sets it."""

    def __init__(self, width: int, out: int, kind: int) -> None:
        super().__init__(width, out, 1)
        self.kind = kind % 4

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        if self.kind == 0:
            mean, deviation = w.mean((1, 2, 3), keepdim=True), (w.var((1, 2, 3), keepdim=True) + 0.1).sqrt()
            w = w * 0.7 if self.fixed else (w - mean) / deviation
        elif self.kind == 1:
            w = w / w.norm()
        else:
            w = w.tanh() if self.kind == 2 else w if self.fixed else w + w.mean(0, keepdim=True)
        return functional.conv2d(x, w, self.bias)


def weight_computed(width: int, a: int, b: int, c: int) -> nn.Module:
    return ComputedWeight(width, 4 + a % 4, b)


def recurrent(width: int, a: int, b: int, c: int) -> nn.Module:
    kind = [nn.GRU, nn.LSTM, nn.RNN][a % 3]
    return Of(as_tokens(lambda m, x: m.inner(x)[0]), inner=kind(width, 4 + b % 3, batch_first=True))


def pooled(width: int, a: int, b: int, c: int) -> nn.Module:
    kinds = [
        nn.MaxPool2d(3, 1, 1),
        nn.AvgPool2d(3, 1, 1),
        nn.AdaptiveAvgPool2d(SIZE),
        nn.LPPool2d(2, 1),
        nn.Upsample(SIZE),
    ]
    return kinds[a % len(kinds)]


def training_only(width: int, a: int, b: int, c: int) -> nn.Module:
    return Of(lambda m, x: x + m.aux(x).mean(1, keepdim=True) if m.training else x, aux=nn.Conv2d(width, 2, 1))


STEPS: dict[str, Callable[[int, int, int, int], nn.Module]] = {
    function.__name__: function
    for function in (
        conv_step,
        depthwise,
        transposed,
        squeeze_excite,
        shuffle,
        chunks,
        unequal_split,
        linear_last,
        layer_norm,
        attention,
        cross_attention,
        module_attention,
        encoder,
        linear_attention,
        channel_attention,
        windows,
        space_to_depth,
        depth_to_space,
        positions,
        fixed_positions,
        across_channels,
        stacked,
        shared,
        weight_computed,
        recurrent,
        pooled,
        training_only,
    )
}
"""Makers of steps by name: they take the number of channels and three small numbers."""
