"""Whatever a file says of a patient, nothing of it is in the index, the ledger, a log or an answer.

The files are indexed and searched for real, in a run and as a job, from the command line and over
HTTP, and everything that is left behind or said is looked through.
"""

import io
import logging
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
from identified import KEPT, Planted, identified_files, leaks, planted_value
from PIL import Image
from services.loopback import LoopbackClient
from typer.testing import CliRunner

from api.cli.main import app
from api.service import create_service
from engine.records import ImageRecord
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.jobs.ledger import JobLedger
from indexer.pipeline.run import IndexingReport
from indexer.sources.folder import FolderSource

pytestmark = pytest.mark.slow  # hundreds of files are made and indexed

# Of the folder that the files lie in. The ledger and the site's own commands name paths, by
# design; nobody else does.
_FOLDER = "QVWXPATH"
# What a record may hold, by field, as a pattern of all of it; fields not named are None.
_RECORD = {
    "tenant": "default",
    "study": r"1\.2\.4\.\d+",
    "series": r"1\.2\.5\.\d+",
    "sop": r"1\.2\.3\.\d+",
    "frame": r"\d",
    "patient": r"[0-9a-f]{32}",
    "modality": "CT",
    "body_part": "CHEST",
    "view": "AP",
    "manufacturer": re.escape(KEPT["Manufacturer"]),
    "sex": "F",
    "age_band": r"90\+",
    "study_year": "1903",
    "source": "folder",
    "burned_in": "True|False",
}


@dataclass(frozen=True)
class _Left:
    """What is left behind: files below the data folder; by name, what was said."""

    report: IndexingReport
    records: list[ImageRecord]
    files: list[Path]
    said: dict[str, bytes]


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def contents(planted: Planted) -> dict[str, bytes]:
    return identified_files(planted)


@contextmanager
def _overheard() -> Iterator[dict[str, bytes]]:
    """All logs at DEBUG, standard output and error, also of the processes that read."""
    said: dict[str, bytes] = {}
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    root = logging.getLogger()
    level = root.level
    kept = {number: os.dup(number) for number in (1, 2)}
    with TemporaryFile() as output:
        for number in kept:
            os.dup2(output.fileno(), number)
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            yield said
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
            for number, before in kept.items():
                os.dup2(before, number)
                os.close(before)
            output.seek(0)
            said["output"] = output.read()
            said["logs"] = log.getvalue().encode()


@pytest.fixture(scope="module")
def left(new_site: Callable[..., Any], contents: dict[str, bytes]) -> _Left:
    """The files indexed, and the index searched in every way."""
    site = new_site(commit_every=3)
    for name, content in contents.items():
        site.write(f"{_FOLDER}/{name}", content)
    with _overheard() as said:
        with site.open(create=True) as archive:
            report = archive.index(FolderSource([site.files]))
            again = archive.index(FolderSource([site.files]), again=True)
            assert again.indexed == report.indexed
            said |= {f"answer to {asked}": body for asked, body in _answers(archive, contents)}
            records = [point.record for point in archive.store.scroll(Filter())]
        said |= {f"command {asked}": out for asked, out in _commands(site)}
    files = [path for path in site.settings.data_dir.rglob("*") if path.is_file()]
    return _Left(report, records, files, said)


_UPLOADS = ("/v1/search", "/v1/recommend", "/v1/search/upload", "/v1/recommend/upload")


def _answers(archive: Archive, contents: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """What the service says, headers and bodies, of everything that can be asked."""
    points = list(archive.store.scroll(Filter()))
    first = points[0].id
    studies = sorted({point.record.study for point in points if point.record.study})
    service = create_service(archive=archive)
    with LoopbackClient(service, follow_redirects=True) as client:
        asked = [
            *("/", "/healthz", "/v1/facets", "/openapi.json", f"/?id={first}"),
            *("/?where=modality%3DCT", "/v1/facets?where=manufacturer%3DKept+%26+Sons"),
            *("/v1/images/" + point.id for point in points),
            *("/v1/images/" + point.id + "/thumbnail" for point in points),
            *(f"/v1/studies/{study}/related?exclude=none" for study in studies),
            *("/v1/images/nothing", "/v1/studies/1.2.3/related"),
            *("/v1/images/" + point.id + "/preview" for point in points),
            *("/images/" + point.id for point in points),
            *(f"/studies/{study}" for study in studies),
            *(f"/?like={first}&group_by=none&exclude_own=none", "/?study=1.2.3"),
            *(f"/?like={first}&dislike={points[-1].id}", f"/collection?image={first}"),
            *(f"/region?like={first}", f"/?like={first}&region=0,0,1,1"),
            *(f"/collection?image={one.id}&format=csv" for one in points),
            *(f"/collection?image={one.id}&format=fhir" for one in points),
            *("/v1/duplicates", "/v1/model", "/v1/stats", "/v1/sources", "/v1/whoami", "/readyz"),
            *("/v1/archive/map", "/v1/archive/growth", "/v1/archive/refusals", "/archive"),
            *("/v1/model/calibration", "/v1/model/drift", "/model", "/archive/duplicates"),
            *("/metrics", "/v1/jobs", "/v1/jobs/1", "/v1/jobs/1/report", "/v1/jobs/1/events"),
            *("/cds-services", "/v1/destinations", "/v1/sendings", "/v1/sendings/1"),
            *("/v1/keys", "/v1/audit", "/v1/audit/export", "/keys", "/audit"),
            *(f"/dicomweb/related/{study}/studies" for study in studies),
            *(f"/dicomweb/related/{study}/studies/{study}/series" for study in studies),
            *(f"/dicomweb/studies?StudyInstanceUID={study}" for study in studies),
            *(f"/dicomweb/studies/{study}/series" for study in studies),
            "/dicomweb/studies?PatientName=*Doe*",
        ]
        for address in asked:
            answer = client.get(address)
            yield address, repr(answer.headers).encode() + answer.content
        for study in studies:
            for address in (f"/fhir/ImagingStudy/{study}", f"/v1/studies/{study}/related?k=50"):
                answer = client.get(address, headers={"Accept": "application/fhir+json"})
                assert answer.status_code == 200
                yield f"{address} in FHIR", repr(answer.headers).encode() + answer.content
            hook = {"hook": "imaging-study", "hookInstance": str(uuid.UUID(int=1))}
            hook = {**hook, "context": {"studyInstanceUID": study}}
            answer = client.post("/cds-services/related-studies", json=hook)
            assert answer.status_code == 200
            yield "a card", repr(answer.headers).encode() + answer.content
            # Documents name their patient: an open service makes none.
            for address in ("report", "key-objects"):
                answer = client.post(f"/v1/studies/{study}/{address}", json={})
                assert answer.status_code in (401, 403)
                yield address, repr(answer.headers).encode() + answer.content
        for address in ("key-objects", "sendings", "sendings/1/retry", "sendings/1/cancel"):
            answer = client.post(f"/v1/{address}", json={"images": [first]})
            assert answer.status_code in (401, 403)
            yield address, repr(answer.headers).encode() + answer.content
        # Nor does it tell of keys, or of the audit log.
        for address in ("keys", "keys/0123456789abcdef/revoke", "audit/verify"):
            answer = client.post(f"/v1/{address}", json={"name": "x"})
            assert answer.status_code == 403
            yield address, repr(answer.headers).encode() + answer.content
        for change in ("pause", "resume", "cancel", "retry"):
            answer = client.post(f"/v1/jobs/1/{change}")
            yield f"{change} of a job", repr(answer.headers).encode() + answer.content
        answer = client.delete("/v1/instances", params={"study": studies[0], "dry_run": True})
        yield "what would be deleted", repr(answer.headers).encode() + answer.content
        token = {"study": studies[0], "origin": "https://portal.example", "acting_user": "ward 3"}
        answer = client.post("/v1/embed-tokens", json=token)
        yield "a token", repr(answer.headers).encode() + answer.content
        files = [("files", (name, content)) for name, content in contents.items()][:64]
        answer = client.post("/v1/search/batch", files=files, data={"k": "50"})
        yield "a batch", repr(answer.headers).encode() + answer.content
        form = {"k": "50", "exclude": "none"}
        for name, content in contents.items():
            file = {"file": (name, content)}
            for address in (*_UPLOADS, "/"):
                answer = client.post(address, files=file, data=form)
                yield f"{address} with {name}", repr(answer.headers).encode() + answer.content
            answer = client.post("/v1/recommend/series", files={"files": (name, content)})
            yield f"a series of {name}", repr(answer.headers).encode() + answer.content
        for address, data in (
            ("/v1/search", {**form, "id": first, "group_by": "patient"}),
            ("/v1/recommend", {**form, "like": first}),
        ):
            answer = client.post(address, data=data)
            assert answer.status_code == 200
            yield f"{address} by id", repr(answer.headers).encode() + answer.content
    # Nothing that can be asked is left out.
    told = set(service.openapi()["paths"]) - {"/"}
    assert told == {
        *("/healthz", "/readyz", "/metrics", "/v1/facets", "/v1/search", "/v1/search/batch"),
        *("/v1/search/upload", "/v1/recommend/upload", "/v1/recommend/series"),
        *("/dicomweb/related/{uid}/studies", "/dicomweb/related/{uid}/studies/{study}/series"),
        *("/dicomweb/studies", "/dicomweb/studies/{uid}", "/dicomweb/studies/{uid}/series"),
        *("/v1/recommend", "/v1/studies/{uid}/related", "/v1/images/{id}"),
        *("/v1/images/{id}/thumbnail", "/v1/images/{id}/preview", "/v1/duplicates"),
        *("/v1/archive/map", "/v1/archive/growth", "/v1/archive/refusals"),
        *("/v1/model/calibration", "/v1/model/drift"),
        *("/v1/model", "/v1/stats", "/v1/sources", "/v1/whoami", "/v1/embed-tokens"),
        *("/v1/jobs", "/v1/jobs/{id}", "/v1/jobs/{id}/report", "/v1/jobs/{id}/events"),
        *("/v1/jobs/{id}/pause", "/v1/jobs/{id}/resume", "/v1/jobs/{id}/cancel"),
        *("/fhir/ImagingStudy/{uid}", "/cds-services", "/cds-services/related-studies"),
        *("/v1/studies/{uid}/report", "/v1/studies/{uid}/key-objects", "/v1/key-objects"),
        *("/v1/destinations", "/v1/sendings", "/v1/sendings/{id}"),
        *("/v1/sendings/{id}/retry", "/v1/sendings/{id}/cancel"),
        *("/v1/keys", "/v1/keys/{id}/revoke"),
        *("/v1/audit", "/v1/audit/export", "/v1/audit/verify"),
        # What is handed in is kept as it is, like what is pushed; tests/api/test_instances.py.
        *("/v1/jobs/{id}/retry", "/v1/instances"),
    }


def _commands(site: Any) -> Iterator[tuple[str, bytes]]:
    """What the commands say, as JSON and as tables, of the same files in a job."""
    report = site.root / "report.csv"
    images = sorted((site.files / _FOLDER).iterdir())
    environment = {
        "PRECEDENT_DATA_DIR": str(site.settings.data_dir),
        "PRECEDENT_MODEL": str(site.settings.model),
        "PRECEDENT_INDEXING__READERS": "1",
        "PRECEDENT_JOBS__CHUNK": "4",
        "COLUMNS": "400",
    }
    runner = CliRunner()
    code = {"search": 1}
    for words in (
        ["jobs", "submit", str(site.files), "--again", "--json"],
        ["worker", "--until-idle"],
        ["jobs", "list", "--json"],
        ["jobs", "show", "3"],
        ["jobs", "show", "3", "--json"],
        ["jobs", "report", "3"],
        ["jobs", "report", "3", "--output", str(report)],
        ["index", str(site.files), "--retry-refused", "--json"],
        ["index", str(site.files)],
        ["info", "--refusals", "--json"],
        ["info", "--refusals"],
        ["search", *map(str, images), "--json"],
        ["search", *map(str, images)],
        ["recommend", str(images[0]), "--json"],
        ["duplicates", "--json"],
    ):
        done = runner.invoke(app, words, env=environment, standalone_mode=False)
        assert done.exception is None, (words, done.exception)
        assert (done.return_value or 0) == code.get(words[0], 0), (words, done.output)
        yield " ".join(words[:3]) + f" {len(words)}", done.output.encode()
    with site.database() as database:
        jobs = JobLedger(database.of("default"))
        told = jobs.summary(3, time.time())
        fates = list(jobs.fates(3))
    assert told.state == "finished"
    yield "of the job", repr((asdict(told), fates)).encode()
    assert report.read_text().count("\n") == len(images) + 1
    yield "report", report.read_bytes()


def test_the_identifiers_are_planted_everywhere(planted: Planted, left: _Left) -> None:
    """A search that finds nothing proves nothing, unless there was something to find."""
    assert min(planted.by_vr.values()) >= 2
    assert set(planted.by_vr) == {
        *("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC"),
        *("UI", "UR", "UT"),
    }
    assert planted.by_vr.total() > 10_000
    assert left.report.indexed == 8
    assert Counter(left.report.refused) == {
        "no-pixels": 2,
        "truncated": 1,
        "unsupported-transfer-syntax": 1,
        "unsupported-pixels": 1,
        "not-an-image": 2,
    }


def test_planted_values_are_found_where_they_are(
    planted: Planted, contents: dict[str, bytes]
) -> None:
    for vr in set(planted.by_vr) - {"AS"}:
        for number in (0, 17, 99_999):
            value = planted_value(vr, number) or ""
            for coding in ("ascii", "utf-16-le", "utf-16-be"):
                assert leaks(b"\0\1" + value.lower().encode(coding)), (vr, coding)
    assert all(leaks(content) for content in contents.values())


def test_nothing_of_the_patient_is_in_the_data_folder(left: _Left) -> None:
    kinds = {path.suffix for path in left.files}
    assert {".sqlite", ".jpg"} <= kinds
    kept = Counter()
    for path in left.files:
        content = _written(path)
        assert leaks(content) == [], path
        # What may be kept is kept, and in a form that this search can see.
        kept["index"] += "index" in path.parts and KEPT["Manufacturer"].encode() in content
        kept["ledger"] += "ledger" in path.name and b"1.2.4.1" in content
        if "ledger" not in path.name:
            assert _FOLDER.encode() not in content, path
    assert kept["index"] > 0
    assert kept["ledger"] > 0


def _written(path: Path) -> bytes:
    """The content of a file without the empty pages that stores set aside."""
    content = path.read_bytes()
    pages = (content[start : start + 4096] for start in range(0, len(content), 4096))
    return b"".join(page for page in pages if page.strip(b"\0"))


def test_nothing_of_the_patient_is_said(left: _Left) -> None:
    assert len(left.said["logs"]) > 100
    assert sum(name.startswith("answer") for name in left.said) > 70
    for name, said in left.said.items():
        assert leaks(said) == [], name
        assert b"103Y" not in said, name
        if not name.startswith("command"):
            assert _FOLDER.encode() not in said, name
    assert any(KEPT["Manufacturer"].encode() in said for said in left.said.values())


def test_thumbnails_are_pictures_and_nothing_else(left: _Left) -> None:
    thumbnails = [path for path in left.files if path.suffix == ".jpg"]
    assert len(thumbnails) == left.report.points
    for path in thumbnails:
        with Image.open(path) as picture:
            assert not picture.getexif()
            assert set(picture.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
            assert [name for name, _ in picture.applist] == ["APP0"]


def test_what_is_kept_is_the_allow_list(left: _Left) -> None:
    assert len(left.records) == left.report.points
    said = Counter()
    for record in left.records:
        for one in fields(ImageRecord):
            value = getattr(record, one.name)
            if value in (None, ()):
                continue
            assert re.fullmatch(_RECORD[one.name], str(value)), (one.name, value)
            said[one.name] += 1
    # All of it is kept of something, so that the list is no longer than it has to be.
    assert set(said) == set(_RECORD)
    # Of PNG and JPEG, and of the file whose every field is misused, nothing but the picture.
    nameless = [record for record in left.records if record.study is None]
    assert len(nameless) == 3
    assert all(record.modality is record.manufacturer is None for record in nameless)
