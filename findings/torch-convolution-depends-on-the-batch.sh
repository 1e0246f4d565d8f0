#!/usr/bin/env bash
# PyTorch 2.15.0, x86-64: the convolution of an image depends on how many images are in the batch.
#
# Guess: a 1 x 1 convolution of 8 images gives the same bits as the first 8 of 32.
# Behaviour: below a size that depends on the batch, PyTorch leaves oneDNN for its own im2col with
# a matrix product by MKL, which sums in another order. Every image of a batch of 1 to 8 differs
# from the same image in a batch of 32; oneDNN asked directly gives the same bits at every size,
# and so does MKL where MKL_CBWR asks for strict reproducibility on a processor with AVX2.
# Embeddings that were indexed in batches are not found again to the bit by a query of one image.
# Output seen:
#   batch of 1: 1 images differ, by oneDNN alone 0
#   batch of 2: 2 images differ, by oneDNN alone 0
#   batch of 4: 4 images differ, by oneDNN alone 0
#   batch of 8: 8 images differ, by oneDNN alone 0
#   batch of 16: 0 images differ, by oneDNN alone 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.15.0" "numpy==2.4.6"
env -u MKL_CBWR ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
    "$work/venv/bin/python" - <<'PYTHON' | tee "$work/seen"
import torch
from torch.nn import functional

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
maps = torch.randn(32, 384, 3, 3, generator=generator).contiguous(
    memory_format=torch.channels_last
)
weight = torch.randn(384, 384, 1, 1, generator=generator) / 20


def onednn(images):
    return torch.mkldnn_convolution(images, weight, None, [0, 0], [1, 1], [1, 1], 1)


def differ(function, count):
    apart = function(maps)[:count] != function(maps[:count])
    return int(apart.flatten(1).any(1).sum())


for count in (1, 2, 4, 8, 16):
    usual = differ(lambda images: functional.conv2d(images, weight), count)
    print(f"batch of {count}: {usual} images differ, by oneDNN alone {differ(onednn, count)}")
PYTHON
diff "$work/seen" - <<'SEEN'
batch of 1: 1 images differ, by oneDNN alone 0
batch of 2: 2 images differ, by oneDNN alone 0
batch of 4: 4 images differ, by oneDNN alone 0
batch of 8: 8 images differ, by oneDNN alone 0
batch of 16: 0 images differ, by oneDNN alone 0
SEEN
