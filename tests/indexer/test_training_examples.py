"""An archive labels its own training images, and tells which belong to one patient."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import dataset, element, encode, nested_undefined, part10, png_of_zeros

from engine.errors import TrainingDataError
from engine.settings import ImageLimits
from engine.training.data import Example, TrainingSet
from indexer.sample import write_sample
from indexer.training_examples import from_dicom_tags, grouped_by_patient, unlabelled

LIMITS = ImageLimits()
PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)


def content(pixels: np.ndarray | None = PIXELS, **elements: Any) -> bytes:
    return encode(dataset(pixels, **elements))


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Writes a DICOM image of these elements into the archive, or the bytes given."""

    def write(name: str, data: bytes | None = None, **elements: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(**elements) if data is None else data)
        return path

    return write


def labels_of(root: Path, **options: Any) -> dict[str, str | None]:
    found = from_dicom_tags(root, LIMITS, **{"min_class_size": 1, **options})
    return {example.path.relative_to(root).as_posix(): example.label for example in found}


def test_labels_are_modality_body_part_and_view_as_far_as_present(tmp_path, put):
    put("a/1", Modality="CR", BodyPartExamined="HAND", ViewPosition="PA")
    put("a/2.dcm", Modality="MR", BodyPartExamined="BREAST")
    put("b/3.dcm", Modality="CT")
    put("b/4.dcm", Modality="MG", ViewPosition="MLO")
    assert labels_of(tmp_path) == {
        "a/1": "CR HAND PA",
        "a/2.dcm": "MR BREAST",
        "b/3.dcm": "CT",
        "b/4.dcm": "MG MLO",
    }


def test_what_is_no_image_with_a_modality_is_left_out_and_counted(tmp_path, put, caplog):
    put("1.dcm", Modality="CR")
    put("2.dcm", Modality="CT")
    put("state.dcm", pixels=None, Modality="PR")
    put("report.dcm", pixels=None, Modality="SR")
    put("nameless.dcm")
    put("notes.txt", b"nothing to see")
    put("picture.png", png_of_zeros(8, 8))
    put("empty.dcm", b"")
    put("cut.dcm", content(Modality="CT")[:200])
    put("hostile.dcm", nested_undefined(5000))
    put("greedy.dcm", part10(element(0x00080060, b"UN", b"CT", 0xFFFFFF00)))
    put(".hidden.dcm", Modality="US")
    put(".trash/3.dcm", Modality="US")
    put("model/4.dcm", Modality="US")
    os.mkfifo(tmp_path / "pipe")
    assert labels_of(tmp_path, leave_out=tmp_path / "model") == {"1.dcm": "CR", "2.dcm": "CT"}
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("left out 10 of 12 files: ")
    for count in ("3 not-an-image", "2 no-pixels", "2 truncated", "1 no-modality"):
        assert count in message


def test_no_pixels_are_read(tmp_path, put):
    """They may be missing: whoever reads the image will say so."""
    put("1.dcm", content(Modality="CR")[:-32])
    put("2.dcm", Modality="CT")
    assert labels_of(tmp_path) == {"1.dcm": "CR", "2.dcm": "CT"}


def test_small_classes_are_left_out_and_named(tmp_path, put, caplog):
    for number in range(12):
        put(f"{number}.dcm", Modality=("CT", "MR", "US")[min(number // 5, 2)])
    found = labels_of(tmp_path, min_class_size=5)
    assert set(found.values()) == {"CT", "MR"}
    assert len(found) == 10
    assert "left out 2 images of 1 classes with fewer than 5: 2 US" in caplog.text


@pytest.mark.slow
def test_a_sample_of_all_transfer_syntaxes_is_labelled_as_its_headers_say(tmp_path):
    root = tmp_path / "sample"
    write_sample(root, seed=3, patients=6, include_pydicom=False)
    expected = {}
    for path in root.rglob("*.dcm"):
        header = pydicom.dcmread(path)
        terms = [header.get(k) for k in ("Modality", "BodyPartExamined", "ViewPosition")]
        if "PixelData" in header:
            expected[path.relative_to(root).as_posix()] = " ".join(term for term in terms if term)
    assert len(expected) > 40
    assert labels_of(root) == expected


@pytest.mark.parametrize("missing", ["nowhere", "file"])
def test_an_archive_that_is_no_folder_is_refused(tmp_path, put, missing):
    put("file")
    for listed in (from_dicom_tags, unlabelled):
        with pytest.raises(TrainingDataError, match=missing):
            listed(tmp_path / missing, LIMITS)


def test_an_archive_without_labels_to_tell_apart_is_refused(tmp_path, put):
    with pytest.raises(TrainingDataError, match="no files"):
        from_dicom_tags(tmp_path, LIMITS)
    with pytest.raises(TrainingDataError, match="no files"):
        unlabelled(tmp_path, LIMITS)
    put("notes.txt", b"nothing to see")
    with pytest.raises(TrainingDataError, match="1 not-an-image"):
        from_dicom_tags(tmp_path, LIMITS)
    put("1.dcm", Modality="CR")
    put("2.dcm", Modality="CR")
    with pytest.raises(TrainingDataError, match=r"1 class.*2 CR"):
        from_dicom_tags(tmp_path, LIMITS, min_class_size=1)
    put("3.dcm", Modality="CT")
    with pytest.raises(TrainingDataError, match=r"0 class.*at least 10"):
        from_dicom_tags(tmp_path, LIMITS)


# Groups


def groups_of(examples: list[Example]) -> dict[str, str | None]:
    return {example.path.stem: example.group for example in examples}


@pytest.fixture
def patients(put) -> None:
    put("a1.dcm", Modality="CT", PatientID="4711", StudyInstanceUID="1.2.1")
    put("a2.dcm", Modality="MR", PatientID="4711", StudyInstanceUID="1.2.2")
    put("b.dcm", Modality="CT", PatientID="4712", StudyInstanceUID="1.2.3")
    put("c.dcm", Modality="MR", PatientID="4711", IssuerOfPatientID="other house")
    put("s1.dcm", Modality="CT", StudyInstanceUID="1.2.9")
    put("s2.dcm", Modality="MR", StudyInstanceUID="1.2.9")
    put("n.dcm", Modality="MR")


@pytest.mark.parametrize("listed", [lambda root: from_dicom_tags(root, LIMITS, min_class_size=1),
                                    lambda root: unlabelled(root, LIMITS)])  # fmt: skip
def test_a_group_is_a_patient_or_else_a_study(tmp_path, patients, listed):
    groups = groups_of(listed(tmp_path))
    assert groups["a1"] == groups["a2"] is not None
    assert groups["s1"] == groups["s2"] is not None
    assert groups["n"] is None
    assert len({groups[name] for name in ("a1", "b", "c", "s1", "n")}) == 5
    assert not any("4711" in group for group in groups.values() if group)


def test_groups_that_are_given_are_kept(tmp_path, put):
    first = put("1.dcm", PatientID="4711")
    second = put("2.dcm", PatientID="4711")
    picture = put("3.png", png_of_zeros(8, 8))
    examples = [
        Example(first, "a", "mine"),
        Example(second, "a"),
        Example(picture, "b"),
        Example(tmp_path / "nowhere", "b"),
    ]
    found = grouped_by_patient(examples, LIMITS)
    assert [example.label for example in found] == ["a", "a", "b", "b"]
    assert found[0].group == "mine"
    assert found[1].group not in (None, "mine")
    assert found[2].group is found[3].group is None


def test_without_labels_every_file_is_listed(tmp_path, put):
    put("1.dcm", Modality="CT", PatientID="4711")
    put("2.png", png_of_zeros(8, 8))
    put("notes.txt", b"nothing to see")
    put(".hidden", b"")
    found = unlabelled(tmp_path, LIMITS)
    assert [example.path.name for example in found] == ["1.dcm", "2.png", "notes.txt"]
    assert {example.label for example in found} == {None}


def test_a_split_never_tears_a_patient_apart(tmp_path, put):
    for number in range(60):
        put(f"{number:02}.dcm", Modality=("CT", "MR")[number % 2], PatientID=f"P{number % 17}")
    examples = from_dicom_tags(tmp_path, LIMITS)
    shown = iter(range(60))
    data = TrainingSet.read(examples, lambda _: np.full((4, 4), next(shown), np.uint8))
    patient = np.array([int(example.path.stem) % 17 for example in examples])
    for seed in range(20):
        kept, held_out = (
            patient[part.canvases[:, 0, 0]] for part in data.split(share=0.25, seed=seed)
        )
        assert not set(kept) & set(held_out)
        assert len(kept) + len(held_out) == 60
        assert len(held_out) >= 6
