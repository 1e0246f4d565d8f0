"""The same archive gives the same index, whichever way it comes in: from a folder, over DICOMweb,
pushed by C-STORE with dcmtk, and pushed by a PACS."""

import io
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import CT, SECONDARY_CAPTURE, dataset, encode
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless
from services.needed import dcmtk
from services.orthanc import Orthanc
from sites import Site

from engine.records import Point
from engine.settings import DicomWebSettings, ImageLimits, ReceiveSettings
from engine.store.base import Filter
from indexer.files.locators import file_locator
from indexer.ledger.instances import Ledger
from indexer.sources.base import ImageSource
from indexer.sources.dicomweb.source import DicomWebSource
from indexer.sources.folder import FolderSource
from indexer.sources.pushed.inbox import Inbox, ReceivedSource
from indexer.sources.pushed.storescp import StoreScp

LOCAL = "127.0.0.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
CR = "1.2.840.10008.5.1.4.1.1.1"
BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"
KINDS = [("CT", CT, "CHEST"), ("MR", MR, "BRAIN"), ("CR", CR, "HAND")]
SYNTAXES = [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless]
PRIVATE = "Hidden in a private element"


@dataclass(frozen=True)
class Made:
    """An instance of the archive. syntax: as it is stored."""

    study: str
    series: str
    sop: str
    syntax: str
    content: bytes


def images() -> Iterator[Dataset]:
    """Six studies of three patients, each with a series of each kind, of six images each; then a
    multi-frame image, one of colour, one with private elements, and a report without pixels."""
    rng = np.random.default_rng(11)
    x, y = np.meshgrid(np.arange(48), np.arange(48))
    for study in range(6):
        for series, (modality, sop_class, part) in enumerate(KINDS):
            for number in range(6):
                waves = np.sin((x * rng.uniform(-1, 1) + y) * rng.uniform(0.1, 0.6))
                pixels = 2000 + 1500 * waves + rng.normal(0, 60, waves.shape)
                yield named(
                    dataset(pixels.clip(0, 4095).astype(np.uint16)),
                    study,
                    series,
                    number,
                    SOPClassUID=sop_class,
                    Modality=modality,
                    BodyPartExamined=part,
                    Manufacturer=["Maker A", "Maker B"][study % 2],
                    Laterality="RL"[number % 2] if modality == "CR" else "",
                    ViewPosition="AP" if modality == "CR" else "",
                    WindowCenter=2000,
                    WindowWidth=3000 + 100 * number,
                )
    frames = rng.integers(0, 255, (12, 40, 40), np.uint8)
    yield named(dataset(frames), 0, 7, 0, SOPClassUID=SECONDARY_CAPTURE, Modality="US")
    colour = rng.integers(0, 255, (40, 40, 3), np.uint8)
    yield named(dataset(colour), 1, 7, 0, SOPClassUID=SECONDARY_CAPTURE, Modality="OT")
    private = named(dataset(rng.integers(0, 4000, (40, 40), np.uint16)), 2, 7, 0, Modality="CT")
    private.private_block(0x0043, PRIVATE.upper(), create=True).add_new(0x10, "LO", PRIVATE)
    yield private
    yield named(dataset(), 3, 7, 0, SOPClassUID=BASIC_TEXT_SR, Modality="SR")


def named(made: Dataset, study: int, series: int, number: int, **elements: Any) -> Dataset:
    made.StudyInstanceUID = f"1.2.826.0.1.{study + 1}"
    made.SeriesInstanceUID = f"{made.StudyInstanceUID}.{series + 1}"
    made.SOPInstanceUID = f"{made.SeriesInstanceUID}.{number + 1}"
    made.PatientID = f"P{study // 2}"
    made.PatientName = "Hidden^Somebody"
    made.PatientSex = "FM"[study // 2 % 2]
    made.PatientAge = f"{20 + 15 * study:03}Y"
    made.StudyDate = f"20{10 + study}0401"
    made.InstanceNumber = number + 1
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def archive() -> Iterator[Made]:
    for number, image in enumerate(images()):
        syntax = SYNTAXES[number % 3] if "PixelData" in image else ExplicitVRLittleEndian
        made = image
        if syntax != ExplicitVRLittleEndian:
            made = pydicom.dcmread(io.BytesIO(encode(image)))
            made.compress(syntax, generate_instance_uid=False)
        uids = (made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID)
        yield Made(*map(str, uids), syntax, encode(made, syntax))


class Index:
    """What an archive became. where: an instance's locator."""

    def __init__(self, site: Site, source: ImageSource, where: Callable[[Made], str]) -> None:
        self.site = site
        with site.open(create=True) as opened:
            self.report = opened.index(source)
            self.points: dict[str, Point] = {
                point.id: point for point in opened.store.scroll(Filter(), with_z=True)
            }
        self.where = where

    def ids(self, made: list[Made]) -> dict[str, list[str]]:
        """Point ids by SOP Instance UID, as the ledger has them."""
        with self.site.database() as database:
            found = Ledger(database.of("default")).points_of([self.where(one) for one in made])
        return {one.sop: sorted(found.get(self.where(one), [])) for one in made}

    def refused(self, made: list[Made]) -> dict[str, str]:
        """Reasons by SOP Instance UID."""
        with self.site.database() as database:
            refusals = Ledger(database.of("default")).refusals(1000)
        uids = {self.where(one): one.sop for one in made}
        return {uids[one.locator]: one.reason.value for one in refusals}


@pytest.fixture(scope="module")
def made() -> list[Made]:
    return list(archive())


@pytest.fixture(scope="module")
def new_place(new_site: Callable[..., Site]) -> Callable[[], Site]:
    """Sites that know patients by the same pseudonyms and encode one image at a time: else a
    vector's last bits may depend on the images that were encoded along with it."""

    def make() -> Site:
        site = new_site(batch_size=1)
        site.settings = type(site.settings).model_validate(
            {**site.settings.model_dump(), "pseudonym_key": "k" * 32}
        )
        return site

    return make


@pytest.fixture(scope="module")
def sent(made: list[Made], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The archive as files, by SOP Instance UID."""
    root = tmp_path_factory.mktemp("archive")
    paths = {}
    for one in made:
        path = paths[one.sop] = root / one.study / one.series / f"{one.sop}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one.content)
    return paths


@pytest.fixture(scope="module")
def from_folder(made, sent, new_place) -> Index:
    root = next(iter(sent.values())).parents[2]
    return Index(new_place(), FolderSource([root]), lambda one: file_locator(sent[one.sop]))


def over_dicomweb(made: list[Made], sent: dict[str, Path], site: Site) -> Index:
    with Orthanc() as orthanc:
        orthanc.upload(one.content for one in made)
        settings = DicomWebSettings.model_validate({"kind": "dicomweb", "url": orthanc.url})
        source = DicomWebSource("orthanc", settings, ImageLimits())
        return Index(
            site,
            source,
            lambda one: (
                f"{orthanc.url}/studies/{one.study}/series/{one.series}/instances/{one.sop}"
            ),
        )


def pushed_by_dcmtk(made: list[Made], sent: dict[str, Path], site: Site) -> Index:
    def push(port: int) -> None:
        plain = [sent[one.sop] for one in made if one.syntax == ExplicitVRLittleEndian]
        packed = [sent[one.sop] for one in made if one.syntax != ExplicitVRLittleEndian]
        for tool, options, files in (("storescu", ["-R"], plain), ("dcmsend", ["-dn"], packed)):
            names = ["-aet", "PACS", "-aec", "PRECEDENT"]
            command = [dcmtk(tool), "-v", *options, *names, LOCAL, str(port)]
            done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr

    return pushed(site, push)


def pushed_by_a_pacs(made: list[Made], sent: dict[str, Path], site: Site) -> Index:
    def push(port: int) -> None:
        with Orthanc(modalities={"precedent": ("PRECEDENT", LOCAL, port)}) as orthanc:
            orthanc.send("precedent", orthanc.upload(one.content for one in made))

    return pushed(site, push)


def pushed(site: Site, push: Callable[[int], None]) -> Index:
    receive = ReceiveSettings(port=0, allowed_ae_titles=("PACS", "ORTHANC"), min_free_bytes=0)
    scp = StoreScp(receive)
    with Inbox(site.settings.data_dir / "received", receive, 2**31) as inbox:
        try:
            push(scp.start(inbox))
        finally:
            scp.stop(10.0)
        paths = {path.stem: path for path in inbox.take()}
        assert len(paths) == len(list(inbox))
        return Index(site, ReceivedSource(paths.values()), lambda one: file_locator(paths[one.sop]))


@pytest.mark.slow
@pytest.mark.parametrize("way", [over_dicomweb, pushed_by_dcmtk, pushed_by_a_pacs])
def test_every_way_gives_the_same_points(way, made, sent, from_folder, new_place):
    index = way(made, sent, new_place())

    # Every instance is accounted for, one by one.
    known = from_folder.ids(made)
    assert index.ids(made) == known
    refused = index.refused(made)
    assert refused == from_folder.refused(made) == {made[-1].sop: "no-pixels"}
    for one in made:
        assert bool(known[one.sop]) != (one.sop in refused), one.sop
    assert len(set().union(*known.values())) == sum(map(len, known.values()))
    assert (index.report.indexed, index.report.refused) == (len(made) - 1, {"no-pixels": 1})

    # And everything that is said of them is the same, but where they come from.
    assert index.points.keys() == from_folder.points.keys() == set().union(*known.values())
    for key, point in index.points.items():
        other = from_folder.points[key]
        assert point.record.source != other.record.source
        assert replace(point.record, source="") == replace(other.record, source="")
        assert np.array_equal(point.code, other.code)
        assert point.z is not None
        assert np.array_equal(point.z, other.z)
    assert index.site.thumbnails() == from_folder.site.thumbnails()
    assert index.site.thumbnails().keys() == index.points.keys()


@pytest.mark.slow
def test_the_archive_has_what_the_comparison_needs(made, from_folder):
    points = from_folder.points.values()
    assert len(made) == 112
    assert Counter(one.syntax for one in made).keys() == set(SYNTAXES)
    assert len({point.record.study for point in points}) == 6
    assert len({point.record.patient for point in points}) == 3
    assert {point.record.modality for point in points} == {"CT", "MR", "CR", "US", "OT"}
    assert {point.record.frame for point in points} > {0, 11}
    for point in points:
        assert PRIVATE not in repr(point.record)
        assert "Hidden" not in repr(point.record)
