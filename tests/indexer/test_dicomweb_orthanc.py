"""The DICOMweb source over a real Orthanc, compared instance by instance with what went in."""

import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import dataset, encode
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from services.orthanc import Orthanc

from engine.errors import ImageRefused, SourceError
from engine.settings import DicomWebSettings, ImageLimits
from indexer.sources.dicomweb.session import Session
from indexer.sources.dicomweb.source import DicomWebSource
from indexer.sources.dicomweb.together import Together

USER = ("reader", "a long password")
SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    JPEG2000Lossless,
]
DATES = ["20191230", "20200101", "20200131", "20200201", "20201115", "", "20210704", "20210705"]
MODALITIES = ["CT", "MR", "CR"]
KINDS = ["instance", "series"]


@dataclass(frozen=True)
class Stored:
    study: str
    series: str
    sop: str
    date: str
    modality: str
    content: bytes

    @property
    def path(self) -> str:
        return f"/studies/{self.study}/series/{self.series}/instances/{self.sop}"


def made() -> Iterator[Stored]:
    """Eight studies of four patients, three series each, of one modality each, and of 15 instances
    each, one after another in each transfer syntax."""
    rng = np.random.default_rng(7)
    for number, day in enumerate(DATES):
        for inner, modality in enumerate(MODALITIES):
            for slice_ in range(15):
                pixels = rng.integers(0, 4096, (32, 32), dtype=np.uint16)
                study = f"1.2.826.0.1.{number + 1}"
                elements = {
                    "StudyInstanceUID": study,
                    "SeriesInstanceUID": f"{study}.{inner + 1}",
                    "SOPInstanceUID": f"{study}.{inner + 1}.{slice_ + 1}",
                    "PatientID": f"P{number // 2}",
                    "Modality": modality,
                    "StudyDate": day,
                    "InstanceNumber": slice_ + 1,
                }
                syntax = SYNTAXES[(slice_ + inner) % len(SYNTAXES)]
                image = dataset(pixels, **elements)
                if syntax.is_compressed:
                    image = pydicom.dcmread(io.BytesIO(encode(image)))
                    image.compress(syntax, generate_instance_uid=False)
                uids = (image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID)
                yield Stored(*map(str, uids), day, modality, encode(image, syntax))


@pytest.fixture(scope="module")
def stored() -> list[Stored]:
    return list(made())


@pytest.fixture(scope="module")
def orthanc(stored: list[Stored]) -> Iterator[Orthanc]:
    with Orthanc(user=USER) as running:
        running.upload(one.content for one in stored)
        yield running


def source(
    orthanc: Orthanc, *, query: dict[str, Any] | None = None, **settings: Any
) -> DicomWebSource:
    chosen = {
        "kind": "dicomweb",
        "url": orthanc.url,
        "username": USER[0],
        "password": USER[1],
        "timeout_seconds": 10,
        **settings,
    }
    return DicomWebSource("orthanc", DicomWebSettings(**chosen), ImageLimits(), **(query or {}))


def paths(orthanc: Orthanc, found: DicomWebSource) -> list[str]:
    locators = [one.locator for one in found.instances()]
    assert all(one.startswith(orthanc.url) for one in locators)
    return [one.removeprefix(orthanc.url) for one in locators]


@pytest.mark.parametrize("page", [7, 15, 500])
def test_every_instance_is_found_once(orthanc, stored, page):
    found = paths(orthanc, source(orthanc, page=page))
    assert sorted(found) == sorted(one.path for one in stored)
    assert len(found) == 360


@pytest.mark.parametrize("kind", KINDS)
def test_every_instance_comes_back_byte_by_byte(orthanc, stored, kind):
    contents = {one.path: one.content for one in stored}
    reading = source(orthanc, retrieve=kind)
    locators = [one.locator for one in reading.instances()]
    received = list(reading.images(locators))
    assert len(received) == len(stored)
    for locator, content in zip(locators, received, strict=True):
        assert content == contents[locator.removeprefix(orthanc.url)]


def test_the_transfer_syntax_is_the_stored_one(stored):
    """What the comparison above rests on: all five syntaxes went in."""
    syntaxes = {
        re.search(rb"1\.2\.840\.10008\.1\.2[.0-9]*", one.content)[0].decode() for one in stored
    }
    assert syntaxes == {str(syntax) for syntax in SYNTAXES}


@pytest.mark.parametrize("kind", KINDS)
def test_some_of_a_series_in_any_order(orthanc, stored, kind):
    some = [*reversed(stored[10:40]), *stored[200:203], stored[15]]
    received = source(orthanc, retrieve=kind).images(orthanc.url + one.path for one in some)
    assert list(received) == [one.content for one in some]


@pytest.mark.parametrize(
    ("since", "until"),
    [
        (date(2020, 1, 1), date(2020, 12, 31)),
        (date(2020, 1, 31), date(2020, 2, 1)),
        (date(2021, 7, 5), None),
        (None, date(2020, 1, 1)),
        (date(2022, 1, 1), date(2022, 3, 1)),
    ],
)
def test_dates_choose_studies(orthanc, stored, since, until):
    first = "" if since is None else f"{since:%Y%m%d}"
    last = "99999999" if until is None else f"{until:%Y%m%d}"
    expected = [one.path for one in stored if one.date and first <= one.date <= last]
    found = paths(orthanc, source(orthanc, query={"since": since, "until": until}))
    assert sorted(found) == sorted(expected)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of all requests from here on."""
    asked: list[str] = []
    send = Session.send

    def noting(session: Session, request: Any, **options: Any) -> Any:
        asked.append(request.url)
        return send(session, request, **options)

    monkeypatch.setattr(Session, "send", noting)
    return asked


def test_listing_takes_a_tenth_of_the_requests(orthanc, stored, searched, monkeypatch):
    """`-s` prints how many there are. By series is what is done where counts do not agree."""
    found = paths(orthanc, source(orthanc))
    together = len(searched)
    monkeypatch.setattr(Together, "takes", lambda *_: False)
    searched.clear()
    assert sorted(paths(orthanc, source(orthanc))) == sorted(found)
    by_series = len(searched)
    print(
        f"{len(found)} instances of {len(DATES)} studies: {together} requests, {by_series} before"
    )
    assert together * 10 <= by_series


def test_what_came_went_or_was_replaced_is_noticed(stored, searched):
    some, new = stored[:60], stored[60]
    with Orthanc(user=USER) as own:
        identifiers = own.upload(one.content for one in some)
        assert sorted(paths(own, source(own))) == sorted(one.path for one in some)
        own.delete(identifiers[4])
        without = [*some[:4], *some[5:]]
        assert sorted(paths(own, source(own))) == sorted(one.path for one in without)
        # As many instances as at first, in the same number of studies.
        own.upload([new.content])
        assert sorted(paths(own, source(own))) == sorted(one.path for one in [*without, new])
    assert not any("/series" in address for address in searched)


def test_a_study_without_a_date_is_found_without_dates_alone(orthanc, stored):
    undated = {one.study for one in stored if not one.date}
    everything = {"since": date(1900, 1, 1), "until": date(1900, 2, 1)}
    assert paths(orthanc, source(orthanc, query=everything)) == []
    (study,) = undated
    found = paths(orthanc, source(orthanc, query={"study": study}))
    assert sorted(found) == sorted(one.path for one in stored if one.study == study)


def test_modality_chooses_series(orthanc, stored):
    query = {"modality": "MR", "since": date(2020, 1, 1), "until": date(2020, 12, 31)}
    expected = [one.path for one in stored if one.modality == "MR" and one.date.startswith("2020")]
    assert sorted(paths(orthanc, source(orthanc, query=query))) == sorted(expected)
    assert paths(orthanc, source(orthanc, query={"modality": "US"})) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_password_is_told_of_without_showing_it(orthanc, stored, kind):
    wrong = source(orthanc, password="a wrong one", retrieve=kind)
    for attempt in (
        lambda: list(wrong.instances()),
        lambda: list(wrong.images([orthanc.url + one.path for one in stored[:20]])),
    ):
        with pytest.raises(SourceError, match=r"sources\.orthanc\.password") as caught:
            attempt()
        assert "wrong one" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_longer_there_is_refused_and_the_rest_comes(stored, kind):
    some = stored[:15]
    with Orthanc(user=USER) as own:
        identifiers = own.upload(one.content for one in some)
        own.delete(identifiers[4])
        locators = [own.url + one.path for one in some]
        received = list(source(own, retrieve=kind).images(locators))
        other = source(own, retrieve=kind).images([own.url + stored[300].path])
        assert isinstance(next(other), ImageRefused)
    assert isinstance(received[4], ImageRefused)
    assert "no longer has it" in str(received[4])
    del received[4]
    assert received == [one.content for one in [*some[:4], *some[5:]]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_stops_and_comes_back_is_waited_for(stored, kind):
    some = stored[:60]
    with Orthanc(user=USER) as own:
        own.upload(one.content for one in some)
        reading = source(own, retrieve=kind, max_connections=1, attempts=12)
        received = reading.images(own.url + one.path for one in some)
        contents = [next(received)]
        own.kill()
        started = time.monotonic()
        own.start()
        contents.extend(received)
    assert contents == [one.content for one in some]
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_server_that_stays_away_ends_the_work_and_a_later_one_finishes_it(stored):
    some = stored[:30]
    with Orthanc(user=USER) as own:
        own.upload(one.content for one in some)
        locators = [own.url + one.path for one in some]
        reading = source(own, max_connections=1, attempts=1)
        contents = []
        with pytest.raises(SourceError, match="could not be used in one attempt"):
            for content in reading.images(locators):
                contents.append(content)
                if len(contents) == 5:
                    own.stop()
        with pytest.raises(SourceError):
            list(reading.instances())
        own.start()
        contents.extend(reading.images(locators[len(contents) :]))
    assert contents == [one.content for one in some]
