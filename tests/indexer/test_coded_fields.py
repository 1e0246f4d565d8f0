"""View, side, region and age as the standard codes them, and as people write them."""

import numpy as np
import pytest
from dicom_files import KEY, LIMITS, dataset, encode, read
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from engine.model.preprocess import Preprocess
from engine.records import ImageRecord
from engine.settings import ZipLimits
from indexer.imaging.deidentify import record_of
from indexer.imaging.prepare import ReadTask, prepare

PIXELS = np.arange(400, dtype=np.uint16).reshape(20, 20)


def code(value: str, scheme: str = "SCT", **more) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "of Jane"
    for keyword, said in more.items():
        setattr(item, keyword, said)
    return item


def record(**elements) -> ImageRecord:
    return read(encode(dataset(PIXELS, **elements))).record


# View Code Sequence is type 1 in mammography, View Position type 3 (PS3.3 C.8.11.7); the codes
# are those of PS3.16 CID 4014, with their SNOMED RT identifiers.


@pytest.mark.parametrize(
    ("value", "scheme", "view"),
    [
        ("399162004", "SCT", "CC"),
        ("R-10242", "SRT", "CC"),
        ("R-10242", "SNM3", "CC"),
        ("399368009", "SCT", "MLO"),
        ("R-10226", "99SDM", "MLO"),
        ("399260004", "SCT", "ML"),
        ("R-10228", "SRT", "LM"),
        ("399099002", "SCT", "LMO"),
        ("399196006", "SCT", "FB"),
        ("399188001", "SCT", "SIO"),
        ("441555000", "SCT", "ISO"),
        ("399192008", "SCT", "XCCL"),
        ("Y-X1771", "SRT", "XCCM"),
    ],
)
def test_the_view_of_a_mammogram_is_a_code(value, scheme, view):
    assert record(Modality="MG", ViewCodeSequence=[code(value, scheme)]).view == view


@pytest.mark.parametrize(
    ("value", "view"),
    [("399348003", "AP"), ("272479007", "PA"), ("R-10236", "LL"), ("399198007", "RL")],
)
def test_so_is_that_of_a_radiograph(value, view):
    """PS3.3 C.8.11.5, PS3.16 CID 4010."""
    assert record(Modality="DX", ViewCodeSequence=[code(value)]).view == view


@pytest.mark.parametrize(
    ("modifier", "view"),
    [
        ("399161006", "CV"),  # cleavage
        ("R-102D1", "AT"),  # axillary tail
        ("399163009", "CC"),  # magnification
        ("399055006", "CC"),  # spot compression
    ],
)
def test_a_modifier_replaces_the_view_or_leaves_it(modifier, view):
    """PS3.16 CID 4015: the equivalents CV and AT stand for the view, M and S before it."""
    inside = code("399162004", ViewModifierCodeSequence=Sequence([code(modifier)]))
    assert record(ViewCodeSequence=[inside]).view == view
    beside = {"ViewModifierCodeSequence": [code(modifier)]}
    assert record(ViewCodeSequence=[code("399162004")], **beside).view == view


@pytest.mark.parametrize(
    ("written", "coded", "view"),
    [
        ("MLO", None, "MLO"),
        ("MLO", ("123", "SCT"), "MLO"),
        ("CC", ("399192008", "SCT"), "XCCL"),
        ("LL", ("399067008", "SCT"), "LL"),  # the code says "lateral" only
        (None, ("399067008", "SCT"), "LATERAL"),
        (None, ("399162004", "99ACME"), None),  # a private scheme (PS3.3 8.2)
        (None, ("of Jane", "SCT"), None),
    ],
)
def test_the_code_comes_before_the_text_unless_it_says_less(written, coded, view):
    elements = {} if written is None else {"ViewPosition": written}
    if coded is not None:
        elements["ViewCodeSequence"] = [code(*coded)]
    assert record(**elements).view == view


# Sides.


@pytest.mark.parametrize(
    ("elements", "side"),
    [
        ({"ImageLaterality": "L", "Laterality": "R"}, "L"),
        ({"ImageLaterality": "U", "Laterality": "R"}, None),
        ({"ImageLaterality": "", "Laterality": "R"}, "R"),
        ({"Laterality": "B"}, "B"),
        ({}, None),
    ],
)
def test_the_side_of_the_image_comes_before_that_of_its_series(elements, side):
    """PS3.3 C.7.3.1 (Laterality), C.8.11.5 (Image Laterality, with U for unpaired)."""
    assert record(**elements).laterality == side


# Functional groups (PS3.3 C.7.6.16.2.8, Frame Anatomy).


def anatomy(region: str | None, side: str | None) -> Dataset:
    inner, group = Dataset(), Dataset()
    if region is not None:
        inner.AnatomicRegionSequence = Sequence([code(region)])
    if side is not None:
        inner.FrameLaterality = side
    group.FrameAnatomySequence = Sequence([inner])
    return group


def pictures(header: Dataset) -> list[tuple[int, str | None, str | None]]:
    """(number, body part, side) of each picture that is prepared of the file."""
    task = ReadTask(encode(header), LIMITS, ZipLimits(), 8, 64, Preprocess(size=64), KEY)
    prepared = prepare(task)
    records = [one.record_of(prepared.record) for one in prepared.pictures]
    return [(one.frame, one.body_part, one.laterality) for one in records]


FRAMES = np.stack([PIXELS, PIXELS.T, PIXELS[::-1]])


def test_each_frame_has_a_region_and_side_of_its_own():
    header = dataset(
        FRAMES,
        Modality="MR",
        BodyPartExamined="BREAST",
        SharedFunctionalGroupsSequence=[anatomy(None, "B")],
        PerFrameFunctionalGroupsSequence=[
            anatomy("76752008", "L"),
            anatomy("51185008", "R"),
            Dataset(),
        ],
    )
    assert pictures(header) == [(0, "BREAST", "L"), (1, "CHEST", "R"), (2, "BREAST", "B")]


def test_what_is_shared_holds_for_every_frame():
    header = dataset(FRAMES, SharedFunctionalGroupsSequence=[anatomy("72696002", "R")])
    assert pictures(header) == [(number, "KNEE", "R") for number in range(3)]


def test_without_groups_frames_are_as_the_header_says():
    header = dataset(FRAMES, BodyPartExamined="HAND", ImageLaterality="L")
    assert pictures(header) == [(number, "HAND", "L") for number in range(3)]


@pytest.mark.parametrize(
    ("value", "part"),
    [("818982008", "ABDOMENPELVIS"), ("T-28000", "LUNG"), ("416775004", "CHESTABDPELVIS")],
)
def test_regions_by_code(value, part):
    """PS3.16, annex L."""
    assert record(AnatomicRegionSequence=[code(value)]).body_part == part


def test_a_long_code_is_read_too():
    """PS3.3 8.1: Long Code Value, where the code has more than 16 characters."""
    item = code("1")
    del item.CodeValue
    item.LongCodeValue = "51185008"
    assert record(AnatomicRegionSequence=[item]).body_part == "CHEST"


# Ages (PS3.5 6.2, AS: three digits and a letter; people write less).


@pytest.mark.parametrize(
    ("written", "band"),
    [
        ("045Y ", "40-49"),
        ("45Y", "40-49"),
        ("9Y", "0-9"),
        ("042", "40-49"),
        ("42 y", "40-49"),
        ("42 YEARS", "40-49"),
        ("6M", "0-9"),
        ("18 months", "0-9"),
        ("600W", "10-19"),
        ("000D", "0-9"),
        ("0Y", "0-9"),
        ("0", None),
        ("", None),
        ("Y", None),
        ("45X", None),
        ("-45Y", None),
        ("1234Y", None),
        ("45YM", None),
    ],
)
def test_ages_as_people_write_them(written, band):
    header = dataset()
    header["PatientAge"] = DataElement("PatientAge", "LO", written, validation_mode=0)
    assert record_of(header, KEY).age_band == band


@pytest.mark.parametrize("written", ["000Y", "0", "999Y", "unknown"])
def test_where_the_age_says_nothing_the_dates_do(written):
    header = dataset(PatientBirthDate="19500601", StudyDate="20200601")
    header["PatientAge"] = DataElement("PatientAge", "LO", written, validation_mode=0)
    assert record_of(header, KEY).age_band == "70-79"


# Patient identifiers that stand for nobody.


@pytest.mark.parametrize(
    "identifier",
    [
        *("0", "000000", "ANON", "Anonymous", "ANONYMIZED", "unknown", "UNKNOWN^", "N/A"),
        *("no id", "-", "?", "XXXX", "De-Identified", "None", "patient id", "匿名"),
    ],
)
def test_a_placeholder_is_no_patient(identifier):
    header = dataset(SpecificCharacterSet="ISO_IR 192", PatientID=identifier)
    assert record_of(header, KEY).patient is None
    assert record_of(dataset(PatientID=identifier, IssuerOfPatientID="X"), KEY).patient is None


@pytest.mark.parametrize("identifier", ["1", "ANON0042", "10", "X1", "LIDC-IDRI-0001", "Unger"])
def test_an_identifier_of_one_person_is_one(identifier):
    assert record_of(dataset(PatientID=identifier), KEY).patient is not None
