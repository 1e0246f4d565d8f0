"""CT is shown through a window by name, whatever window its header has."""

import zipfile

import numpy as np
import pytest
from dicom_files import CT, KEY, LIMITS, dataset, encode
from PIL import Image

from engine.errors import SettingsError
from engine.model.preprocess import Preprocess
from engine.settings import ZipLimits
from indexer.files.locators import ZipMember
from indexer.imaging.prepare import ReadTask, prepare
from indexer.imaging.read import read_image, read_image_bytes

STORED = np.tile(np.arange(0, 3200, 50, dtype=np.uint16), (64, 1))
UNITS = STORED - 1024.0
HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}
BRAIN = {"WindowCenter": 40, "WindowWidth": 80}
WINDOWS = {"lung": (-600, 1500), "soft-tissue": (40, 400), "bone": (400, 1800)}
LOCALIZER = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def seen(view: str, **elements: object) -> np.ndarray:
    content = encode(dataset(STORED, **elements))
    how = {"frames_per_instance": 1, "pseudonym_key": KEY, "view": view}
    return read_image_bytes(content, LIMITS, **how).frames[0].pixels


def through(center: float, width: float) -> np.ndarray:
    """The function LINEAR (PS3.3 C.11.2.1.2)."""
    return np.clip((UNITS - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255


@pytest.mark.parametrize(("view", "window"), WINDOWS.items())
def test_a_view_is_a_window_in_hounsfield_units(view, window):
    assert np.abs(seen(view, **HOUNSFIELD, **BRAIN) - through(*window)).max() <= 0.501
    # Rescale Type may be left out of a CT image (PS3.3 C.8.2.1).
    units = {**HOUNSFIELD, "RescaleType": ""}
    assert np.abs(seen(view, **units) - through(*window)).max() <= 0.501


def test_without_a_name_the_header_decides():
    assert np.abs(seen("header", **HOUNSFIELD, **BRAIN) - through(40, 80)).max() <= 0.501


@pytest.mark.parametrize(
    "other",
    [
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"},
        {"RescaleType": "US"},
        {"ImageType": LOCALIZER},
        {"RescaleSlope": None, "RescaleIntercept": None},
    ],
)
@pytest.mark.parametrize("view", WINDOWS)
def test_values_of_other_units_are_shown_as_their_header_says(other, view):
    elements = {**HOUNSFIELD, **BRAIN, **other}
    elements = {keyword: value for keyword, value in elements.items() if value is not None}
    assert np.array_equal(seen(view, **elements), seen("header", **elements))


def test_a_reading_task_names_a_view():
    content = encode(dataset(STORED, SOPClassUID=CT, **HOUNSFIELD, **BRAIN))
    parts = (LIMITS, ZipLimits(), 8, 64, Preprocess(size=64), KEY)
    header, bone = (prepare(ReadTask(content, *parts, view=view)) for view in ("header", "bone"))
    unnamed = prepare(ReadTask(content, *parts))
    assert np.array_equal(unnamed.pictures[0].canvas, header.pictures[0].canvas)
    assert np.abs(bone.pictures[0].canvas - through(400, 1800)).max() <= 1
    # The same point: it is the same frame.
    assert header.pictures[0].identity == bone.pictures[0].identity


def test_files_and_members_of_archives_have_views(tmp_path):
    content = encode(dataset(STORED, **HOUNSFIELD))
    path, archive = tmp_path / "slice.dcm", tmp_path / "study.zip"
    path.write_bytes(content)
    with zipfile.ZipFile(archive, "w") as out:
        out.write(path, "slice.dcm")
    for image in (path, ZipMember(archive, "slice.dcm")):
        task = ReadTask(image, LIMITS, ZipLimits(), 8, 64, Preprocess(size=64), KEY, "lung")
        assert np.abs(prepare(task).pictures[0].canvas - through(-600, 1500)).max() <= 1


def test_other_files_have_one_view_only(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray((STORED // 16).astype(np.uint8)).save(path)
    how = {"frames_per_instance": 1, "pseudonym_key": KEY}
    found = read_image(path, LIMITS, view="bone", **how).frames[0].pixels
    assert np.array_equal(found, STORED // 16)


def test_a_view_that_there_is_not_is_named_with_those_that_there_are():
    with pytest.raises(SettingsError, match=r"'brain'.*header, lung, soft-tissue, bone"):
        seen("brain", **HOUNSFIELD)
