"""Several files of one SOP Instance UID: the same picture, or a dispute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dataset, encode
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import JobOptions
from indexer.jobs.runner import JobRunner
from indexer.sources.opening import SourceSpec

AT = "2024-05-01T12:00:00+00:00"


def picture(seed: int, side: int = 64) -> NDArray[np.uint8]:
    """uint8 (side, side): a bright disc somewhere over noise."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    disc = np.hypot(x - rng.uniform(0, side), y - rng.uniform(0, side)) < rng.uniform(8, 30)
    return (disc * 150.0 + rng.uniform(0, 80, (side, side))).astype(np.uint8)


def as_rle(pixels: NDArray[np.uint8], **elements: Any) -> bytes:
    """The same pixels in another lossless encoding (PS3.5 annex G)."""
    made = dataset(pixels, **elements)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.compress(RLELossless, generate_instance_uid=False)
    return encode(made, RLELossless)


def test_the_same_pixels_in_other_encodings_are_one_picture(site: Any) -> None:
    site.write("a.dcm", encode(dataset(picture(1), PatientName="Doe^Jane")))
    site.write("b.dcm", encode(dataset(picture(1)), ImplicitVRLittleEndian))
    site.write("c.dcm", as_rle(picture(1)))
    report = site.index()
    assert (report.indexed, report.duplicates, report.points, report.refused) == (3, 2, 1, {})
    again = site.index()
    assert (again.indexed, again.unchanged, again.refused) == (0, 3, {})


def test_the_second_name_keeps_the_picture_when_the_first_goes(site: Any) -> None:
    first = site.write("a.dcm", encode(dataset(picture(1))))
    second = site.write("b.dcm", as_rle(picture(1)))
    site.index()
    first.unlink()
    site.index(vanished_from=[])
    assert site.ids_of(second) == list(site.points())


def test_a_dispute_names_the_other_file(site: Any) -> None:
    first = site.write("ein Ordner/a\n1.dcm", encode(dataset(picture(1))))
    second = site.write("z.dcm", encode(dataset(picture(2))))
    site.index()
    (refused,) = site.refusals().values()
    assert site.reasons() == {second: "conflicting-uid"}
    assert str(first).replace("\n", "\ufffd") in refused.detail
    assert "1.2.3.4" in refused.detail
    assert "\n" not in refused.detail


def test_when_the_first_vanishes_the_other_is_taken_in_the_same_run(site: Any) -> None:
    first = site.write("a.dcm", encode(dataset(picture(1), BodyPartExamined="CHEST")))
    second = site.write("b.dcm", encode(dataset(picture(2), BodyPartExamined="HEAD")))
    third = site.write("c.dcm", encode(dataset(picture(3), BodyPartExamined="HAND")))
    assert site.index().refused == {"conflicting-uid": 2}
    first.unlink()
    report = site.index(vanished_from=[])
    assert (report.indexed, report.points, report.refused) == (1, 1, {"conflicting-uid": 1})
    (point,) = site.points().values()
    assert point.record.body_part == "HEAD"
    assert site.ids_of(second) == [point.id]
    assert str(second) in site.refusals()[third].detail


@pytest.mark.slow
def test_a_job_that_removes_what_vanished_does_the_same(site: Any) -> None:
    first = site.write("a.dcm", encode(dataset(picture(1), BodyPartExamined="CHEST")))
    second = site.write("b.dcm", encode(dataset(picture(2), BodyPartExamined="HEAD")))
    site.index()
    first.unlink()
    with site.database() as database:
        jobs = JobLedger(database.of("default"))
        spec = SourceSpec.asked([site.files], None, None)
        job = jobs.submit(spec, JobOptions(delete_vanished=True, at_most=1.0), at=AT)
        with JobRunner(site.settings, database, "one") as runner:
            while due := runner.due(1):
                assert runner.run(due[0].job, due[0].number)
        (fate,) = jobs.fates(job)
        assert (fate.fate, fate.locator) == ("indexed", Path(second).as_uri())
    (point,) = site.points().values()
    assert point.record.body_part == "HEAD"


def test_a_dispute_with_a_file_that_lacks_frames_says_so(site: Any) -> None:
    """A copy that broke off, beside the whole: the same run that misses the one takes the other."""
    frames = np.stack([picture(seed) for seed in range(4)])
    content = encode(dataset(frames))
    broken = site.write("a.dcm", content[: -frames[0].nbytes * 2])
    whole = site.write("b.dcm", content)
    for _ in range(2):
        site.index()
        (refused,) = site.refusals().values()
        assert "another picture and lacks some (frames 2 to 3: truncated)" in refused.detail
    broken.unlink()
    report = site.index(vanished_from=[])
    assert (report.indexed, report.partial, report.refused) == (1, 0, {})
    assert len(site.ids_of(whole)) == len(site.points()) == 4
