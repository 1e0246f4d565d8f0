"""Photographs the portal for the docs: docs/images/*.png, each of at most 150 KB.

    python -m bench.pictures [--folder build/pictures] [--out docs/images] [--only search --only …]

Draws the sample archive, which shows nobody, calibrates and indexes it in a folder that is kept, so
that a second run goes on from there; serves it on the loopback address; and opens its pages in
Debian's Chromium, which Node.js drives. Needs the packages chromium, nodejs and npm.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from engine.model.manifest import SHIPPED, read_manifest
from indexer.sample import write_queries

__all__ = ["MOST_BYTES", "PICTURES", "small"]

MOST_BYTES = 150_000
"""A picture is not larger, so that the docs stay light."""
PICTURES = ("search", "search-narrow", "compare", "study", "foreign", "archive")
"""Their names, which docs/images has with ``.png``."""
_ROOT = Path(__file__).parents[1]
_DRIVER = _ROOT / "tests" / "services" / "portal"
_COLOURS = (256, 192, 128, 96, 64, 48, 32)
_QUERIES = {
    "image": "query-chest-xray.dcm",
    "series": "query-chest-ct.dcm",
    "foreign": "query-landscape.png",
}
"""What is searched for, by what the driver calls it."""
_AS_IT_IS = 12
"""Of the most frequent colours: backgrounds, lines, buttons."""
_CHROMA = 24
"""Pixels whose channels differ by more are of the page, the others of a grey image or of text."""


def small(picture: bytes, most: int = MOST_BYTES) -> bytes:
    """A PNG in a palette of its own, of as many colours as fit into so many bytes.

    Raises:
        ValueError: it is larger even in the fewest colours.
    """
    with Image.open(BytesIO(picture)) as opened:
        image = opened.convert("RGB")
    for colours in _COLOURS:
        written = BytesIO()
        _reduced(image, colours).save(written, "PNG", optimize=True)
        if written.tell() <= most:
            return written.getvalue()
    raise ValueError(
        f"a picture of {image.width} × {image.height} takes {written.tell():,} bytes in "
        f"{_COLOURS[-1]} colours, and {most:,} are allowed; show less of the page"
    )


def _reduced(image: Image.Image, colours: int) -> Image.Image:
    """The image in so many colours: those of the page as they are, and a fourth of the others for
    what is not grey, however little that is. Images are grey, and would leave the page none."""
    pixels = np.asarray(image)
    coloured = np.ptp(pixels, axis=2) > _CHROMA
    counted = sorted(image.getcolors(image.width * image.height) or [], reverse=True)[:_AS_IT_IS]
    found = [channel for _, colour in counted for channel in colour]
    left = colours - _AS_IT_IS
    for mask, most in ((coloured, left // 4), (~coloured, left - left // 4)):
        if mask.any():
            part = Image.fromarray(pixels[mask][None])
            found += (part.quantize(most, Image.Quantize.MEDIANCUT).getpalette() or [])[: 3 * most]
    palette = Image.new("P", (1, 1))
    palette.putpalette(found)
    places = np.array(image.quantize(palette=palette, dither=Image.Dither.NONE))
    # Pillow takes a colour that is near, also where the very same one is there.
    for place, (_, colour) in enumerate(counted):
        places[(pixels == colour).all(axis=2)] = place
    reduced = Image.fromarray(places)
    reduced.putpalette(found)
    return reduced


def _programs() -> tuple[str, str, str]:
    """Chromium, Node.js and npm. Raises SystemExit: one is missing."""
    found = [shutil.which(name) for name in ("chromium", "node", "npm")]
    if None in found:
        raise SystemExit("chromium, node and npm are needed: apt install chromium nodejs npm")
    chromium, node, npm = map(str, found)
    return chromium, node, npm


def _precedent(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "api", *map(str, arguments)]


def _prepare(folder: Path) -> None:
    """Archive, model, index and queries in the folder: what is there already is kept, but for what
    is of a model that is shipped no more."""
    if not (folder / "archive").is_dir():
        subprocess.run(_precedent("sample", folder / "archive"), cwd=_ROOT, check=True)
    # pydicom's own files, which are not drawn, stay out.
    drawn = folder / "archive" / "synthetic"
    model, shipped = folder / "model", read_manifest(SHIPPED).fingerprint
    if model.is_dir() and read_manifest(model).fingerprint != shipped:
        shutil.rmtree(model)
        shutil.rmtree(folder / "data", ignore_errors=True)
    if not model.is_dir():
        command = _precedent("calibrate", drawn, "--out", model)
        subprocess.run(command, cwd=_ROOT, check=True)
    places = ("--data-dir", folder / "data", "--model", model)
    subprocess.run(_precedent("index", drawn, *places), cwd=_ROOT, check=True)
    write_queries(folder / "queries", seed=1)


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The address of a server of the folder's archive, without a slash at its end."""
    places = ("--data-dir", folder / "data", "--model", folder / "model")
    command = _precedent("serve", "--port", "0", *places)
    environment = {**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            said = server.stdout.readline()
            found = re.search(r"http://\S+(?=/)", said)
            if found is None:
                raise SystemExit(f"the server did not start: {said}")
            yield found[0]
        finally:
            server.terminate()
            server.wait(60)


def _photographed(folder: Path, address: str, to: Path) -> None:
    chromium, node, npm = _programs()
    if not (_DRIVER / "node_modules").is_dir():
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=_DRIVER, check=True)
    asked = {
        "browser": chromium,
        "base": address,
        **{name: str(folder / "queries" / file) for name, file in _QUERIES.items()},
        "pictures": str(to),
    }
    command = [node, "pictures.js", json.dumps(asked)]
    done = subprocess.run(command, cwd=_DRIVER, check=True, stdout=subprocess.PIPE, text=True)
    if complaints := json.loads(done.stdout)["complaints"]:
        raise SystemExit(f"the pages complain: {complaints}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=_ROOT / "build" / "pictures")
    parser.add_argument("--out", type=Path, default=_ROOT / "docs" / "images")
    parser.add_argument("--only", action="append", choices=PICTURES, help="may be repeated")
    given = parser.parse_args(arguments)
    folder, out = given.folder.resolve(), given.out.resolve()
    _programs()
    folder.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    _prepare(folder)
    with tempfile.TemporaryDirectory() as taken:
        with _served(folder) as address:
            _photographed(folder, address, Path(taken))
        for name in given.only or PICTURES:
            written = small((Path(taken) / f"{name}.png").read_bytes())
            (out / f"{name}.png").write_bytes(written)
            print(f"{out / name}.png: {len(written):,} bytes")


if __name__ == "__main__":
    main()
