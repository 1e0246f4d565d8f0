"""Batch-invariant operations: the network's output for an image is the same in every batch.

PyTorch uses different kernels for small and large batches, and matrix libraries sum in an order
that depends on the number of rows and threads. oneDNN's convolution sums the inputs of an output
pixel always in the same order. So all convolutions are computed by it, and all products with a
weight matrix as 1 × 1 convolutions by it.

Functions such as the sigmoid are computed one vector register at a time, and the values left over
at the end by another algorithm, whose last bit may differ. So tensors are padded to whole
registers.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["BatchInvariant", "attended", "conv2d", "image_mean", "linear"]

_ONE, _NONE = [1, 1], [0, 0]


_REGISTERS = 64
"""A multiple of the number of values that PyTorch's vectorised loops take at once."""
_SERIAL = 32_768
"""Up to this many values PyTorch computes in one thread (at::internal::GRAIN_SIZE)."""


class BatchInvariant(TorchFunctionMode):
    """A context in which convolutions, products with weights and activations are invariant.

    The result for an image depends neither on the other images of the batch, nor on their number
    and order, nor on the number of threads. This holds for tensors on the CPU, float32 or, under
    autocast, bfloat16; anything else is computed as without the context.

    The products of attention stay with PyTorch: each of their matrices belongs to one image and
    has the same shape in every batch. But its kernel chooses its sums by the strides as well, so
    that they get the same ones.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _INVARIANT.get(func, func)(*args, **(kwargs or {}))


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """The same as ``torch.nn.functional.conv2d``, always computed by oneDNN.

    Args:
        x: float (N, C, H, W). weight: float (O, C / groups, h, w). bias: float (O,).
    """
    if not _is_ours(x) or x.dim() != 4:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    dilated = _pair(dilation)
    if isinstance(padding, str):
        x, around = _padded(x, padding, weight.shape[2:], dilated)
    else:
        around = _pair(padding)
    return _convolution(x, weight, bias, around, _pair(stride), dilated, groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same as ``torch.nn.functional.linear``, as a 1 × 1 convolution over the rows of x.

    Args:
        x: float (…, K). weight: float (O, K). bias: float (O,).
    """
    if not _is_ours(x) or weight.dim() != 2 or x.numel() == 0:
        return F.linear(x, weight, bias)
    # The rows as the pixels of one image: faster than as images of one pixel.
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    out = _convolution(pixels, weight[:, :, None, None], bias, _NONE, _ONE, _ONE, 1)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def image_mean(x: Tensor) -> Tensor:
    """The mean of each image, float (N, …, H, W) → (N, 1, …, 1).

    Rows are averaged first, as PyTorch would split a single sum over a large image among threads.
    """
    rows = x.mean(dim=-1, keepdim=True)
    return rows.mean(dim=tuple(range(1, x.dim())), keepdim=True)


def _matmul(x: Tensor, other: Tensor) -> Tensor:
    if other.dim() != 2 or x.dim() < 2:
        return torch.matmul(x, other)
    return linear(x, other.t())


def elementwise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Makes an elementwise function invariant: each result depends on its own value alone.

    Returns:
        A function of a float tensor of any shape, which takes the other arguments of ``function``.
    """

    def invariant(x: Tensor, *args: Any, inplace: bool = False, **kwargs: Any) -> Tensor:
        if not _is_ours(x) or x.numel() == 0:
            return function(x, *args, **kwargs)
        dense = x if _is_dense(x) else x.contiguous()
        values = dense.as_strided((dense.numel(),), (1,))
        if missing := -len(values) % _REGISTERS:
            values = F.pad(values, (0, missing))
        if _share_of_a_thread(len(values)) % _REGISTERS == 0:
            found = function(values, *args, **kwargs)
        else:
            parts = torch.split(values, _SERIAL)
            found = torch.cat([function(part, *args, **kwargs) for part in parts])
        out = found.as_strided(dense.shape, dense.stride())
        return x.copy_(out) if inplace else out

    return invariant


def _share_of_a_thread(count: int) -> int:
    """How many of ``count`` values PyTorch gives each thread but the last (at::parallel_for)."""
    threads = min(torch.get_num_threads(), -(-count // _SERIAL))
    return -(-count // threads)


def _inplace(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    invariant = elementwise(function)
    return lambda x: invariant(x, inplace=True)


def attended(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any
) -> Tensor:
    """The same as ``scaled_dot_product_attention``, of tensors that lie densely in memory.

    A map that the convolution before left in another layout has other strides for a batch of one,
    and where the processor has AVX2 alone another order of sums with them.
    """
    q, k, v = (_dense(x) if _is_ours(x) else x for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask, **more)


def _dense(x: Tensor) -> Tensor:
    """x in memory as a new tensor of its shape lies there, also along axes of length 1."""
    strides = [1]
    for side in reversed(x.shape[1:]):
        strides.append(strides[-1] * side)
    return x.contiguous().as_strided(x.shape, strides[::-1])


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """``multi_head_attention_forward`` for self-attention of (L, N, E) without masks, as in towers.

    Anything else is computed by PyTorch.
    """
    plain = query is key and key is value and in_proj_weight is not None and bias_k is None
    masks = (more.get("key_padding_mask"), more.get("attn_mask"))
    unusual = more.get("need_weights", True) or add_zero_attn or more.get("training", True)
    if not plain or unusual or any(mask is not None for mask in masks) or query.dim() != 3:
        return F.multi_head_attention_forward(
            *(query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias),
            *(bias_k, bias_v, add_zero_attn, dropout_p, out_proj_weight, out_proj_bias),
            **more,
        )
    length, count, width = query.shape
    both = linear(query, in_proj_weight, in_proj_bias)  # type: ignore[arg-type]
    heads = both.reshape(length, count, 3, num_heads, width // num_heads)
    q, k, v = heads.permute(2, 1, 3, 0, 4)
    mixed = attended(q, k, v)
    merged = mixed.permute(2, 0, 1, 3).reshape(length, count, width)
    return linear(merged, out_proj_weight, out_proj_bias), None


_INVARIANT: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: conv2d,
    F.linear: linear,
    F.multi_head_attention_forward: _attention,
    F.scaled_dot_product_attention: attended,
    **dict.fromkeys((torch.matmul, torch.mm), _matmul),
    **dict.fromkeys((Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    F.silu: elementwise(F.silu),
    F.gelu: elementwise(F.gelu),
    F.mish: elementwise(F.mish),
    F.elu: elementwise(F.elu),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, F.sigmoid), elementwise(torch.sigmoid)),
    **dict.fromkeys((torch.tanh, Tensor.tanh, F.tanh), elementwise(torch.tanh)),
    **dict.fromkeys((torch.exp, Tensor.exp), elementwise(torch.exp)),
    Tensor.sigmoid_: _inplace(torch.sigmoid),
    Tensor.tanh_: _inplace(torch.tanh),
    Tensor.exp_: _inplace(torch.exp),
}


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def _is_ours(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    x, weight = _channels_last(x.to(dtype)), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    if dtype == torch.bfloat16 and not _multiplies_bfloat16():
        x, weight = x.float(), weight.float()
        bias = None if bias is None else bias.float()
    out = torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
    return out.to(dtype)


def _channels_last(x: Tensor) -> Tensor:
    """x with the strides of the channels-last layout, also along axes of length 1.

    PyTorch infers the layout from the strides, and would infer another one for a batch of one.
    """
    _, channels, height, width = x.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, strides)


def _multiplies_bfloat16() -> bool:
    """Whether oneDNN supports bfloat16 on this processor.

    If not, the products are computed in float32 and rounded; products of bfloat16 are summed in
    float32 in either case.
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pair(value: int | Iterable[int]) -> list[int]:
    if isinstance(value, int):
        return [value, value]
    values = list(value)
    return values * (2 // len(values))


def _padded(
    x: Tensor, padding: str, kernel: Iterable[int], dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """x, and the padding that oneDNN is to add, for the named paddings "valid" and "same"."""
    if padding == "valid":
        return x, _NONE
    rows, columns = (step * (side - 1) for step, side in zip(dilation, kernel, strict=True))
    if rows % 2 or columns % 2:  # PyTorch puts the odd one after the image
        x = F.pad(x, (0, columns % 2, 0, rows % 2))
    return x, [rows // 2, columns // 2]
