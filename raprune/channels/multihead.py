"""`nn.MultiheadAttention` with any number of heads, any width of them and any number of channels in and out.

PyTorch's own module computes the width of a head from the number of channels that it reads, so that heads and widths
cannot be removed alone. A cut gives such a module another class; its parameters keep their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional


class CutMultiheadAttention(nn.MultiheadAttention):
    """Attention of a cut network: `num_heads` heads of width `head_dim`, with the scale of the dense network."""

    scale: float
    """Factor of the products of queries and keys."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the outputs and, with `need_weights`, the weights, as `nn.MultiheadAttention` does."""
        batched = query.dim() == 3
        inputs = [query, key, value]
        if not batched:
            inputs = [x.unsqueeze(0) for x in inputs]
        elif not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None, None, None)
        q, k, v = (
            functional.linear(x, weight, bias).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        attention = None
        if need_weights:
            products = (q * self.scale) @ k.transpose(-2, -1)
            attention = (products if mask is None else products + mask).softmax(-1)
            attention = functional.dropout(attention, dropout)
            mixed = attention @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if attention is not None and average_attn_weights:
            attention = attention.mean(1)
        if not batched:
            return out.squeeze(0), None if attention is None else attention.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), attention

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Return the sum of both masks, broadcast to `(batch, heads, queries, keys)`."""
        if mask is not None:
            mask = _added(mask, q.dtype)
            if mask.dim() == 3:
                mask = mask.view(len(q), -1, q.shape[2], k.shape[2])
        if padding is not None:
            padding = _added(padding, q.dtype).view(len(q), 1, 1, k.shape[2])
            mask = padding if mask is None else mask + padding
        return mask


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask that is added to products; true values of a mask of truth values hide."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask


def takes_cuts(module: nn.MultiheadAttention) -> bool:
    """Return True if a cut module can stand for this one."""
    return (
        (module._qkv_same_embed_dim or isinstance(module, CutMultiheadAttention))
        and type(module).forward in (nn.MultiheadAttention.forward, CutMultiheadAttention.forward)
        and module.bias_k is None
        and not module.add_zero_attn
    )


@contextmanager
def projections_called(*models: nn.Module) -> Iterator[None]:
    """Let `nn.MultiheadAttention` call its projections one by one within the context, where hooks and modes see them.

    PyTorch's own module hands its weights to one function. Outputs agree within rounding.
    """
    whole = [m for model in models for m in model.modules() if type(m) is nn.MultiheadAttention and takes_cuts(m)]
    for module in whole:
        make_cut(module)
    try:
        yield
    finally:
        for module in whole:
            module.__class__ = nn.MultiheadAttention
            module._qkv_same_embed_dim = True
            del module.scale


def make_cut(module: nn.MultiheadAttention) -> None:
    """Give a module of a cut network the class that takes any sizes."""
    if type(module) is nn.MultiheadAttention and takes_cuts(module):
        module.__class__ = CutMultiheadAttention
        module.scale = module.head_dim**-0.5
        # PyTorch's fused encoder layer computes the width of a head from the number of channels.
        module._qkv_same_embed_dim = False
