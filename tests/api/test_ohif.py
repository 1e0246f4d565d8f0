"""The real OHIF in a real browser, beside a real PACS, set up as docs/integration.md says."""

import datetime
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from oidc_site import bearer
from PIL import Image
from pydicom import Dataset, dcmread
from services.browser import Browser
from services.ohif import Ohif
from services.orthanc import Orthanc
from services.running import served

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.integration_settings import QidoSettings, ViewerSettings
from engine.settings import Settings
from indexer.archive import Archive
from indexer.sample.encoding import save
from indexer.sample.headers import Patient, Study, uid
from indexer.sample.studies import PROTOCOLS
from indexer.sources.folder import FolderSource

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_VISITS = (
    # patient, year, kind of study
    (1, 2023, "ct-chest"),
    (1, 2019, "ct-chest"),
    (2, 2021, "ct-chest"),
    (3, 2022, "ct-head"),
)
_SLICES = 4


@dataclass(frozen=True)
class Site:
    """OHIF, and what it shows. query: the study that is asked about."""

    ohif: Ohif
    service: httpx.Client
    orthanc: Orthanc
    query: str

    def related(self, **options: Any) -> list[dict[str, Any]]:
        """The hits."""
        path = f"/v1/studies/{self.query}/related"
        return self.service.get(path, params=options).raise_for_status().json()["hits"]

    def slice_of(self, study: str, number: int) -> dict[str, Any]:
        """The hit that is the image with this Instance Number."""
        images = httpx.get(f"{self.orthanc.url}/studies/{study}/instances").json()
        (sop,) = (
            one["00080018"]["Value"][0] for one in images if one["00200013"]["Value"] == [number]
        )
        (found,) = (one for one in self.related(group_by="none", k=50) if one["sop"] == sop)
        return found

    def stored(self, form: str) -> Dataset:
        """A report of what is related, once the PACS has it."""
        made = self.service.post(f"/v1/studies/{self.query}/report", json={"format": form})
        self.orthanc.upload([made.raise_for_status().content])
        return dcmread(io.BytesIO(made.content))


def draw(folder: Path) -> list[str]:
    """Draws patients who do not exist; the Study Instance UIDs."""
    made = []
    for number, (who, year, kind) in enumerate(_VISITS):
        (protocol,) = (one for one in PROTOCOLS if one.name == kind)
        patient = Patient(
            *(f"DRAWN-{who}", f"Drawn^Patient {who}", "F", datetime.date(1960, 1, who)),
            anatomy=who,
            lesion=False,
        )
        of = uid("ohif", number)
        study = Study(patient, of, datetime.date(year, 3, 1), protocol.description, number + 1, 9)
        for place, instance in enumerate(islice(protocol.build(study), _SLICES)):
            save(instance.dataset, folder / str(number) / f"{place}.dcm")
        made.append(str(of))
    return made


@pytest.fixture(scope="module")
def site(indexed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("ohif")
    query, *_ = draw(root / "pacs")
    sources = {"pacs": {"kind": "folder", "paths": [root / "pacs"]}}
    plain = Settings(
        data_dir=root / "data",
        model=indexed.settings.model,
        indexing=indexed.settings.indexing,
        sources=sources,
    )
    with Archive(plain, create=True) as archive:
        archive.index(FolderSource([root / "pacs"], name="pacs"))
        keys = Keys(archive._database)
        _, searching = keys.create("ohif", [Scope.SEARCH])
        _, every = keys.create("portal", [Scope.SEARCH, Scope.SEND])
    with Orthanc() as orthanc:
        orthanc.upload(path.read_bytes() for path in sorted((root / "pacs").rglob("*.dcm")))
        pacs = orthanc.root.removeprefix("http://")
        # Where the viewer is has to be known to the service, and the other way round.
        viewer = Ohif(pacs, searching)
        settings = plain.model_copy(
            update={
                "viewers": {"ohif": ViewerSettings(kind="ohif", url=viewer.url, sources=("pacs",))},
                "qido": QidoSettings(
                    wado_root=orthanc.url, sources=("pacs",), patients="pseudonym"
                ),
            }
        )
        with (
            served(create_service(settings)) as address,
            viewer.before(address.removeprefix("http://")),
            httpx.Client(base_url=address, headers=bearer(every), timeout=60) as service,
        ):
            yield Site(viewer, service, orthanc, query)


_SLICE = r"(/I: *(\d+) \(\d+\/\d+\)/.exec(document.body.innerText) ?? [])[1]"
"""Instance Number of what is in the viewport, or in the first one."""
_CANVASES = "document.querySelectorAll('canvas').length"
_PDF = """(async () => {
  const shown = document.querySelector('object[type="application/pdf"]')
  return shown && (await (await fetch(shown.data)).blob()).size
})()"""


def cell(text: str) -> str:
    return f"[...document.querySelectorAll('td')].find(one => one.innerText.startsWith('{text}'))"


def button(text: str) -> str:
    return f"[...document.querySelectorAll('button')].find(one => one.innerText === '{text}')"


def test_ohif_shows_what_is_related(site: Site, tmp_path: Path) -> None:
    """Pictures of each step are written to the test's folder."""
    hits = site.related()
    assert len(hits) == 2
    with Browser(tmp_path / "browser") as browser:
        # By rank.
        browser.open(f"{site.ohif.url}/?datasources=related&related={site.query}")
        listed = browser.until_text("#2 ")
        browser.photograph(tmp_path / "list.png")
        kinds = [f"CT {one['body_part']} {one['study_year']}" for one in hits]
        places = [listed.index(f"#{n} {one['similarity']:.2f} ") for n, one in enumerate(hits, 1)]
        assert places == sorted(places)
        assert [listed[at:].splitlines()[0].split(" ", 2)[2] for at in places] == kinds

        browser.click(cell("#1 "))
        browser.click(button("Basic Viewer"))
        assert browser.until(_SLICE)
        # Beside it the patient's other studies, asked of us as well: there are none.
        said = browser.until_text("#1 ")
        assert "#2 " not in said
        browser.photograph(tmp_path / "opened-from-the-list.png")
        asked = [one for one in site.ohif.asked if " /dicomweb/" in one]
        assert {one.split()[0] for one in asked} == {"200"}
        for part in ("/series?", "&StudyInstanceUID=", "?00100020="):
            assert any(part in one for one in asked), part
        browser.click("document.querySelector('[data-cy=return-to-work-list]')")
        browser.until_text("#2 ")

        # Not the first slice, at which a study opens anyway.
        third = site.slice_of(hits[0]["study"], 3)
        browser.open(third["viewers"][0]["url"])
        browser.until(f"{_SLICE} === '3'")
        browser.until(f"{_CANVASES} === 1")
        _until_drawn(browser, tmp_path / "hit.png")

        browser.open(hits[0]["viewers"][0]["beside"])
        browser.until(f"{_CANVASES} === 2")
        said = browser.until_text("Multiple Patients")
        assert {"01-Mar-2023", f"01-Mar-{hits[0]['study_year']}"} <= set(said.splitlines())
        _until_drawn(browser, tmp_path / "beside.png")

        query = f"{site.ohif.url}/viewer?StudyInstanceUIDs={site.query}&initialSeriesInstanceUID="
        report = site.stored("sr")
        browser.open(query + report.SeriesInstanceUID)
        said = browser.until_text("Similar case 2: similarity")
        assert "Hamming distance" in said
        browser.photograph(tmp_path / "report.png")
        document = site.stored("pdf")
        browser.open(query + document.SeriesInstanceUID)
        assert browser.until(_PDF) == len(document.EncapsulatedDocument)
        browser.photograph(tmp_path / "document.png")


def test_a_panel_shows_what_is_related_and_opens_it_beside(site: Site, tmp_path: Path) -> None:
    """Pictures of each step are written to the test's folder."""
    hits = {one["study"]: one for one in site.related()}
    with Browser(tmp_path / "browser") as browser:
        browser.open(f"{site.ohif.elsewhere}/viewer?StudyInstanceUIDs={site.query}")
        browser.until("document.querySelector('[data-cy=related-btn]') !== null", 200)
        browser.click("document.querySelector('[data-cy=related-btn]')")
        panel = browser.frame("/embed")
        panel.until_text(f"{len(hits)} related cases")
        browser.photograph(tmp_path / "panel.png")
        opened = panel.evaluate("document.querySelector('button[data-study]').dataset.study")
        assert opened in hits
        panel.evaluate("document.querySelector('button[data-study]').click()")
        browser.until(f"location.search.includes('{opened}')")
        browser.until(f"{_CANVASES} === 2", 200)
        said = browser.until_text("Multiple Patients")
        assert {"01-Mar-2023", f"01-Mar-{hits[opened]['study_year']}"} <= set(said.splitlines())
        # It is still about the study that was opened first.
        browser.click("document.querySelector('[data-cy=related-btn]')")
        browser.frame("/embed").until_text(f"{len(hits)} related cases")
        browser.photograph(tmp_path / "beside-the-panel.png")


def _until_drawn(browser: Browser, path: Path) -> None:
    """Waits until there is more in the middle of the page than one shade of grey."""

    def is_drawn() -> bool:
        browser.photograph(path)
        with Image.open(path) as picture:
            middle = np.asarray(picture.convert("L"))[200:600, 400:1400]
        return float(middle.std()) > 20

    assert any(is_drawn() for _ in range(60)), "nothing is drawn"
