"""STOW-RS with the clients that there are: dicomweb-client of PyPI and of npm, and Orthanc."""

import io
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import requests
from dicomweb_client import DICOMwebClient
from handed_in import slice_file
from services.node import installed
from services.orthanc import Orthanc
from services.running import served

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.settings import ReceiveSettings, Settings
from indexer.datadir.layout import DataDir
from indexer.ledger.database import open_database

FOLDER = Path(__file__).parents[1] / "services" / "dicomweb"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Site:
    """A service that receives. address: of its DICOMweb."""

    address: str
    key: str
    settings: Settings

    def stored(self) -> set[str]:
        folder = DataDir(self.settings.data_dir).received
        return {path.stem for path in folder.glob("*/*/*.dcm")}


@pytest.fixture(scope="module")
def site(indexed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    receive = ReceiveSettings(idle_seconds=600, min_free_bytes=0)
    settings = indexed.copy(tmp_path_factory.mktemp("stow") / "data")
    settings = settings.model_copy(update={"receive": receive})
    with open_database(settings, DataDir(settings.data_dir).ledger) as database:
        _, key = Keys(database).create("modality", [Scope.INDEX])
    with served(create_service(settings)) as address:
        yield Site(f"{address}/dicomweb", key, settings)


def data_sets(*numbers: int) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(io.BytesIO(slice_file(number))) for number in numbers]


def test_dicomweb_client_of_pypi(site):
    session = requests.Session()
    session.trust_env = False
    session.headers["Authorization"] = f"Bearer {site.key}"
    # So small that the body comes in chunks, without a length.
    client = DICOMwebClient(site.address, session, chunk_size=4000)
    answer = client.store_instances(data_sets(100, 101), study_instance_uid="1.2.8.50")
    told = [one.ReferencedSOPInstanceUID for one in answer.ReferencedSOPSequence]
    assert told == ["1.2.7.100", "1.2.7.101"]
    assert set(told) <= site.stored()
    answer = client.store_instances(data_sets(101, 102), study_instance_uid="1.2.8.50")
    assert [one.FailureReason for one in answer.FailedSOPSequence] == [272]
    with pytest.raises(requests.HTTPError, match="409"):
        client.store_instances(data_sets(103), study_instance_uid="1.2.8.50")
    session.headers["Accept"] = "application/dicom+xml"
    answer = client.store_instances(data_sets(104))
    assert answer.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.7.104"
    assert not {"1.2.7.102", "1.2.7.103"} & site.stored()


def test_dicomweb_client_of_npm(site, tmp_path: Path):
    node = installed(FOLDER)
    paths = []
    for number in (110, 111):
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(slice_file(number))

    def store(study: str) -> dict[str, object]:
        command = [node, FOLDER / "store.js", site.address, site.key, study, *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return told

    assert store("-")["status"] == 200
    assert {"1.2.7.110", "1.2.7.111"} <= site.stored()
    assert store("1.2.8.55")["status"] == 200
    assert store("1.2.8.56")["status"] == 409


def test_orthanc_as_sender(site):
    headers = {"Authorization": f"Bearer {site.key}"}
    peer = {"Url": f"{site.address}/", "HttpHeaders": headers}
    web = {"Enable": True, "Root": "/dicom-web/", "Servers": {"precedent": peer}}
    with Orthanc(more={"DicomWeb": web}) as orthanc:
        identifiers = orthanc.upload(slice_file(number) for number in range(120, 140))
        wanted = {"Resources": identifiers, "Synchronous": True}
        with requests.Session() as session:
            session.trust_env = False
            stow = f"{orthanc.url}/servers/precedent/stow"
            answer = session.post(stow, json=wanted, timeout=60)
        assert answer.status_code == 200, answer.text + orthanc.last_words()
    assert {f"1.2.7.{number}" for number in range(120, 140)} <= site.stored()
