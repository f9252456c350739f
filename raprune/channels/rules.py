"""The effect of each operation on the shadows: one small function per kind of operation, listed in `RULES`.

Three things can happen to the ids that enter an operation: they move with the data, they are coupled with other ids,
or they are frozen because their effect on the output is not known. An operation that is not in `RULES` freezes its
inputs (`shadow.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raprune.channels.elementwise import copy_into, fill, only_shape, pointwise, same_shape_constant
from raprune.channels.layers import (
    batch_norm,
    convolution,
    embedding,
    group_norm,
    layer_norm,
    recurrent,
    vector_product,
    weight_norm,
)
from raprune.channels.maps import deformable_convolution, put_rows, sample, shuffle_pixels, unshuffle_pixels
from raprune.channels.movement import at_fixed_positions, concatenate, move, packets, pad, restride, split, view
from raprune.channels.products import attention, batched_product, matrix_product
from raprune.channels.reductions import along_axis, reduction, spatial
from raprune.channels.shadow import TracedCall

_TABLE: list[tuple[Callable[[TracedCall], None], str]] = [
    (convolution, "convolution convolution_overrideable"),
    (matrix_product, "mm addmm"),
    (vector_product, "mv dot vdot"),
    (weight_norm, "_weight_norm_interface"),
    (embedding, "embedding"),
    (batched_product, "bmm baddbmm"),
    (
        attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable",
    ),
    (batch_norm, "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm"),
    (group_norm, "native_group_norm"),
    (layer_norm, "native_layer_norm"),
    (
        pointwise,
        "hardswish hardswish_ _prelu_kernel where masked_fill masked_fill_ relu relu_ lerp addcmul addcdiv clamp_min "
        "clamp_max gelu_ celu celu_ selu selu_ mish mish_ threshold_ native_dropout",
    ),
    (copy_into, "copy_"),
    (same_shape_constant, "zeros_like ones_like empty_like full_like rand_like randn_like"),
    (only_shape, "new_zeros new_ones new_empty new_full new_empty_strided"),
    (fill, "zero_ fill_"),
    (
        spatial,
        "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
        "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
        "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d reflection_pad1d reflection_pad2d reflection_pad3d "
        "replication_pad1d replication_pad2d replication_pad3d mkldnn_max_pool2d fractional_max_pool2d "
        "fractional_max_pool3d",
    ),
    (reduction, "mean sum amax amin max min var std var_mean prod linalg_vector_norm norm logsumexp argmax any all"),
    (along_axis, "_softmax _log_softmax _safe_softmax cumsum"),
    (
        move,
        "permute transpose t expand squeeze unsqueeze clone _to_copy detach alias lift_fresh lift_fresh_copy "
        "permute_copy transpose_copy t_copy expand_copy squeeze_copy unsqueeze_copy repeat",
    ),
    (at_fixed_positions, "slice select index index_select roll flip diagonal gather unfold narrow unbind"),
    (split, "split split_with_sizes unsafe_split unsafe_chunk unsafe_split_with_sizes"),
    (view, "view _unsafe_view reshape _reshape_alias"),
    (concatenate, "cat stack"),
    (pad, "constant_pad_nd"),
    (restride, "as_strided as_strided_"),
    (shuffle_pixels, "pixel_shuffle"),
    (unshuffle_pixels, "pixel_unshuffle"),
    (sample, "grid_sampler_2d grid_sampler_3d cudnn_grid_sampler"),
    (put_rows, "index_put_"),
    (recurrent, "mkldnn_rnn_layer lstm gru rnn_tanh rnn_relu"),
]

RULES: dict[Any, Callable[[TracedCall], None]] = {
    "pointwise": pointwise,
    "torchvision.roi_align": sample,
    "torchvision.roi_pool": sample,
    "torchvision.deform_conv2d": deformable_convolution,
    **{packet: rule for rule, names in _TABLE for packet in packets(names)},
}
"""Rule of each operator, or of its name if another library defines it.

`"pointwise"` is the rule of every operator that PyTorch itself tags as pointwise.
"""
