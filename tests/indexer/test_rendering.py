"""Which version of the reader made a picture is kept, told and renewed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dicom_files import dataset, encode
from sqlalchemy import select, update

from engine.errors import RefusalReason
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.search.query import Query
from engine.search.recommend import Examples, Wanted
from engine.store.base import Filter
from engine.store.snapshot import restore_snapshot, write_snapshot
from indexer.imaging.rendering import VERSION
from indexer.ledger.instances import Ledger, Refused
from indexer.ledger.schema import instances
from indexer.overview import overview
from indexer.reencoding.reencode import go_back, reencode
from indexer.sources.base import Discovered

NOW = str(VERSION)


@pytest.fixture
def images(site: Any, draw: Callable[[int], bytes]) -> Any:
    """A site with four pictures, and a file that is none."""
    for number in range(4):
        site.write(f"{number}.png", draw(number))
    site.write("notes.txt", b"no image")
    return site


@pytest.fixture
def another_model(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(tmp_path / "another", network, config, preprocess, (), {})
    return tmp_path / "another"


def as_before(images: Any) -> None:
    """Ledger and index as a version left them that kept no rendering."""
    with images.database() as database, database.begin() as connection:
        connection.execute(update(instances).values(rendering=None))
    with images.open() as archive:
        ids = [point.id for point in archive.store.scroll(Filter())]
        points = archive.store.get(ids, with_z=True)
        archive.store.upsert([replace(point, rendering=None) for point in points])
        archive.store.flush()


def test_it_is_kept_in_ledger_and_index(images: Any) -> None:
    images.index()
    assert {point.rendering for point in images.points().values()} == {NOW}
    found = overview(images.settings)
    assert (found.rendering, found.rendered_otherwise) == (NOW, 0)


def test_what_another_version_rendered_is_counted_and_told(images: Any) -> None:
    images.index()
    as_before(images)
    assert overview(images.settings).rendered_otherwise == 4
    with images.open() as archive, archive.query_reader() as reader:
        (image,) = reader.read([images.files / "0.png"])
        (answer,) = archive.engine.search([image.canvas], Query(k=3))
        cases = archive.engine.recommend(Examples(liked=(image.id_in("default"),)), Wanted(k=2))
    assert (answer.evidence.rendering, answer.evidence.rendered_otherwise) == (NOW, 3)
    assert (cases.evidence.rendering, cases.evidence.rendered_otherwise) == (NOW, 2)


def test_indexed_again_it_equals_a_fresh_one(images: Any, new_site: Callable[..., Any]) -> None:
    images.index()
    as_before(images)
    unchanged = images.index()
    assert (unchanged.indexed, unchanged.unchanged) == (0, 4)
    renewed = images.index(again=True)
    assert renewed.indexed == 4
    assert overview(images.settings).rendered_otherwise == 0
    assert {point.rendering for point in images.points().values()} == {NOW}
    fresh = new_site()
    for path in images.files.iterdir():
        fresh.write(path.name, path.read_bytes())
    fresh.index()
    # Points of rasters are named by their content, so the two archives have the same ids.
    theirs = {one: found[2:] for one, found in fresh.contents().items()}
    assert {one: found[2:] for one, found in images.contents().items()} == theirs


def test_what_another_version_refused_is_tried_again_once(images: Any) -> None:
    first = images.index()
    assert (first.refused, first.retried) == ({"not-an-image": 1}, 0)
    as_before(images)
    again = images.index()
    assert (again.refused, again.retried, again.unchanged) == ({"not-an-image": 1}, 1, 4)
    assert images.index().retried == 0


def found(name: str) -> Discovered:
    return Discovered(f"file:///{name}", 1, 1)


@pytest.mark.parametrize(
    ("reason", "is_tried"),
    [
        ("unsupported-transfer-syntax", True),
        ("unsupported-pixels", True),
        ("damaged", True),
        ("truncated", True),
        ("not-an-image", True),
        ("no-pixels", True),
        ("too-large", False),
        ("too-small", False),
        ("empty-file", False),
        ("nested-too-deep", False),
    ],
)
def test_only_what_a_version_may_cure_is_tried_again(
    images: Any, reason: str, is_tried: bool
) -> None:
    with images.database() as database:
        ledger = Ledger(database.of("default"), "1")
        run = ledger.begin_run("folder", "")
        ledger.discover(run, "folder", [found("a")])
        ledger.finish(run, [Refused("file:///a", RefusalReason(reason), "it is so")], "")
        for rendering, pending in (("1", 0), ("2", int(is_tried))):
            ledger = Ledger(database.of("default"), rendering)
            assert ledger.count_curable("folder") == pending
            run = ledger.begin_run("folder", "")
            ledger.discover(run, "folder", [found("a")])
            assert ledger.pending_count(run) == pending


@pytest.mark.slow
def test_a_snapshot_carries_it(images: Any, tmp_path: Path) -> None:
    images.index()
    with images.open() as archive:
        write_snapshot(archive.store, tmp_path / "saved", lambda *_: None)
        ids = [point.id for point in archive.store.scroll(Filter())]
        archive.store.delete(Filter())
        restore_snapshot(tmp_path / "saved", archive.store, lambda *_: None)
        assert {point.rendering for point in archive.store.get(ids)} == {NOW}


@pytest.mark.slow
def test_its_own_model_renews_the_pictures_beside_the_index_in_force(images: Any) -> None:
    images.index()
    before = images.contents()
    as_before(images)
    report = reencode(images.settings, images.settings.model)
    assert (report.encoded, report.previous) == (4, "index")
    assert report.index == f"index-{report.model}"
    assert overview(images.settings).rendered_otherwise == 0
    assert images.contents() == before
    # Done once, it is not done again; renewed again, the two take turns.
    assert reencode(images.settings, images.settings.model).encoded == 0
    as_before(images)
    assert reencode(images.settings, images.settings.model).encoded == 4
    assert overview(images.settings).rendered_otherwise == 0
    assert images.contents() == before


@pytest.mark.slow
def test_an_archive_encoded_anew_has_the_version_of_now(images: Any, another_model: Path) -> None:
    images.index()
    as_before(images)
    assert overview(images.settings).rendered_otherwise == 4
    reencode(images.settings, another_model)
    follows = images.settings.model_copy(update={"model": None})
    assert overview(follows).rendered_otherwise == 0
    # The index that was kept still has the pictures of before.
    go_back(follows)
    assert overview(follows).rendered_otherwise == 4


# What of the reading is kept besides


def drawn(seed: int) -> np.ndarray:
    """uint8 (64, 64) in which no two directions are alike."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    disc = np.hypot(x - 0.3, y + 0.4) < 0.3
    return (80 + 50 * x + 30 * y + 60 * disc + 5 * seed).astype(np.uint8)


def stored(name: str, pixels: np.ndarray, orientation: list[float]) -> bytes:
    """A CT slice whose rows and columns run in these directions."""
    whole = np.ascontiguousarray(pixels)
    lies = {"Modality": "CT", "ImageOrientationPatient": orientation}
    return encode(dataset(whole, SOPInstanceUID=f"1.2.3.{name}", **lies))


def test_a_slice_that_lies_upside_down_is_found_by_its_upright_twin(site: Any) -> None:
    picture = drawn(3)
    site.write("upright.dcm", stored("1", picture, [1, 0, 0, 0, 1, 0]))
    site.write("turned.dcm", stored("2", picture[::-1, ::-1], [-1, 0, 0, 0, -1, 0]))
    site.index()
    upright, turned = site.ids_of(site.files / "upright.dcm", site.files / "turned.dcm")
    with site.open() as archive:
        (hit,) = archive.engine.search_like(upright, Query(k=1)).hits
    assert (hit.id, hit.hamming) == (turned, 0)
    assert hit.similarity > 0.999
    # What people are shown stays as the file has it.
    thumbnails = site.thumbnails()
    assert thumbnails[turned] != thumbnails[upright]


@pytest.mark.slow
def test_a_setting_that_changes_pictures_is_part_of_the_version(site: Any) -> None:
    site.write("turned.dcm", stored("2", drawn(3), [-1, 0, 0, 0, -1, 0]))
    site.index()
    assert overview(site.settings).rendered_otherwise == 0
    asked = site.settings.indexing.model_copy(update={"orient": False})
    site.settings = site.settings.model_copy(update={"indexing": asked})
    assert overview(site.settings).rendered_otherwise == 1
    before = site.contents()
    site.index(again=True)
    assert overview(site.settings).rendered_otherwise == 0
    assert site.contents() != before


def test_what_decoded_a_file_and_what_is_missing_is_in_the_ledger(site: Any) -> None:
    frames = [drawn(seed) for seed in range(3)]
    content = encode(dataset(np.stack(frames)))
    site.write("cut.dcm", content[: -frames[0].nbytes // 2])
    site.index()
    c = instances.c
    with site.database() as database, database.begin(read=True) as connection:
        row = connection.execute(select(c.state, c.decoder, c.partial)).one()
    assert row == ("done", "native", "frame 2: truncated")
    assert len(site.points()) == 2
