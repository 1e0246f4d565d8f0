"""The precision that an index was made in is noted, followed, and said where it is another."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from engine.model.encoder import resolved
from engine.search.query import Query
from engine.search.recommend import Examples, Wanted
from indexer.archive import Archive
from indexer.reencoding.reencode import reencode
from indexer.sources.folder import FolderSource

OTHER = {"fp32": "bf16", "bf16": "fp32"}
"""What an index was not made in."""


@pytest.fixture
def images(site: Any, draw: Callable[[int], bytes]) -> Any:
    for number in range(4):
        site.write(f"{number}.png", draw(number))
    return site


def index_in(site: Any, precision: str) -> None:
    before = site.settings
    site.settings = before.model_copy(update={"precision": precision})
    site.index()
    site.settings = before


def found(archive: Archive, name: str) -> Any:
    with archive.query_reader() as reader:
        (image,) = reader.read([archive.settings.data_dir.parent / "files" / name])
    (answer,) = archive.engine.search([image.canvas], Query(k=2))
    return image, answer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_auto_follows_the_index(images: Any, precision: str) -> None:
    index_in(images, precision)
    with images.open() as archive:
        assert archive.encoder.precision == precision
        _, answer = found(archive, "1.png")
    assert (answer.evidence.precision, answer.evidence.index_precision) == (precision, precision)
    assert answer.hits[0].hamming == 0
    assert answer.hits[0].similarity == pytest.approx(1, abs=5e-4)  # stored as float16


@pytest.mark.slow
def test_what_is_added_later_follows_it_too(images: Any, draw: Callable[[int], bytes]) -> None:
    here = resolved("cpu", "auto")
    index_in(images, OTHER[here])
    images.write("later.png", draw(7))
    images.index()
    contents = images.contents()
    fresh = type(images)(images.root / "fresh", images.settings.model)
    for number, name in enumerate(["0.png", "1.png", "2.png", "3.png", "later.png"]):
        fresh.write(name, draw(7 if name == "later.png" else number))
    index_in(fresh, OTHER[here])
    assert {one[2:] for one in contents.values()} == {one[2:] for one in fresh.contents().values()}


def test_another_precision_is_said(images: Any, caplog: pytest.LogCaptureFixture) -> None:
    index_in(images, "fp32")
    asked = images.settings.model_copy(update={"precision": "bf16"})
    with caplog.at_level(logging.WARNING), Archive(asked) as archive:
        image, answer = found(archive, "1.png")
        seen = archive.engine.observed([image.canvas])
        basis = archive.engine.recommend(Examples(seen=seen), Wanted(k=1)).evidence
        nearest = archive.engine.search_like(image.id_in("default"), Query()).evidence
        liked = archive.engine.recommend(
            Examples(liked=(image.id_in("default"),)), Wanted(k=1)
        ).evidence
    assert "the index was made in fp32 and the setting precision is bf16" in caplog.text
    for evidence in (answer.evidence, basis):
        assert (evidence.precision, evidence.index_precision) == ("bf16", "fp32")
    # Nothing was encoded for these.
    assert (nearest.precision, nearest.index_precision) == ("fp32", "fp32")
    assert (liked.precision, liked.index_precision) == (None, "fp32")
    assert answer.hits[0].similarity > 0.99


@pytest.mark.slow
def test_an_index_that_notes_no_precision_is_used_as_before(images: Any) -> None:
    images.index()
    path = images.settings.data_dir / "index" / "collection.json"
    noted = json.loads(path.read_text())
    assert noted.pop("precision") == resolved("cpu", "auto")
    path.write_text(json.dumps(noted))
    with images.open() as archive:
        assert archive.store.collection.precision is None
        assert archive.encoder.precision == resolved("cpu", "auto")
        _, answer = found(archive, "1.png")
    assert answer.evidence.index_precision is None


@pytest.mark.slow
def test_an_archive_encoded_anew_notes_the_precision_of_now(images: Any, tmp_path: Any) -> None:
    from test_reencode import model

    index_in(images, "fp32")
    asked = images.settings.model_copy(update={"precision": "bf16"})
    reencode(asked, model(tmp_path / "new", 1))
    images.settings = images.settings.model_copy(update={"model": None})
    with images.open() as archive:
        assert archive.store.collection.precision == archive.encoder.precision == "bf16"
        archive.index(FolderSource([images.files]))
