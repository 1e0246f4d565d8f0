"""Makes an archive of everything that is stored, with what this version of Precedent answers.

    python tests/formats/make.py tests/formats/NAME.tar.xz

Run it on the commit before one that changes how something is stored, and keep the file:
``test_formats.py`` opens each of them. It holds a small model with its calibration, pictures, and
the data folder of an archive that was indexed, worked on by a job, and deleted from.
"""

import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from PIL import Image, ImageFilter

ROOT = Path(__file__).parents[2]
ASKED: tuple[tuple[str, ...], ...] = (
    ("info", "--refusals"),
    ("search", "pictures/queries/0.png", "-k", "5"),
    ("search", "pictures/queries/1.png", "-k", "4", "--order", "hamming", "--exact"),
    ("search", "pictures/ct/0.dcm", "-k", "3", "--where", "modality=CT", "--exclude-own", "study"),
    ("recommend", "pictures/queries/2.png", "-k", "3"),
    ("duplicates", "--similarity", "0.9999", "--max-bits", "2"),
    ("jobs", "list"),
    ("jobs", "show", "2"),
    ("profile",),
)
"""Questions, as commands; paths are relative to the folder that holds the archive."""
FORGOTTEN = {
    *("data_dir", "version", "timings_ms", "seconds", "stage_seconds", "path", "detail", "took"),
    *("created_at", "started_at", "finished_at", "per_second", "seconds_left", "compared"),
    *("rendering", "rendered_otherwise"),
}
"""Keys of answers that say where, when, how fast or by which version, or that are words for
people."""


def told(document: Any) -> Any:
    """An answer without what may differ from run to run."""
    if isinstance(document, dict):
        return {name: told(value) for name, value in document.items() if name not in FORGOTTEN}
    return [told(value) for value in document] if isinstance(document, list) else document


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        draw(folder / "pictures")
        make_model(folder / "model")
        run = Precedent(folder)
        run("calibrate", "pictures/known", "--alpha", "0.2", "--references", "40", "--force")
        run("index", "pictures/known", "pictures/ct", "--labels", "folder")
        run("jobs", "submit", "pictures/more")
        run("worker", "--until-idle")
        victim = run("search", "pictures/ct/1.dcm", "-k", "1", "--json")[0]["hits"][0]
        run("delete", "--study", victim["study"], "--yes")
        answers = [{"asked": asked, "answer": told(run(*asked, "--json"))} for asked in ASKED]
        rows = list(csv.DictReader(io.StringIO(run("jobs", "report", "2"))))
        answers.append(
            {"asked": ("jobs", "report", "2"), "answer": sorted(row["fate"] for row in rows)}
        )
        (folder / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")
        target.parent.mkdir(exist_ok=True)
        # Most of an index is holes; Python's tarfile would write them out.
        owner = ("--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--sort=name")
        packed = ("model", "data", "pictures/queries", "pictures/ct", "answers.json")
        subprocess.run(
            ["tar", "--sparse", "--xz", *owner, "-cf", target, *packed], cwd=folder, check=True
        )
    print(f"{target}: {target.stat().st_size:,} bytes")


class Precedent:
    """The command line of this working tree, on one archive."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PRECEDENT_DATA_DIR": str(folder / "data"),
            "PRECEDENT_MODEL": str(folder / "model"),
            "PRECEDENT_PRECISION": "fp32",
            "PRECEDENT_INDEXING__READERS": "1",
        }

    def __call__(self, *arguments: str) -> Any:
        """The lines of JSON that a command prints, or its text when it was not asked for JSON."""
        ran = subprocess.run(
            [sys.executable, "-m", "api", *arguments],
            cwd=self._folder,
            env=self._environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        if "--json" not in arguments:
            return ran.stdout
        return [json.loads(line) for line in ran.stdout.splitlines()]


def draw(folder: Path) -> None:
    """Pictures of three kinds, some of them twice, and a few CT images that belong to studies."""
    rng = np.random.default_rng(7)
    for part, count in (("known", 48), ("more", 6), ("queries", 3)):
        for number in range(count):
            kind = number % 3
            place = folder / part / f"kind-{kind}" if part == "known" else folder / part
            place.mkdir(parents=True, exist_ok=True)
            picture(rng, kind).save(place / f"{number}.png")
    copied = folder / "known" / "kind-0" / "0.png"
    (folder / "more" / "copy.png").write_bytes(copied.read_bytes())
    Image.open(copied).save(folder / "more" / "saved-again.png", compress_level=1)
    (folder / "more" / "empty.dcm").write_bytes(b"")
    subprocess.run(
        [sys.executable, "-m", "api", "sample", folder / "sample"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (folder / "ct").mkdir()
    files = [path for path in sorted((folder / "sample" / "synthetic").rglob("*")) if is_ct(path)]
    smallest = sorted(files, key=lambda path: (path.stat().st_size, path))[:6]
    for number, path in enumerate(smallest):
        (folder / "ct" / f"{number}.dcm").write_bytes(path.read_bytes())


def is_ct(path: Path) -> bool:
    """Whether the file is a CT image."""
    if not path.is_file():
        return False
    try:
        header = pydicom.dcmread(path, specific_tags=["Modality", "Rows"])
    except pydicom.errors.InvalidDicomError:
        return False
    return header.get("Modality") == "CT" and "Rows" in header


def picture(rng: np.random.Generator, kind: int) -> Image.Image:
    """uint8 40 × 40: stripes, a disc, or clouds."""
    y, x = np.mgrid[-1:1:40j, -1:1:40j]
    if kind == 0:
        values = np.sin(8 * (x * rng.uniform(0.8, 1.2) + y * rng.uniform(-0.3, 0.3)))
    elif kind == 1:
        values = np.hypot(x - rng.uniform(-0.3, 0.3), y) < rng.uniform(0.3, 0.6)
    else:
        values = rng.normal(size=(40, 40))
    drawn = Image.fromarray((127 + 100 * values.clip(-1, 1)).astype(np.uint8))
    return drawn.filter(ImageFilter.GaussianBlur(2 if kind == 2 else 0.5))


def make_model(folder: Path) -> None:
    """An untrained network, as small as one can be."""
    from engine.model.checkpoint import save_checkpoint
    from engine.model.config import DarfConfig, HeadConfig, NetworkConfig, TowerConfig
    from engine.model.network import HashingNetwork
    from engine.model.preprocess import Preprocess

    torch.manual_seed(0)
    darf = DarfConfig(
        attention_heads=1, attention_head_dim=8, grid=2, cross_heads=1, cross_head_dim=8,
        cross_dim=16, width=16, depth=1, heads=1, last_blocks=1, global_dim=24, local_dim=24,
    )  # fmt: skip
    tower = TowerConfig("timm:test_resnet", taps=(1, 3))
    config = NetworkConfig(tower, darf, HeadConfig(bits=64, hidden=16))
    preprocess = Preprocess(size=32)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(
        folder,
        network,
        config,
        preprocess,
        (),
        {"note": "untrained"},
        dtype=torch.float16,
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(Path(sys.argv[1]).absolute())
