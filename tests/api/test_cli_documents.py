"""``precedent report``, ``key-objects``, ``send`` and ``sendings``: what they write, send and say,
and the rows that come before it."""

import gc
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import run
from pydicom import dcmread
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from services.commands import CommandProcess
from services.server import free_ports
from typer.testing import CliRunner

from api.audit.log import open_log
from api.cli.main import app
from engine.errors import DestinationUnknown, DocumentError, QueryError
from engine.records import dicom_point_id
from engine.settings import Settings

sys.path.append(str(Path(__file__).parents[1] / "indexer"))
from patients import ANNA, STUDIES, index_patients

ASKED = STUDIES[0]
BEGUN = 102


@pytest.fixture(scope="module")
def patients(store_root: Path, indexed) -> Settings:
    return index_patients(store_root, indexed.settings.model)


@pytest.fixture
def site(patients: Settings, tmp_path: Path, monkeypatch) -> Settings:
    """The archive; commands write into an empty folder, and the log has no rows."""
    for left in patients.data_dir.glob("audit.sqlite*"):
        left.unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(patients.data_dir))
    monkeypatch.setenv("PRECEDENT_MODEL", str(patients.model))
    return patients


def rows_of(settings: Settings) -> list[dict[str, Any]]:
    with open_log(settings) as log:
        return [row.document for row in log.between()]


def told(*arguments: object) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json"))


def test_a_report_is_written_for_its_owner_alone(site: Settings, tmp_path: Path) -> None:
    (made,) = told("report", ASKED.uid, "-k", 2)["documents"]
    path = tmp_path / f"{made['sop']}.dcm"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600
    document = dcmread(path)
    assert (document.Modality, document.PatientID) == ("SR", ANNA.id)
    assert (document.StudyInstanceUID, document.SOPInstanceUID) == (ASKED.uid, made["sop"])
    # The row came first, and has what the document shows.
    begun, ended = rows_of(site)
    assert (begun["action"], begun["status"]) == ("precedent report", BEGUN)
    assert ASKED.uid in begun["studies"]
    assert begun["images"]
    assert ended["status"] == 0
    image = dicom_point_id(f"{ASKED.uid}.1.0", 0)
    run("report", ASKED.uid, "--format", "pdf", "--image", image, "--out", "report.dcm")
    assert dcmread(tmp_path / "report.dcm").Modality == "DOC"


@pytest.mark.slow
def test_key_objects_are_a_file_each(site: Settings, tmp_path: Path) -> None:
    made = told("key-objects", ASKED.uid, "--out", "earlier")["documents"]
    found = {dcmread(path).StudyInstanceUID for path in (tmp_path / "earlier").iterdir()}
    assert found == {one["study"] for one in made} == {STUDIES[1].uid, STUDIES[2].uid}
    image = dicom_point_id(f"{STUDIES[4].uid}.1.1", 0)
    (one,) = told("key-objects", "--teaching", image)["documents"]
    assert (one["kind"], one["study"]) == ("teaching", STUDIES[4].uid)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["report", ASKED.uid, "--format", "docx"], QueryError, "use one of sr, pdf"),
        (["report", ASKED.uid, "--out", "no/where.dcm"], QueryError, "is no folder"),
        (["key-objects"], QueryError, "--teaching"),
        (["send", "pacs", "--report", ASKED.uid], DestinationUnknown, r"\[destinations\.pacs\]"),
        (["send", "pacs"], QueryError, "none of them came"),
        (["sendings", "show", "x"], DocumentError, "no sending"),
    ],
)
def test_what_cannot_be_done_is_said(site: Settings, arguments, error, words) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, error)
    assert re.search(words, str(result.exception))
    assert rows_of(site)[-1]["outcome"] == "failed"


@pytest.fixture
def node() -> Iterator[tuple[int, list[Any]]]:
    """A node's port, and what it stored."""
    stored: list[Any] = []

    def store(event: Any) -> int:
        stored.append(event.dataset)
        return 0x0000

    ae = AE("NODE")
    ae.add_supported_context(ComprehensiveSRStorage, ExplicitVRLittleEndian)
    (port,) = free_ports(1)
    server = ae.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]
    )
    yield port, stored
    server.shutdown()


@pytest.mark.slow
# pynetdicom leaves the socket of a connection that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_report_is_sent_and_what_became_of_it_is_told(
    site: Settings, tmp_path: Path, monkeypatch, node: tuple[int, list[Any]]
) -> None:
    port, stored = node
    (away,) = free_ports(1)
    to = {"kind": "dicom", "ae_title": "NODE", "host": "127.0.0.1", "timeout_seconds": 5}
    for name, where in (("NODE", port), ("AWAY", away)):
        for key, one in {**to, "port": where}.items():
            monkeypatch.setenv(f"PRECEDENT_DESTINATIONS__{name}__{key.upper()}", str(one))
    sent = told("send", "node", "--report", ASKED.uid, "-k", 2)
    assert (sent["state"], sent["commitment"]) == ("sent", "not-offered")
    assert [one.PatientID for one in stored] == [ANNA.id]
    rows = rows_of(site)
    assert [(one["action"], one["status"]) for one in rows] == [
        ("precedent send", BEGUN),
        ("precedent send", 0),
    ]
    assert rows[0]["about"]["destination"] == "node"
    assert rows[1]["about"]["sending"] == sent["id"]
    assert told("sendings", "show", sent["id"]) == sent
    asked = ["send", "away", "--teaching", dicom_point_id(f"{ASKED.uid}.1.1", 0), "--json"]
    result = CliRunner().invoke(app, asked, standalone_mode=False)
    waiting = json.loads(result.stdout)
    assert (result.return_value, waiting["state"]) == (1, "waiting")
    assert "cannot be reached" in waiting["why"]
    listed = told("sendings", "list")["sendings"]
    assert {one["id"] for one in listed} >= {sent["id"], waiting["id"]}
    retried = CliRunner().invoke(app, ["sendings", "retry", waiting["id"]], standalone_mode=False)
    assert (retried.return_value, "precedent serve" in retried.stdout) == (1, True)
    run("sendings", "cancel", waiting["id"])
    assert told("sendings", "show", waiting["id"])["state"] == "cancelled"
    # Of another tenant nothing is told.
    other = CliRunner().invoke(app, ["sendings", "show", sent["id"], "--tenant", "other"])
    assert "no sending" in str(other.exception)
    gc.collect()


@pytest.mark.slow
def test_they_work_beside_a_running_service(site: Settings) -> None:
    (port,) = free_ports(1)
    serve = CommandProcess(["serve", "--port", str(port)], env={**os.environ})
    try:
        assert serve.stdout is not None
        assert str(port) in serve.stdout.readline()
        (made,) = told("report", ASKED.uid)["documents"]
        assert dcmread(made["path"]).StudyInstanceUID == ASKED.uid
        assert told("sendings", "list")["sendings"] is not None
    finally:
        serve.kill()
        serve.communicate()
