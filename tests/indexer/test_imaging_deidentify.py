"""Nothing that names a patient reaches the record."""

import hashlib
import hmac

import numpy as np
import pytest
from dicom_files import CT, KEY, SECONDARY_CAPTURE, dataset, encode, read
from hypothesis import given, strategies as st
from pydicom.datadict import dictionary_description, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from engine.errors import SettingsError
from engine.records import ImageRecord
from indexer.imaging.deidentify import HEADER_KEYWORDS, pseudonym, record_of

PIXELS = np.arange(400, dtype=np.uint16).reshape(20, 20)


def record(**elements) -> ImageRecord:
    return read(encode(dataset(PIXELS, **elements))).record


def region(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
    return code


def test_a_whole_record():
    found = record(
        StudyInstanceUID="1.2.3",
        SeriesInstanceUID="1.2.3.1",
        Modality="DX",
        BodyPartExamined="CHEST",
        ViewPosition="PA",
        ImageLaterality="R",
        Manufacturer="Philips Medical Systems, Inc.",
        PatientName="Doe^Jane",
        PatientID="MRN-0042",
        IssuerOfPatientID="St. Elsewhere",
        PatientSex="F",
        PatientAge="063Y",
        StudyDate="20190514",
        BurnedInAnnotation="NO",
    )
    message = b"St. Elsewhere\0MRN-0042"
    assert found == ImageRecord(
        study="1.2.3",
        series="1.2.3.1",
        sop="1.2.3.4",
        patient=hmac.new(KEY, message, hashlib.sha256).hexdigest()[:32],
        modality="DX",
        body_part="CHEST",
        view="PA",
        laterality="R",
        manufacturer="Philips Medical Systems, Inc.",
        sex="F",
        age_band="60-69",
        study_year=2019,
        burned_in=False,
    )


SECRET = "ZEBEDEE QUILL"
_TEXT_VRS = {"LO", "SH", "CS", "PN", "LT", "ST", "UT", "UC", "AE"}


def test_an_identifier_in_every_field_reaches_the_record_nowhere():
    made = dataset(PIXELS, PatientName="Quill^Zebedee", PatientID="ZEBEDEE QUILL")
    for keyword in HEADER_KEYWORDS:
        if keyword not in made and dictionary_VR(keyword) in _TEXT_VRS:
            setattr(made, keyword, SECRET)
    made.SpecificCharacterSet = "ISO_IR 100"
    for tag, vr in ((0x00081030, "LO"), (0x00204000, "LT"), (0x00104000, "LT")):
        assert dictionary_description(tag)
        made.add_new(tag, vr, SECRET)
    block = made.private_block(0x0011, "ZEBEDEE QUILL", create=True)
    for offset, vr in enumerate(sorted(_TEXT_VRS)):
        block.add_new(offset, vr, SECRET)
    made.AnatomicRegionSequence = Sequence([region("ZEBEDEE", SECRET)])
    instance = read(encode(made))
    told = repr(instance.record).casefold()
    assert "zebedee" not in told
    assert "quill" not in told
    assert instance.record.patient == pseudonym(SECRET, SECRET, KEY)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_free_text_fills_no_coded_field(text):
    header = Dataset()
    for keyword in ("PatientSex", "PatientAge", "ImageLaterality", "StudyDate"):
        header[keyword] = _element(keyword, text)
    found = record_of(header, KEY)
    assert found.sex in (None, "M", "F", "O")
    assert found.laterality in (None, "L", "R", "B")
    assert found.age_band is None or found.age_band[:1].isdigit()
    assert found.study_year is None or 1895 <= found.study_year <= 2100


def _element(keyword, text):
    # As LO: the point is a value that does not fit, not one that cannot be written.
    return DataElement(keyword, "LO", text, validation_mode=0)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("SIEMENS", "SIEMENS"),
        ("GE MEDICAL SYSTEMS", "GE MEDICAL SYSTEMS"),
        ("Doe^Jane", None),
        ("Camera of Jane Doe", None),
        ("Patient 7654321", None),
        ("MRN42 Imaging", None),
        ("x" * 65, None),
    ],
)
def test_manufacturer(written, kept):
    header = dataset(PatientName="Doe^Jane", PatientID="MRN42")
    header["Manufacturer"] = _element("Manufacturer", written)
    assert record_of(header, KEY).manufacturer == kept


def test_a_patient_named_like_a_term_does_not_hide_the_term():
    found = record(PatientName="CHEST^CT", PatientID="CT", Modality="CT", BodyPartExamined="CHEST")
    assert (found.modality, found.body_part) == ("CT", "CHEST")


@pytest.mark.parametrize(
    ("elements", "band"),
    [
        ({"PatientAge": "000Y"}, "0-9"),
        ({"PatientAge": "023M"}, "0-9"),
        ({"PatientAge": "600W"}, "10-19"),
        ({"PatientAge": "300D"}, "0-9"),
        ({"PatientAge": "089Y"}, "80-89"),
        ({"PatientAge": "090Y"}, "90+"),
        ({"PatientAge": "115Y"}, "90+"),
        ({"PatientAge": "999Y"}, None),
        ({"PatientBirthDate": "19500601", "StudyDate": "20200531"}, "60-69"),
        ({"PatientBirthDate": "19500601", "StudyDate": "20200601"}, "70-79"),
        ({"PatientBirthDate": "20300101", "StudyDate": "20200601"}, None),
        ({"PatientBirthDate": "19500601"}, None),
        ({}, None),
    ],
)
def test_age_band(elements, band):
    assert record_of(dataset(**elements), KEY).age_band == band


@pytest.mark.parametrize(
    ("elements", "part"),
    [
        ({"BodyPartExamined": "CHEST"}, "CHEST"),
        ({"BodyPartExamined": ""}, None),
        ({"AnatomicRegionSequence": [region("51185008", "Jane's chest")]}, "CHEST"),
        ({"AnatomicRegionSequence": [region("T-D9200", "Knee")]}, "KNEE"),
        ({"AnatomicRegionSequence": [region("0", "Jane's chest")]}, None),
        ({}, None),
    ],
)
def test_body_part(elements, part):
    assert record_of(dataset(**elements), KEY).body_part == part


@pytest.mark.parametrize(
    ("sop_class", "said", "burned"),
    [
        (CT, None, None),
        (CT, "YES", True),
        (SECONDARY_CAPTURE, None, True),
        (SECONDARY_CAPTURE + ".4", None, True),
        (SECONDARY_CAPTURE, "NO", False),
        (CT, "PERHAPS", None),
    ],
)
def test_burned_in(sop_class, said, burned):
    header = dataset(SOPClassUID=sop_class)
    if said:
        header.BurnedInAnnotation = said
    assert record_of(header, KEY).burned_in is burned


def test_values_of_another_form_are_absent():
    header = dataset()
    for keyword, written in {
        "SOPInstanceUID": "not a uid",
        "StudyInstanceUID": "1." * 40,
        "Modality": "a long sentence about somebody",
        "ViewPosition": "view(1)",
        "PatientSex": "Jane",
        "StudyDate": "May 2019",
        "Laterality": "left",
    }.items():
        header[keyword] = _element(keyword, written)
    assert record_of(header, KEY) == ImageRecord()


def test_case_and_padding_do_not_matter():
    header = dataset()
    header["BodyPartExamined"] = _element("BodyPartExamined", " chest ")
    header["PatientSex"] = _element("PatientSex", "f")
    found = record_of(header, KEY)
    assert (found.body_part, found.sex) == ("CHEST", "F")


def test_dummy_dates_have_no_year():
    assert record_of(dataset(StudyDate="99991231"), KEY).study_year is None


def test_pseudonyms_need_a_key_and_an_identifier():
    assert pseudonym("", "42", b"a") != pseudonym("", "42", b"b")
    assert pseudonym("a", "42", KEY) != pseudonym("b", "42", KEY)
    assert pseudonym("a", "", KEY) is None
    with pytest.raises(SettingsError):
        pseudonym("", "42", b"")
