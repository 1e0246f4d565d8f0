"""What makes training on processors faster and changes nothing in it."""

import ctypes
import sys
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["keep_freed_memory", "pad_before_depthwise"]

# Of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets the C library keep the memory of tensors that are no more, for the next ones. Otherwise
    each step of a training gives hundreds of megabytes back to the kernel and takes them again,
    page by page. It holds for the process; where there is no glibc nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)


def pad_before_depthwise(network: nn.Module) -> None:
    """Lets depthwise convolutions of the network pad images smaller than their kernel beforehand.

    oneDNN has no fast kernel for the gradient of the weights where the padding on both sides is in
    the reach of one output. Outputs, parameters and their names stay as they are.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_depthwise(module):
            module.__class__ = _PaddingBefore


def _is_depthwise(module: nn.Conv2d) -> bool:
    padded = isinstance(module.padding, tuple) and any(module.padding)
    zeros = module.padding_mode == "zeros"
    return module.groups == module.in_channels > 1 and padded and zeros


class _PaddingBefore(nn.Conv2d):
    def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        height, width = self.kernel_size
        small = images.shape[-2] < height or images.shape[-1] < width
        if not small or isinstance(self.padding, str):
            return cast(Tensor, super()._conv_forward(images, weight, bias))
        down, right = self.padding
        padded = F.pad(images, (right, right, down, down))
        return F.conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)
