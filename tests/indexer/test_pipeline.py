"""An archive becomes points: every file accounted for, and the index says what the files say."""

import base64
import io
import json
import os
import random
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge
from dicom_files import (
    SAMPLES,
    dataset,
    element,
    encode,
    image_elements,
    nested_defined,
    nested_undefined,
    part10,
    png_of_zeros,
)
from numpy.typing import NDArray
from PIL import Image

from engine.records import RECORD_FIELDS
from engine.search.query import Query
from engine.store.base import Filter
from indexer.imaging.deidentify import pseudonym
from indexer.imaging.thumbnails import thumbnail_name
from indexer.pipeline.run import IndexingReport, Progress
from indexer.sample import write_queries, write_sample

Draw = Callable[[int], bytes]


def seen(report: IndexingReport) -> int:
    return report.indexed + report.unchanged + sum(report.refused.values())


def dicom(pixels: NDArray[np.uint8], uid: str, **elements: Any) -> bytes:
    uids = {
        "SOPInstanceUID": uid,
        "StudyInstanceUID": uid.rsplit(".", 1)[0],
        "SeriesInstanceUID": uid + ".7",
    }
    return encode(dataset(pixels, Modality="CT", **{**uids, **elements}))


def picture(seed: int, side: int = 64) -> NDArray[np.uint8]:
    """uint8 (side, side): a bright disc somewhere over noise."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    disc = np.hypot(x - rng.uniform(0, side), y - rng.uniform(0, side)) < rng.uniform(8, 30)
    return (disc * 150.0 + rng.uniform(0, 80, (side, side))).astype(np.uint8)


def truncated_jpeg() -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(0, 128)).save(out, "JPEG", quality=95)
    return out.getvalue()[: out.tell() // 2]


# The hostile folder.

INVALID = os.fsdecode(b"caf\xe9 \xff.png")
GOOD = (
    'ein "Bild" it\'s  画像 №1 `$(x)`.png',
    "line\nbreak.png",
    INVALID,
    "twice-1.png",
    "twice-2.png",
    "inner/good.dcm",
    "no-suffix",
)
BAD = {
    "0-bytes.dcm": "empty-file",
    "text.dcm": "not-an-image",
    "1x1.png": "too-small",
    "30000x30000.png": "too-large",
    "half.jpg": "truncated",
    "half.dcm": "truncated",
    "terabytes.dcm": "too-large",
    "many-terabytes.dcm": "too-large",
    "nested-undefined.dcm": "nested-too-deep",
    "nested-defined.dcm": "nested-too-deep",
    "no-picture.dcm": "no-pixels",
    "pipe": "unreadable",
    "broken-link.dcm": "unreadable",
    "link-to-itself.dcm": "unreadable",
    "inner/noise.png": "damaged",
}


def write_hostile(site: Any, draw: Draw) -> None:
    for number, name in enumerate(GOOD):
        site.write(name, draw(number))
    site.write("twice-2.png", (site.files / "twice-1.png").read_bytes())
    site.write("inner/good.dcm", dicom(picture(9), "1.2.3.9"))
    site.write("0-bytes.dcm", b"")
    site.write("text.dcm", b"Dear colleague, this is no image.\n" * 20)
    site.write("1x1.png", png_of_zeros(1, 1))
    site.write("30000x30000.png", png_of_zeros(30_000, 30_000))
    site.write("half.jpg", truncated_jpeg())
    site.write("half.dcm", dicom(picture(8), "1.2.3.8")[:-1000])
    for name, frames in (("terabytes.dcm", 1000), ("many-terabytes.dcm", 99_999_999)):
        head = image_elements(65_535, 65_535, frames)
        site.write(name, part10(*head, element(0x7FE00010, b"OW", b"\0" * 64, 0xFFFFFFFE)))
    site.write("nested-undefined.dcm", nested_undefined(10_000))
    site.write("nested-defined.dcm", nested_defined(10_000))
    site.write("no-picture.dcm", encode(dataset()))
    os.mkfifo(site.files / "pipe")
    (site.files / "broken-link.dcm").symlink_to("gone.dcm")
    (site.files / "link-to-itself.dcm").symlink_to("link-to-itself.dcm")
    (site.files / "inner" / "up").symlink_to(site.files)
    site.write("inner/noise.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4)


@pytest.fixture(scope="module")
def hostile(new_site: Callable[..., Any], draw: Draw) -> tuple[Any, IndexingReport]:
    site = new_site()
    write_hostile(site, draw)
    return site, site.index()


def test_a_hostile_folder_is_accounted_for_file_by_file(
    hostile: tuple[Any, IndexingReport],
) -> None:
    site, report = hostile
    assert site.reasons() == {site.files / name: reason for name, reason in BAD.items()}
    assert report.indexed == len(GOOD)
    assert report.unchanged == 0
    assert seen(report) == len(GOOD) + len(BAD)
    counts: dict[str, int] = {}
    for reason in BAD.values():
        counts[reason] = counts.get(reason, 0) + 1
    assert report.refused == counts
    # Two names, one picture.
    assert (report.points, report.duplicates) == (len(GOOD) - 1, 1)
    with site.open() as archive:
        assert archive.ledger.counts() == {"done": len(GOOD), "refused": len(BAD)}
        ids = [point.id for point in archive.store.scroll(Filter())]
        paths = set(archive.paths(ids).values())
    assert paths == {site.files / name for name in GOOD if name != "twice-2.png"}
    assert set(site.thumbnails()) == set(ids)


def test_each_refusal_says_in_one_line_what_was_wrong(
    hostile: tuple[Any, IndexingReport],
) -> None:
    site, _ = hostile
    details = {path.name: one.detail for path, one in site.refusals().items()}
    assert "30000 × 30000" in details["30000x30000.png"]
    assert "65535 × 65535" in details["terabytes.dcm"]
    assert "0 bytes" in details["0-bytes.dcm"]
    assert "not a regular file" in details["pipe"]
    assert all(detail and "\n" not in detail for detail in details.values())


@pytest.mark.slow
def test_the_hostile_folder_a_second_time_changes_nothing(
    hostile: tuple[Any, IndexingReport],
) -> None:
    site, first = hostile
    before, thumbnails = site.contents(), site.thumbnails()
    report = site.index()
    assert (report.indexed, report.points, report.duplicates) == (0, 0, 0)
    assert report.unchanged == len(GOOD)
    assert report.refused == first.refused
    assert site.contents() == before
    assert site.thumbnails() == thumbnails
    # Asked to, it reads the refused ones again and comes to the same verdicts.
    again = site.index(retry_refused=True)
    assert (again.indexed, again.unchanged, again.refused) == (0, len(GOOD), first.refused)
    assert site.contents() == before


def test_a_file_of_zeros_takes_no_minutes(new_site: Callable[..., Any], draw: Draw) -> None:
    """What a copy that was cut off leaves where its room was set aside beforehand."""
    site = new_site(reader_seconds=5.0)
    site.write("zeros.dcm", bytes(4 * 1024**2))
    site.write("good.png", draw(1))
    assert site.index().refused == {"not-an-image": 1}


# The ordinary archive.


@pytest.fixture(scope="module")
def sample(new_site: Callable[..., Any]) -> tuple[Any, IndexingReport]:
    site = new_site(shipped=True, batch_size=32)
    write_sample(site.files, patients=3, include_pydicom=False)
    at = datetime(2024, 5, 1, 12, tzinfo=UTC)
    return site, site.index(now=lambda: at)


@pytest.mark.slow
def test_a_sample_becomes_points_with_what_its_headers_say(
    sample: tuple[Any, IndexingReport],
) -> None:
    site, report = sample
    files = [path for path in site.files.rglob("*") if path.is_file()]
    assert seen(report) == len(files)
    # The report, a PDF and the sample's own manifest carry no picture.
    assert report.refused == {"no-pixels": 2, "not-an-image": 1}
    assert report.indexed == len(files) - 3
    points = site.points()
    assert len(points) == report.points == report.indexed
    modalities = [point.record.modality for point in points.values()]
    assert {modality: modalities.count(modality) for modality in set(modalities)} == {
        "CR": 2,
        "CT": 37,
    }
    assert {point.record.source for point in points.values()} == {"folder"}
    assert {point.record.labels for point in points.values()} == {()}
    assert {point.indexed_at for point in points.values()} == {"2024-05-01T12:00:00+00:00"}
    patients = {point.record.patient for point in points.values()}
    assert len(patients) == 3
    key = (site.settings.data_dir / "pseudonym.key").read_bytes()
    assert pseudonym("", "SAMPLE-001", key) in patients


def test_every_point_has_a_thumbnail_no_larger_than_set(
    sample: tuple[Any, IndexingReport],
) -> None:
    site, _ = sample
    thumbnails = site.thumbnails()
    assert set(thumbnails) == set(site.points())
    longer = []
    for point_id, jpeg in thumbnails.items():
        assert (site.settings.data_dir / "thumbnails" / thumbnail_name(point_id)).is_file()
        with Image.open(io.BytesIO(jpeg)) as image:
            assert image.format == "JPEG"
            image.load()
            longer.append(max(image.size))
    assert max(longer) == site.settings.indexing.thumbnail_side


def test_a_second_run_changes_nothing(sample: tuple[Any, IndexingReport]) -> None:
    site, first = sample
    before, thumbnails = site.contents(), site.thumbnails()
    second = site.index()
    assert (second.indexed, second.points, second.duplicates) == (0, 0, 0)
    assert second.unchanged == first.indexed
    assert second.refused == first.refused
    assert site.contents() == before
    assert site.thumbnails() == thumbnails


def test_an_indexed_image_finds_itself_first(sample: tuple[Any, IndexingReport]) -> None:
    site, _ = sample
    files = sorted(site.files.rglob("*.dcm"))[:6]
    with site.open() as archive, archive.query_reader() as reader:
        canvases = [image.canvas for image in reader.read(files)]
        answers = archive.engine.search(canvases, Query(k=1, exact=True))
        found = [archive.paths([answer.hits[0].id])[answer.hits[0].id] for answer in answers]
    assert found == files
    assert [answer.hits[0].hamming for answer in answers] == [0] * len(files)


def test_progress_ends_where_the_report_does(site: Any, draw: Draw) -> None:
    for number in range(7):
        site.write(f"{number}.png", draw(number))
    site.write("bad.png", b"")
    told: list[Progress] = []
    report = site.index(progress=told.append)
    assert told[-1] == Progress("index", total=8, done=8, points=7, refused=1)
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert (report.indexed, report.refused) == (7, {"empty-file": 1})


@pytest.mark.slow
def test_small_batches_and_frequent_commits_give_the_same_index(
    new_site: Callable[..., Any], sample: tuple[Any, IndexingReport]
) -> None:
    """How the work is cut must not show in what comes out."""
    one, _ = sample
    other = new_site(shipped=True, batch_size=5, commit_every=1)
    other.settings.data_dir.mkdir()
    shutil.copy(one.settings.data_dir / "pseudonym.key", other.settings.data_dir)
    other.index(paths=[one.files], now=lambda: datetime(2024, 5, 1, 12, tzinfo=UTC))
    mine, theirs = one.contents(), other.contents()
    assert mine.keys() == theirs.keys()
    for point_id, (record, at, code, z) in mine.items():
        other_record, other_at, other_code, other_z = theirs[point_id]
        assert (record, at, code) == (other_record, other_at, other_code)
        assert np.allclose(
            np.frombuffer(z, np.float32), np.frombuffer(other_z, np.float32), atol=2e-3
        )


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_all_of_pydicoms_files_are_indexed_or_refused(site: Any) -> None:
    files = [path for path in SAMPLES.rglob("*") if path.is_file()]
    report = site.index(paths=[SAMPLES])
    assert seen(report) == len(files)
    assert report.indexed >= 60
    assert sum(report.refused.values()) >= 20
    # None of them may kill or stall a reader.
    assert not {"reader-died", "too-slow", "unreadable"} & set(report.refused)
    with site.open() as archive:
        assert "pending" not in archive.ledger.counts()
    before = site.contents()
    assert len(before) == report.points
    again = site.index(paths=[SAMPLES])
    assert again.refused == report.refused
    assert (again.indexed, again.unchanged, again.points) == (0, report.indexed, 0)
    assert site.contents() == before
    assert set(site.thumbnails()) == set(before)


# What changes between two runs.


def test_a_file_changed_in_place_has_its_new_picture_only(site: Any, draw: Draw) -> None:
    changed = site.write("changed.png", draw(1))
    site.write("kept.png", draw(2))
    site.index()
    (old,) = site.ids_of(changed)
    site.write("changed.png", draw(3))
    report = site.index()
    (new,) = site.ids_of(changed)
    assert new != old
    assert (report.indexed, report.unchanged, report.points) == (1, 1, 1)
    assert old not in site.points()
    assert (
        set(site.thumbnails()) == set(site.points()) == {new, *site.ids_of(site.files / "kept.png")}
    )
    assert changed_picture(site, changed, new)


def changed_picture(site: Any, path: Path, point_id: str) -> bool:
    """Whether the image in ``path`` finds the point as its own picture."""
    with site.open() as archive, archive.query_reader() as reader:
        (image,) = reader.read([path])
        (answer,) = archive.engine.search([image.canvas], Query(k=1, exact=True))
    return bool(answer.hits[0].id == point_id and answer.hits[0].similarity > 0.999)


@pytest.mark.slow
def test_a_dicom_file_changed_in_place_keeps_its_id_and_shows_the_new_picture(site: Any) -> None:
    path = site.write("ct.dcm", dicom(picture(1), "1.2.3.1", BodyPartExamined="HEAD"))
    site.write("other.dcm", dicom(picture(2), "1.2.3.2"))
    site.index()
    (point_id,) = site.ids_of(path)
    before, thumbnail = site.contents()[point_id], site.thumbnails()[point_id]
    site.write("ct.dcm", dicom(255 - picture(5), "1.2.3.1", BodyPartExamined="CHEST"))
    report = site.index()
    assert (report.indexed, report.unchanged, report.refused) == (1, 1, {})
    assert site.ids_of(path) == [point_id]
    assert site.points()[point_id].record.body_part == "CHEST"
    assert site.contents()[point_id][3] != before[3]
    assert site.thumbnails()[point_id] != thumbnail


@pytest.mark.slow
def test_a_file_damaged_after_it_was_indexed_leaves_the_index(site: Any, draw: Draw) -> None:
    path = site.write("scan.png", draw(1))
    kept = site.write("kept.png", draw(2))
    site.index()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    report = site.index()
    assert (report.indexed, report.unchanged) == (0, 1)
    assert list(report.refused.values()) == [1]
    assert set(site.points()) == set(site.thumbnails()) == set(site.ids_of(kept))
    assert site.ids_of(path) == []
    # Repaired, it comes back.
    path.write_bytes(content)
    report = site.index()
    assert (report.indexed, report.refused) == (1, {})
    assert set(site.points()) == set(site.ids_of(path, kept))


@pytest.mark.slow
def test_a_new_label_reaches_the_index(site: Any, draw: Draw) -> None:
    site.write("chest/1.png", draw(1))
    site.write("head/2.png", draw(2))
    site.index()
    assert {point.record.labels for point in site.points().values()} == {()}
    report = site.index(labels=True)
    assert (report.indexed, report.unchanged) == (2, 0)
    assert {point.record.labels for point in site.points().values()} == {("chest",), ("head",)}
    assert site.index(labels=True).unchanged == 2


@pytest.mark.slow
def test_a_new_label_reaches_an_image_that_has_two_names(site: Any, draw: Draw) -> None:
    site.write("chest/1.png", draw(1))
    site.write("chest/2.png", draw(1))
    site.index()
    site.index(labels=True)
    assert [point.record.labels for point in site.points().values()] == [("chest",)]


@pytest.mark.slow
def test_an_image_under_two_names_is_one_point_until_both_are_deleted(
    site: Any, draw: Draw
) -> None:
    first, second = site.write("a/1.png", draw(1)), site.write("b/2.png", draw(1))
    report = site.index()
    assert (report.indexed, report.points, report.duplicates) == (2, 1, 1)
    (point_id,) = site.points()
    assert site.ids_of(first, second) == [point_id, point_id]
    with site.open() as archive:
        assert archive.delete([first.as_uri()]) == 0
    assert set(site.points()) == set(site.thumbnails()) == {point_id}
    with site.open() as archive:
        assert archive.paths([point_id]) == {point_id: second}
        assert archive.delete([second.as_uri()]) == 1
        assert archive.ledger.counts() == {}
    assert site.points() == site.thumbnails() == {}


@pytest.mark.slow
def test_one_of_two_names_gets_another_picture(site: Any, draw: Draw) -> None:
    first, second = site.write("1.png", draw(1)), site.write("2.png", draw(1))
    site.index()
    (old,) = site.points()
    first.write_bytes(draw(2))
    site.index()
    (new,) = site.ids_of(first)
    assert site.ids_of(second) == [old]
    assert set(site.points()) == set(site.thumbnails()) == {old, new}


@pytest.mark.slow
def test_both_of_two_names_get_other_pictures(site: Any, draw: Draw) -> None:
    first, second = site.write("1.png", draw(1)), site.write("2.png", draw(1))
    site.index()
    first.write_bytes(draw(2))
    second.write_bytes(draw(3))
    site.index()
    expected = set(site.ids_of(first, second))
    assert len(expected) == 2
    assert set(site.points()) == set(site.thumbnails()) == expected


@pytest.mark.slow
def test_two_files_that_change_places_are_both_still_there(site: Any, draw: Draw) -> None:
    first, second = site.write("1.png", draw(1)), site.write("2.png", draw(2))
    site.index()
    before = site.ids_of(first, second)
    first.write_bytes(draw(2))
    second.write_bytes(draw(1))
    report = site.index()
    assert (report.indexed, report.refused) == (2, {})
    assert site.ids_of(second, first) == before
    assert set(site.points()) == set(site.thumbnails()) == set(before)


@pytest.mark.slow
@pytest.mark.parametrize(("kept", "moved"), [("1.png", "2.png"), ("2.png", "1.png")])
def test_a_picture_that_moves_to_another_name_is_still_there(
    site: Any, draw: Draw, kept: str, moved: str
) -> None:
    """As where the newest image is always written under the same name."""
    site.write(kept, draw(1))
    site.index()
    (site.files / kept).rename(site.files / moved)
    site.write(kept, draw(2))
    report = site.index()
    assert (report.indexed, report.refused) == (2, {})
    expected = set(site.ids_of(site.files / kept, site.files / moved))
    assert len(expected) == 2
    assert set(site.points()) == set(site.thumbnails()) == expected


@pytest.mark.slow
def test_a_file_that_was_renamed_is_found_at_its_new_place(site: Any, draw: Draw) -> None:
    old = site.write("a.png", draw(1))
    site.index()
    new = old.rename(site.files / "b.png")
    assert site.index().duplicates == 1
    with site.open() as archive:
        assert list(archive.paths(list(site_ids(archive))).values()) == [new]


def site_ids(archive: Any) -> Iterator[str]:
    return (point.id for point in archive.store.scroll(Filter()))


@pytest.mark.slow
def test_of_two_files_with_one_uid_the_first_wins(site: Any) -> None:
    first = site.write("a/1.dcm", dicom(picture(1), "1.2.3.1", BodyPartExamined="CHEST"))
    second = site.write("b/1.dcm", dicom(picture(2), "1.2.3.1", BodyPartExamined="HEAD"))
    report = site.index()
    assert (report.indexed, report.refused) == (1, {"conflicting-uid": 1})
    assert site.reasons() == {second: "conflicting-uid"}
    (detail,) = (one.detail for one in site.refusals().values())
    assert "1.2.3.1" in detail
    assert "\n" not in detail
    (point,) = site.points().values()
    assert point.record.body_part == "CHEST"
    assert site.ids_of(first) == [point.id]
    again = site.index()
    assert (again.indexed, again.unchanged, again.refused) == (0, 1, {"conflicting-uid": 1})
    # Where the first one is out of the index, the second has its chance.
    first.unlink()
    with site.open() as archive:
        archive.delete([first.as_uri()])
    last = site.index()
    assert (last.indexed, last.refused) == (1, {})
    assert [point.record.body_part for point in site.points().values()] == ["HEAD"]


def test_the_first_wins_also_when_both_come_in_other_batches(
    new_site: Callable[..., Any], draw: Draw
) -> None:
    site = new_site(batch_size=2, commit_every=1)
    site.write("a.dcm", dicom(picture(1), "1.2.3.1", BodyPartExamined="CHEST"))
    for number in range(9):
        site.write(f"b{number}.png", draw(number))
    site.write("c.dcm", dicom(picture(2), "1.2.3.1", BodyPartExamined="HEAD"))
    site.write("d.png", draw(0))
    report = site.index()
    assert (report.indexed, report.duplicates) == (11, 1)
    assert site.reasons() == {site.files / "c.dcm": "conflicting-uid"}
    assert len(site.points()) == 10


@pytest.mark.slow
def test_without_its_index_folder_everything_is_indexed_again(site: Any, draw: Draw) -> None:
    for number in range(3):
        site.write(f"{number}.png", draw(number))
    site.write("bad.png", b"")
    first = site.index()
    before = site.points().keys()
    shutil.rmtree(site.settings.data_dir / "index")
    (site.files / "2.png").unlink()
    again = site.index()
    assert (again.indexed, again.unchanged, again.points) == (2, 0, 2)
    assert again.refused == first.refused
    assert site.points().keys() == site.thumbnails().keys() < before


@pytest.mark.slow
def test_without_its_ledger_nothing_is_there_twice(site: Any, draw: Draw) -> None:
    for number in range(3):
        site.write(f"{number}.png", draw(number))
    site.index()
    before = site.points().keys()
    for path in site.settings.data_dir.glob("ledger.sqlite*"):
        path.unlink()
    assert site.index().indexed == 3
    assert site.points().keys() == before


def test_a_data_folder_inside_the_archive_is_no_part_of_it(site: Any, draw: Draw) -> None:
    inside = site.files / "precedent-data"
    site.settings = site.settings.model_copy(update={"data_dir": inside})
    for number in range(3):
        site.write(f"{number}.png", draw(number))
    for unchanged in (0, 3):
        report = site.index()
        assert (report.unchanged, seen(report), report.refused) == (unchanged, 3, {})


def test_frames_of_one_instance_are_points_of_their_own(site: Any) -> None:
    frames = np.stack([picture(seed) for seed in range(12)])
    path = site.write("cine.dcm", dicom(frames, "1.2.3.1"))
    report = site.index()
    assert (report.indexed, report.points) == (1, 8)
    records = [point.record for point in site.points().values()]
    assert len({record.frame for record in records}) == 8
    assert {record.sop for record in records} == {"1.2.3.1"}
    # Fewer frames now: those that went leave the index.
    path.write_bytes(dicom(frames[:2], "1.2.3.1"))
    site.index()
    assert {point.record.frame for point in site.points().values()} == {0, 1}
    assert site.thumbnails().keys() == site.points().keys()


# The order of an archive does not show in its answers.


def shuffled_copy(files: list[Path], folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    chance.shuffle(files)
    for number, path in enumerate(files):
        name = f"{chance.randrange(16):x}/{number:04}-{chance.randrange(10**6)}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


@pytest.mark.slow
def test_a_shuffled_archive_gives_the_same_answers(
    new_site: Callable[..., Any], sample: tuple[Any, IndexingReport], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(6):
        # Equals: the same picture in files of other bytes. Their order must not be chance.
        for level in range(8):
            pixels = picture(number)
            Image.fromarray(pixels).save(source / f"{number}-{level}.png", compress_level=level)
    files = sorted(path for path in sample[0].files.rglob("*.dcm") if path.is_file())[::2]
    queries = [*write_queries(tmp_path / "queries")[:2], source / "0-1.png", source / "5-7.png"]
    answers = []
    for seed in (1, 2):
        site = new_site(shipped=True, batch_size=8)
        shuffled_copy([*files, *sorted(source.iterdir())], site.files, seed)
        site.index()
        with site.open() as archive, archive.query_reader() as reader:
            canvases = [image.canvas for image in reader.read(queries)]
            answers.append(
                [
                    [(hit.id, hit.similarity, hit.hamming) for hit in answer.hits]
                    for order in ("content", "hamming")
                    for k in (5, 30)
                    for exact in (False, True)
                    for answer in archive.engine.search(
                        canvases, Query(k, order=order, exact=exact)
                    )
                ]
            )
    assert answers[0] == answers[1]
    assert [len(hits) for hits in answers[0][: len(queries)]] == [5] * len(queries)
    assert any(len({hit[1:] for hit in hits}) < len(hits) for hits in answers[0]), "no equals"


# Nothing of a patient.

PLANTED = {
    "PatientName": "Quixotebert^Zyxwanda",
    "PatientID": "MRN-77351-ZQ",
    "OtherPatientIDs": "OTHERIDENT-4417",
    "PatientBirthDate": "19610223",
    "PatientBirthName": "Vorname^Mädchenhaft",
    "PatientAddress": "Plumtreelane 17",
    "PatientTelephoneNumbers": "+4930555017342",
    "AccessionNumber": "ACC-90210-JJ",
    "StudyID": "STUDYIDENT-8812",
    "StudyDate": "20190817",
    "StudyTime": "134759",
    "InstitutionName": "Hospital Quendelmoor",
    "ReferringPhysicianName": "Refererbert^Doctor",
    "OperatorsName": "Operatorix^Anna",
    "StudyDescription": "Kontrolle nach Schlüsselbeinfraktur Wunderlich",
    "SeriesDescription": "Serie für Frau Wunderlich",
    "ImageComments": "comment: call Wunderlich back",
    "PatientComments": "afraid of needles, says Wunderlich",
    "AdditionalPatientHistory": "historywunderlich",
    "ProtocolName": "PROTO-WUNDERLICH",
    "DeviceSerialNumber": "SN-5551234-Q",
    "StationName": "STATION-QUENDEL",
    "BodyPartExamined": "ZYXWANDA",
    "Manufacturer": "Quixotebert Zyxwanda",
    "ViewPosition": "MRN_77351_ZQ",
}
PRIVATE = "PRIVATEQUIXOTEBERT"
WORDS = (
    *("quixotebert", "zyxwanda", "77351", "otherident", "19610223", "mädchenhaft", "plumtree"),
    *("555017342", "acc-90210", "studyident", "20190817", "134759", "quendel", "refererbert"),
    *("operatorix", "wunderlich", "schlüsselbein", "needles", "5551234"),
)


def planted(uid: str, pixels: NDArray[np.uint8]) -> Any:
    made = dataset(
        pixels,
        SpecificCharacterSet="ISO_IR 192",
        Modality="CT",
        PatientSex="F",
        SOPInstanceUID=uid,
        StudyInstanceUID="1.2.840.99.1",
        SeriesInstanceUID="1.2.840.99.2",
        **PLANTED,
    )
    block = made.private_block(0x0011, "QUIXOTEBERT CREATOR", create=True)
    block.add_new(0x01, "LO", PRIVATE)
    block.add_new(0x02, "UN", PRIVATE.encode())
    return made


def forms(word: str) -> set[bytes]:
    """The bytes in which a word may lie in a file; base64 at each of its three offsets."""
    spellings = {word, word.upper(), word.capitalize()}
    raw = {spelling.encode(coding) for spelling in spellings for coding in ("utf-8", "utf-16-le")}
    raw |= {spelling.encode("latin-1") for spelling in spellings}
    coded = set()
    for spelling in spellings:
        for offset in range(3):
            text = base64.b64encode(b"\0" * offset + spelling.encode())
            coded.add(text[4 if offset else 0 : len(text) - 4])
    return raw | {text for text in coded if len(text) >= 6}


def holding(files: dict[str, bytes], needles: set[bytes]) -> set[str]:
    """The names of the files in which any of these bytes are found."""
    return {name for name, content in files.items() if any(n in content for n in needles)}


@pytest.fixture(scope="module")
def stored(private: Any) -> dict[str, bytes]:
    """Every file of the data folder: its name and its bytes, long runs of zeros cut short."""
    root = private.settings.data_dir
    return {
        str(path.relative_to(root)): os.fsencode(path.relative_to(root))
        + re.sub(rb"\0{64,}", bytes(64), path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def stored_payloads(data_dir: Path) -> list[dict[str, Any]]:
    """What the Qdrant engine holds beside the vectors, without our reading of it."""
    shard = qdrant_edge.EdgeShard.load(str(data_dir / "index"))
    records, _ = shard.scroll(qdrant_edge.ScrollRequest(limit=1000, with_payload=True))
    shard.close()
    return [dict(record.payload) for record in records]


@pytest.fixture(scope="module")
def private(new_site: Callable[..., Any]) -> Any:
    """Indexed: a good file, one under a conflicting UID, one truncated, one without picture."""
    site = new_site()
    content = encode(planted("1.2.840.99.3", picture(1)))
    site.write("a.dcm", content)
    site.write("b.dcm", encode(planted("1.2.840.99.3", picture(2))))
    site.write("c.dcm", content[:-2000])
    no_picture = planted("1.2.840.99.4", picture(3))
    del no_picture.PixelData
    site.write("d.dcm", encode(no_picture))
    odd = planted("1.2.840.99.5", picture(4))
    odd.PhotometricInterpretation = "WUNDERLICH"
    site.write("e.dcm", encode(odd))
    refused = {"conflicting-uid": 1, "no-pixels": 1, "truncated": 1, "unsupported-pixels": 1}
    assert site.index().refused == refused
    return site


@pytest.mark.parametrize("word", WORDS)
def test_no_identifier_lies_anywhere_in_the_data_folder(
    stored: dict[str, bytes], word: str
) -> None:
    assert holding(stored, forms(word)) == set()


def test_what_may_be_kept_would_have_been_found(stored: dict[str, bytes]) -> None:
    """The search for identifiers is able to see: UIDs are in the ledger, in plain bytes."""
    for word in ("1.2.840.99.1", "1.2.840.99.2", "1.2.840.99.3"):
        assert "ledger.sqlite" in holding(stored, forms(word))
    assert any(name.startswith("index/") for name in holding(stored, forms("blended")))
    assert any(name.startswith("thumbnails/") for name in stored)


def test_the_payload_is_the_allow_list_and_nothing_else(private: Any) -> None:
    """Asked of the engine itself, for it may compress what it stores."""
    (payload,) = stored_payloads(private.settings.data_dir)
    assert set(payload) == {"code", "tenant", "record"}
    about = json.loads(payload["record"])
    assert set(about) <= {"record", "indexed_at", "rendering", "missing_frames"}
    record = about["record"]
    assert set(record) <= set(RECORD_FIELDS)
    text = repr(payload).lower()
    assert [word for word in WORDS if word in text] == []
    fixed = {"study": "1.2.840.99.1", "modality": "CT", "sex": "F", "age_band": "50-59"}
    assert {name: record[name] for name in fixed} == fixed
    assert record["study_year"] == 2019
    key = (private.settings.data_dir / "pseudonym.key").read_bytes()
    assert record["patient"] == pseudonym("", PLANTED["PatientID"], key)


def test_thumbnails_carry_a_picture_and_no_words(private: Any) -> None:
    ((name, jpeg),) = private.thumbnails().items()
    uuid.UUID(name)
    with Image.open(io.BytesIO(jpeg)) as image:
        assert not image.getexif()
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
