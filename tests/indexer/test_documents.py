"""DICOM documents of an answer: valid, in the right study, and of nobody but their patient."""

import io
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings as examples, strategies as st
from patients import ANNA, PATIENTS, STUDIES, identifiers, index_patients
from pydicom import dcmread
from pydicom.dataset import Dataset
from services.needed import dcmtk, package

from engine.errors import DocumentError, ImageNotFound, QueryError
from engine.records import dicom_point_id
from engine.settings import DocumentsSettings
from indexer.archive import Archive, TenantArchive
from indexer.documents.headers import Headers
from indexer.documents.making import Document, make_document
from indexer.documents.planning import ReportAsked, plan_earlier, plan_report, plan_teaching
from indexer.documents.plans import Listed, Plan, Verdict, plan_from, plan_text

NOW = datetime(2026, 3, 1, 9, 30)
ASKED = STUDIES[0]


class Site:
    """The archive of patients, open. identify: as the setting of this name."""

    def __init__(self, archive: Archive, headers: Headers) -> None:
        self.archive, self.headers = archive, headers

    def tenant(self, *, identify: bool = False) -> TenantArchive:
        found = TenantArchive(self.archive, "default")
        documents = DocumentsSettings(identify_other_patients=identify)
        found.settings = found.settings.model_copy(update={"documents": documents})
        return found

    def made(self, plan: Plan, *, identify: bool = False) -> Document:
        return make_document(plan, self.tenant(identify=identify), self.headers)


@pytest.fixture(scope="module")
def site(store_root: Path, model: Path) -> Iterator[Site]:
    settings = index_patients(store_root, model)
    with Archive(settings) as archive, Headers(settings) as headers:
        yield Site(archive, headers)


def image(study: int, number: int = 1) -> str:
    """Id of a slice of a study, counted from 0."""
    return dicom_point_id(f"{STUDIES[study].uid}.1.{number}", 0)


def read(document: Document) -> Dataset:
    return dcmread(io.BytesIO(document.file))


def listed(made: Dataset) -> set[str]:
    """SOP Instance UIDs of the evidence."""
    lists = ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
    return {
        one.ReferencedSOPInstanceUID
        for name in lists
        for study in made.get(name, ())
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


def items(made: Dataset) -> Iterator[Dataset]:
    for item in made.get("ContentSequence", ()):
        yield item
        yield from items(item)


def report(site: Site, kind: Any = "sr", **more: Any) -> Plan:
    asked = ReportAsked(ASKED.uid, kind, **more)
    plan = plan_report(asked, site.tenant(), NOW)
    return replace(plan, verdict=Verdict("known", 0.41, 0.03))


def test_a_report_is_in_the_study_of_the_query_and_coded(site: Site) -> None:
    plan = report(site, exclude=None, group_by=None, image=image(0), k=20)
    made = read(site.made(plan))
    assert (made.StudyInstanceUID, made.Modality) == (ASKED.uid, "SR")
    assert (str(made.PatientName), made.PatientID) == (ANNA.name, ANNA.id)
    assert (made.PatientBirthDate, made.AccessionNumber) == (ANNA.born, ASKED.accession)
    assert made.SpecificCharacterSet == "ISO_IR 192"
    title = made.ConceptNameCodeSequence[0]
    assert (title.CodeMeaning, title.CodeValue) != ("Imaging Measurement Report", "126000")
    found = list(items(made))
    values = {
        name: [
            item.MeasuredValueSequence[0].get("FloatingPointValue")
            or float(item.MeasuredValueSequence[0].NumericValue)
            for item in found
            if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == name
        ]
        for name in ("similarity", "hamming", "p")
    }
    assert values["similarity"] == [hit.similarity for hit in plan.hits]
    assert values["hamming"] == [hit.hamming for hit in plan.hits]
    assert values["p"] == [0.41]
    codes = [item.ConceptCodeSequence[0].CodeValue for item in found if item.ValueType == "CODE"]
    assert "known" in codes
    texts = " ".join(item.TextValue for item in found if item.ValueType == "TEXT")
    assert plan.model in texts
    # No image in the tree, which OHIF shows as "not supported"; what is the patient's is evidence.
    assert "IMAGE" not in {item.ValueType for item in found}
    own = {f"{study.uid}.1.{n}" for study in STUDIES if study.patient is ANNA for n in range(3)}
    assert listed(made) <= own
    assert len(listed(made)) > 3


def test_a_pdf_says_the_same(site: Site) -> None:
    made = read(site.made(report(site, "pdf")))
    assert (made.StudyInstanceUID, made.Modality) == (ASKED.uid, "DOC")
    assert made.EncapsulatedDocument.startswith(b"%PDF-")
    assert len(made.EncapsulatedDocument) % 2 == 0
    assert made.MIMETypeOfEncapsulatedDocument == "application/pdf"


def test_earlier_images_of_the_patient_get_a_selection_in_each_study(site: Site) -> None:
    plans = plan_earlier(ASKED.uid, 100, site.tenant(), site.headers, NOW)
    made = [read(site.made(plan)) for plan in plans]
    assert {one.StudyInstanceUID for one in made} == {STUDIES[1].uid, STUDIES[2].uid}
    for one in made:
        assert one.ConceptNameCodeSequence[0].CodeMeaning == "Of Interest"
        assert one.PatientID == ANNA.id
        assert listed(one) == {f"{one.StudyInstanceUID}.1.{n}" for n in range(3)}
    with pytest.raises(ImageNotFound, match="no earlier study"):
        plan_earlier(STUDIES[1].uid, 10, site.tenant(), site.headers, NOW)


def test_each_chosen_hit_gets_a_selection_in_its_own_study(site: Site) -> None:
    plans = plan_teaching([image(4), image(5), image(4)], site.tenant(), NOW)
    made = [read(site.made(plan)) for plan in plans]
    assert [one.StudyInstanceUID for one in made] == [STUDIES[4].uid, STUDIES[5].uid]
    for one, study in zip(made, STUDIES[4:], strict=False):
        assert one.PatientID == study.patient.id
        assert one.ConceptNameCodeSequence[0].CodeMeaning == "For Teaching File Export"
        assert len(listed(one)) == 1
    with pytest.raises(QueryError, match="0 images"):
        plan_teaching([], site.tenant(), NOW)
    with pytest.raises(QueryError, match="k is 101"):
        plan_report(ReportAsked(ASKED.uid, k=101), site.tenant(), NOW)


KINDS = ("sr", "pdf", "of-interest", "teaching")


@pytest.mark.parametrize("kind", KINDS)
def test_validators_find_no_error(site: Site, tmp_path: Path, kind: str) -> None:
    validator = package("dicom3tools")
    if kind in ("sr", "pdf"):
        plans = [report(site, kind, exclude=None, group_by=None, k=20)]
    elif kind == "teaching":
        # Of a patient without date of birth, with a name in three scripts.
        plans = plan_teaching([image(5)], site.tenant(), NOW)
    else:
        plans = plan_earlier(ASKED.uid, 10, site.tenant(), site.headers, NOW)
    file = tmp_path / "document.dcm"
    file.write_bytes(site.made(plans[0]).file)
    checked = subprocess.run([validator, "-new", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "Error" not in checked.stdout + checked.stderr
    if kind != "pdf":
        shown = subprocess.run([dcmtk("dsrdump"), file], capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        title = "Comprehensive SR" if kind == "sr" else "Key Object Selection"
        assert title in shown.stdout


hits_of = st.lists(
    st.tuples(st.integers(0, len(STUDIES) - 1), st.integers(0, 2)), min_size=1, max_size=12
)


@examples(max_examples=15)
@given(
    kind=st.sampled_from(KINDS),
    hits=hits_of,
    similarity=st.floats(-1, 1),
    identify=st.booleans(),
)
def test_no_document_names_another_patient(
    site: Site,
    kind: Any,
    hits: Sequence[tuple[int, int]],
    similarity: float,
    identify: bool,
) -> None:
    query = hits[0]
    found = [Listed(image(*one), similarity, 3) for one in hits]
    plan = Plan.new(kind, image(*query), found, NOW, model="0123456789abcdef", bits=64)
    studies = {STUDIES[one[0]] for one in hits}
    if kind in ("of-interest", "teaching") and len(studies) > 1:
        with pytest.raises(DocumentError, match=r"several patients|one study"):
            site.made(plan)
        return
    document = site.made(plan, identify=identify)
    whose = STUDIES[query[0]].patient
    allowed = set().union(*(identifiers(one) for one in STUDIES if one.patient is whose))
    made = read(document)
    words = document.file.decode("utf-8", "replace")
    if kind == "pdf":
        words += _text_of(made.EncapsulatedDocument)
    assert made.PatientID == whose.id
    for study in STUDIES:
        if study.patient is whose:
            continue
        never = identifiers(study) - allowed
        if identify and kind in ("sr", "pdf"):
            # With the setting UIDs are named; still no name, number or date of birth.
            never = {one for one in never if not one.startswith(study.uid)}
        assert not {one for one in never if one in words}
        assert not any(one.startswith(study.uid + ".") for one in listed(made))
        ids = {image(STUDIES.index(study), n) for n in range(3)}
        assert not {one for one in ids if one in words}


def test_with_the_setting_other_patients_studies_are_named(site: Site) -> None:
    plan = Plan.new("sr", image(0), [Listed(image(4), 0.9, 3)], NOW, model="m", bits=64)
    assert STUDIES[4].uid.encode() in site.made(plan, identify=True).file
    assert STUDIES[4].uid.encode() not in site.made(plan).file


def test_a_plan_that_was_written_down_makes_the_same_document(site: Site) -> None:
    plan = report(site)
    again = plan_from(plan_text(plan))
    assert again == plan
    assert site.made(again).file == site.made(plan).file
    patients = {word for one in PATIENTS for word in (one.id, *one.name.split("^"))}
    assert not {word for word in patients if word in str(plan_text(plan))}


def test_a_similarity_that_is_no_number_is_refused() -> None:
    with pytest.raises(DocumentError, match="NaN"):
        Plan.new("sr", image(0), [Listed(image(1), float("nan"), 3)], NOW)


def test_what_has_become_another_patients_file_makes_no_document(site: Site) -> None:
    path = site.archive.paths([image(6)])[image(6)]
    before = path.read_bytes()
    plan = plan_teaching([image(6)], site.tenant(), NOW)[0]
    changed = dcmread(path)
    changed.PatientID = "SOMEBODY-ELSE"
    changed.save_as(path)
    with pytest.raises(DocumentError, match=r"names another patient.*'clinic'"):
        site.made(plan)
    path.unlink()
    with pytest.raises(DocumentError, match=r"sources\.clinic\.paths"):
        site.made(plan)
    path.write_bytes(before)
    assert site.made(plan).file


def _text_of(pdf: bytes) -> str:
    """What a PDF shows, as dcmtk and viewers would find it."""
    import re
    import zlib
    from base64 import a85decode

    shown = []
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        packed = stream.strip()
        plain = zlib.decompress(a85decode(packed[: packed.rindex(b"~>")]))
        shown += re.findall(rb"\((.*?)\) Tj", plain, re.DOTALL)
    return b" ".join(shown).decode("cp1252")
