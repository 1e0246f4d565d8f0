"""STOW-RS: what senders write, what they are answered, and what is on the disk then."""

import io
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pydicom
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from handed_in import slice_file
from hypothesis import given, strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from services.loopback import LoopbackClient
from stow_bodies import BOUNDARY, CONTENT_TYPE, related

from api.audit.log import open_log
from api.http.dicomweb_store.instance import Instance, Terms
from api.http.dicomweb_store.reception import Reception
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.settings import ReceiveSettings, Settings
from indexer.archive import Archive
from indexer.datadir.layout import DataDir
from indexer.ledger.database import open_database
from indexer.sources.pushed.arrival import file_head
from indexer.sources.pushed.inbox import Inbox

CT = "1.2.840.10008.5.1.4.1.1.2"
JSON, XML = "application/dicom+json", "application/dicom+xml"
PATIENCE = 60.0
SMALL = slice_file(1)


@pytest.fixture(scope="module")
def settings(indexed, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Those of an archive with nothing in it yet, where what is received waits."""
    receive = ReceiveSettings(
        idle_seconds=600, min_free_bytes=0, max_waiting_bytes=400_000, max_request_bytes=600_000
    )
    limits = indexed.settings.limits.model_copy(update={"max_file_bytes": 100_000})
    return indexed.settings.model_copy(
        update={
            "data_dir": tmp_path_factory.mktemp("stow") / "data",
            "receive": receive,
            "limits": limits,
        }
    )


@pytest.fixture(scope="module")
def fresh(settings: Settings) -> Iterator[TestClient]:
    with LoopbackClient(create_service(settings)) as client:
        yield client


def store(
    client: TestClient,
    body: Any,
    *,
    study: str | None = None,
    kind: str = CONTENT_TYPE,
    **headers: str,
) -> Any:
    path = "/dicomweb/studies" + ("" if study is None else f"/{study}")
    sent = {"Content-Type": kind, **{n.replace("_", "-"): value for n, value in headers.items()}}
    return client.post(path, content=body, headers=sent)


def files(settings: Settings) -> dict[str, bytes]:
    """What was received, by SOP Instance UID."""
    found = DataDir(settings.data_dir).received.glob("*/*/*.dcm")
    return {path.stem: path.read_bytes() for path in found}


def items(answer: Any, keyword: str) -> list[Any]:
    document = pydicom.Dataset.from_json(answer.json())
    return list(document.get(keyword, ()))


def data_set(content: bytes) -> bytes:
    """The bytes behind the meta information, whose length the file says itself."""
    return content[144 + int.from_bytes(content[140:144], "little") :]


def by_c_store(number: int) -> bytes:
    """The file that C-STORE makes of a slice."""
    head = file_head(CT, f"1.2.7.{number}", ExplicitVRLittleEndian)
    return head + data_set(slice_file(number))


@pytest.mark.parametrize(
    ("number", "form", "kind"),
    [
        (10, {}, CONTENT_TYPE),
        # dicomweb-client of PyPI begins with an empty line.
        (11, {"before": b"\r\n"}, CONTENT_TYPE),
        (12, {}, CONTENT_TYPE.replace('"', "")),
        (13, {"end": b"--"}, CONTENT_TYPE.replace('"application/dicom"', "application/dicom")),
        (14, {"before": b"Read by a person.\r\n"}, CONTENT_TYPE.replace("; type", ";type")),
        (15, {"head": b""}, CONTENT_TYPE),
        (16, {"head": b"content-type:application/dicom;transfer-syntax=*\r\n"}, CONTENT_TYPE),
        (17, {"head": b"Content-Location: x\r\nContent-Type: application/dicom\r\n"}, CONTENT_TYPE),
        (18, {"end": b"--\r\nwhat follows\r\n"}, CONTENT_TYPE.replace("multipart", "Multipart")),
    ],
)
def test_bodies_that_senders_write(fresh, settings, number, form, kind):
    content = slice_file(number)
    answer = store(fresh, related([content], **form), kind=kind)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == JSON
    (item,) = items(answer, "ReferencedSOPSequence")
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (CT, f"1.2.7.{number}")
    # However it is sent, it is the same file, so that it is not indexed twice.
    assert files(settings)[f"1.2.7.{number}"] == by_c_store(number)


def test_it_may_come_in_chunks_of_unknown_number(fresh, settings):
    body = related([slice_file(20), slice_file(21)])
    answer = store(fresh, (body[at : at + 777] for at in range(0, len(body), 777)))
    assert answer.status_code == 200, answer.text
    assert {"1.2.7.20", "1.2.7.21"} <= files(settings).keys()


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", JSON),
        ("*/*", JSON),
        (XML, XML),
        ("application/json", JSON),
        (f"{JSON};q=0.2, {XML}", XML),
        ("text/html, */*;q=0.1", JSON),
        (f"multipart/related; type={XML}", XML),
    ],
)
def test_the_answer_is_in_the_form_that_is_asked_for(fresh, accept, kind):
    answer = store(fresh, related([SMALL, b"no DICOM"]), Accept=accept)
    assert (answer.status_code, answer.headers["content-type"]) == (202, kind)
    if kind == JSON:
        assert len(items(answer, "ReferencedSOPSequence")) == 1
        return
    root = ElementTree.fromstring(answer.content)
    space = {"d": "http://dicom.nema.org/PS3.19/models/NativeDICOM"}
    uid = root.find("d:*[@keyword='ReferencedSOPSequence']//d:*[@tag='00081155']/d:Value", space)
    assert uid is not None
    assert uid.text == "1.2.7.1"
    reason = root.find("d:*[@keyword='OtherFailuresSequence']//d:*[@tag='00081197']/d:Value", space)
    assert reason is not None
    assert reason.text == str(0xC000)


def changed(number: int, **elements: Any) -> bytes:
    """A slice with other elements; None takes one away. Its file meta information stays."""
    made = pydicom.dcmread(io.BytesIO(slice_file(number)))
    for name, value in elements.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    out = io.BytesIO()
    pydicom.dcmwrite(out, made, enforce_file_format=False)
    return out.getvalue()


def deflated(number: int, *, packed: bool = True) -> bytes:
    head = file_head(CT, f"1.2.7.{number}", DeflatedExplicitVRLittleEndian)
    packer = zlib.compressobj(wbits=-15)
    data = data_set(slice_file(number))
    return head + (packer.compress(data) + packer.flush() if packed else data)


@pytest.mark.parametrize(
    ("content", "reason", "comment"),
    [
        (slice_file(500), 0x0110, "another study"),
        (changed(30, StudyInstanceUID=None), 0xC000, "no Study Instance UID"),
        (changed(30, SOPClassUID="1.2.840.10008.1.3.10"), 0x0122, "storage"),
        (deflated(30, packed=False), 0xC000, "Deflated"),
        (file_head(CT, "1.2.7.30", "1.2.3") + data_set(slice_file(30)), 0xC122, "syntax"),
        (changed(30, PixelData=bytes(200_000)), 0xC000, "limits.max_file_bytes"),
        (b"", 0xC000, "no DICOM file"),
        (b"%PDF-1.7 is no instance", 0xC000, "no DICOM file"),
    ],
)
def test_what_is_refused_is_named_with_the_reason(fresh, settings, content, reason, comment):
    before = files(settings)
    study = "1.2.8.15"
    answer = store(fresh, related([content]), study=study)
    assert answer.status_code == 409, answer.text
    told = items(answer, "FailedSOPSequence") + items(answer, "OtherFailuresSequence")
    assert [one.FailureReason for one in told] == [reason]
    assert comment in told[0].ErrorComment
    good = slice_file(31)
    answer = store(fresh, related([content, good]), study=study)
    assert answer.status_code == 202, answer.text
    assert [one.ReferencedSOPInstanceUID for one in items(answer, "ReferencedSOPSequence")] == [
        "1.2.7.31"
    ]
    assert files(settings).keys() - before.keys() <= {"1.2.7.31"}


def test_a_deflated_one_is_taken_as_it_is(fresh, settings):
    content = deflated(33)
    assert store(fresh, related([content]), study="1.2.8.16").status_code == 200
    assert files(settings)["1.2.7.33"] == content


def test_the_data_set_says_which_instance_it_is(fresh, settings):
    """Copies often keep the file meta information of what they were made of."""
    answer = store(fresh, related([slice_file(40), changed(40, SOPInstanceUID="1.2.7.4000")]))
    assert answer.status_code == 202
    first, second = items(answer, "ReferencedSOPSequence")
    assert "WarningReason" not in first
    assert (second.ReferencedSOPInstanceUID, second.WarningReason) == ("1.2.7.4000", 0xB000)
    assert {"1.2.7.40", "1.2.7.4000"} <= files(settings).keys()


@pytest.mark.parametrize(
    ("body", "headers", "status", "way_out"),
    [
        (related([SMALL]), {"kind": ""}, 415, "multipart/related"),
        (related([SMALL]), {"kind": "application/dicom"}, 415, "multipart/related"),
        (
            related([SMALL]),
            {"kind": CONTENT_TYPE.replace("dicom", "dicom+json")},
            415,
            "the whole file",
        ),
        (related([SMALL]), {"kind": CONTENT_TYPE.replace("n/dicom", "n/pdf")}, 415, "n/dicom"),
        (related([SMALL]), {"Content_Encoding": "gzip"}, 415, "Content-Encoding"),
        (related([SMALL]), {"kind": CONTENT_TYPE.partition("; bound")[0]}, 400, "boundary"),
        (related([SMALL]), {"Accept": "text/html"}, 406, JSON),
        (b"", {}, 400, "boundary"),
        (bytes(70_000), {}, 400, "boundary"),
        (related([]), {}, 400, "no parts"),
        (related([SMALL], end=b""), {}, 400, "closing boundary"),
        (related([SMALL], end=b"-"), {}, 400, "closing boundary"),
        (related([SMALL], head=b"no head\r\n"), {}, 400, "RFC 2046"),
        (bytes(700_000), {}, 413, "600000"),
    ],
)
def test_bodies_that_are_none_are_problems(fresh, settings, body, headers, status, way_out):
    before = files(settings)
    answer = store(fresh, body, **headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert way_out in answer.json()["detail"]
    assert files(settings) == before
    assert not list((DataDir(settings.data_dir).received / "incoming").iterdir())


def test_without_room_it_is_to_be_sent_again_later(fresh, settings):
    waits = sum(map(len, files(settings).values()))
    many = [changed(60, SOPInstanceUID=f"1.2.6.{n}") for n in range(55 - waits // 10_000)]
    answer = store(fresh, related(many))
    assert answer.status_code == 202
    assert {one.FailureReason for one in items(answer, "FailedSOPSequence")} == {0xA700}
    kept = {one.ReferencedSOPInstanceUID for one in items(answer, "ReferencedSOPSequence")}
    assert kept == {uid for uid in files(settings) if uid.startswith("1.2.6.")}
    answer = store(fresh, related([changed(62)]))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
    assert [one.FailureReason for one in items(answer, "FailedSOPSequence")] == [0xA700]


# The body in pieces, against the parts that were put in.

_PARTS = [slice_file(70), b"--", slice_file(71), b"\r\n--" + BOUNDARY[:-1] + b"\r\n"]
_BODY = related(_PARTS, before=b"\r\n")


class Taken:
    """Stands for an instance, and keeps what it was given."""

    def __init__(self, content_type: str) -> None:
        self.content_type, self.content, self.whole = content_type, b"", False

    def write(self, data: bytes) -> None:
        assert not self.whole
        self.content += data

    def end(self) -> None:
        self.whole = True


@given(cuts=st.lists(st.integers(0, len(_BODY)), max_size=30), end=st.none() | st.integers(0))
def test_parts_come_out_as_they_went_in_wherever_the_body_is_cut(cuts, end):
    body = _BODY if end is None else _BODY[: end % (len(_BODY) - 2)]
    reception = Reception(BOUNDARY, Taken)  # type: ignore[arg-type]
    for first, last in pairwise(sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})):
        reception.feed(body[first:last])
    taken: Any = reception.instances
    whole = [one.content for one in taken if one.whole]
    assert whole == _PARTS[: len(whole)]
    if end is None:
        reception.end()
        assert len(whole) == len(_PARTS)
    else:
        with pytest.raises(HTTPException, match="400"):
            reception.end()


def test_a_large_instance_is_not_gathered_in_memory(tmp_path: Path):
    """Its head is, until it has told which instance it is."""
    with Inbox(tmp_path, ReceiveSettings(min_free_bytes=0), 2**31) as inbox:
        terms = Terms(inbox, None, {CT}, {ExplicitVRLittleEndian}, 32)
        one = Instance(terms, "application/dicom")
        content = changed(80, PatientComments="x" * 9000, PixelData=bytes(30_000_000))
        for at in range(0, len(content), 100_000):
            one.write(content[at : at + 100_000])
            assert len(one._head) <= 1024**2
        (incoming,) = inbox.incoming.iterdir()
        assert incoming.stat().st_size > 29_000_000
        one.discard()
        assert not list(inbox.incoming.iterdir())
        assert inbox.waiting_bytes == 0


# What becomes of it.


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def quick(indexed, tmp_path: Path) -> Settings:
    """Those of an archive of its own, which indexes what came at once."""
    receive = ReceiveSettings(idle_seconds=0.05, min_free_bytes=0)
    return indexed.copy(tmp_path / "data").model_copy(update={"receive": receive})


def test_what_is_stored_is_found_by_its_tenant_alone_and_recorded(quick):
    with open_database(quick, DataDir(quick.data_dir).ledger) as database:
        ours, theirs = (
            {"Authorization": "Bearer " + Keys(database).create(one, list(Scope), tenant=one)[1]}
            for one in ("north", "south")
        )
    content = slice_file(90)

    def hits(sent: dict[str, str]) -> list[Any]:
        answer = client.post("/v1/search", headers=sent, files={"file": content}, data={"k": "3"})
        return answer.json().get("hits", [])

    with LoopbackClient(create_service(quick)) as client:
        body = related([content, changed(91, PixelData=None)])
        answer = store(client, body, study="1.2.8.45", **ours)
        assert answer.status_code == 200, answer.text
        with open_log(quick) as log:
            row = next(iter(log.between(latest_first=True))).document
        assert (row["action"], row["who"]["tenant"]) == ("POST /dicomweb/studies/{uid}", "north")
        assert row["studies"] == ["1.2.8.45"]
        until(lambda: [hit["sop"] for hit in hits(ours)] == ["1.2.7.90"])
        assert not [hit for hit in hits(theirs) if hit["sop"] == "1.2.7.90"]
        assert store(client, related([content]), **ours).status_code == 200
    with Archive(quick) as archive:
        (refused,) = archive.of("north").ledger.refusals(5)
        assert (refused.reason, archive.of("north").ledger.counts()["done"]) == ("no-pixels", 1)


def test_what_was_acknowledged_before_a_kill_is_indexed_after_the_next_start(quick):
    """As a kill between the answer and the index leaves it, where no PACS sends."""
    with Inbox(DataDir(quick.data_dir).received, quick.receive, 2**31) as inbox:
        terms = Terms(inbox, None, {CT}, {ExplicitVRLittleEndian}, 32)
        one = Instance(terms, "application/dicom")
        one.write(slice_file(95))
        one.end()
        assert one.keep().refusal is None
    with LoopbackClient(create_service(quick)) as client:
        until(lambda: client.get("/v1/facets?where=source=storescp").json()["count"] == 1)
