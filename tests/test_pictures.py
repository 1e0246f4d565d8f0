"""Pictures of the docs: each is shown somewhere, each that is shown is there, and none is large."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.pictures import MOST_BYTES, PICTURES, small

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "images"
PAGES = [
    ROOT / "README.md",
    ROOT / "engine" / "weights" / "MODEL_CARD.md",
    *(ROOT / "docs").rglob("*.md"),
]
_SHOWN = re.compile(r"!\[(?P<words>[^\]]*)\]\((?P<file>[^)\s]+)\)")
_TAG = re.compile(r"<img\b[^>]*>")
_ATTRIBUTE = re.compile(r'(src|alt)="([^"]*)"')


def shown() -> list[tuple[Path, str]]:
    """Where each picture of the pages lies, and what is said of it for who does not see it."""
    found = []
    for page in PAGES:
        text = page.read_text()
        pairs = [(one["file"], one["words"]) for one in _SHOWN.finditer(text)]
        for tag in _TAG.findall(text):
            given = dict(_ATTRIBUTE.findall(tag))
            pairs.append((given["src"], given["alt"]))
        found += [((page.parent / file).resolve(), words) for file, words in pairs]
    return found


def test_each_picture_is_there_shown_and_small() -> None:
    files = {*FOLDER.iterdir()}
    assert {file for file, _ in shown()} == files
    assert {f"{name}.png" for name in PICTURES} < {file.name for file in files}
    assert [file.name for file in files if file.stat().st_size > MOST_BYTES] == []


def test_each_picture_is_told_in_words() -> None:
    told = [words for _, words in shown()]
    assert len(told) > len(PICTURES)
    assert [words for words in told if len(words.split()) < 5] == []


def test_the_readme_shows_the_page_before_its_two_commands() -> None:
    first = (ROOT / "README.md").read_text().partition("\n## ")[0]
    assert (
        first.index("docs/images/search.png") < first.index("make demo") < first.index("make test")
    )
    assert len(first.splitlines()) < 25


def test_a_picture_keeps_the_colours_of_the_page_beside_many_greys() -> None:
    pixels = np.full((60, 80, 3), 255, np.uint8)
    pixels[:, 30:] = np.random.default_rng(0).integers(0, 256, (60, 50, 1), np.uint8)
    pixels[:20, :20] = (11, 92, 102)
    written = BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    whole = small(written.getvalue())
    with Image.open(BytesIO(whole)) as reduced:
        seen = np.asarray(reduced.convert("RGB"))
    assert (seen[0, 0] == (11, 92, 102)).all()
    assert (seen[50, 0] == 255).all()
    assert np.abs(seen.astype(int) - pixels).max() <= 4
    assert len(small(written.getvalue(), len(whole) - 1)) < len(whole)
    with pytest.raises(ValueError, match="show less of the page"):
        small(written.getvalue(), 100)
