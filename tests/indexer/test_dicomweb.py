"""A DICOMweb server as a source, and what servers do that they should not."""

import gzip
import itertools
import json
import logging
import re
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import date
from typing import Any

import numpy as np
import pytest
from dicom_files import dataset, encode
from loopback_pacs import LoopbackPacs, Reply, multipart

from engine.errors import ImageRefused, QueryError, SettingsError, SourceError
from engine.settings import DicomWebSettings, ImageLimits
from indexer.sources.dicomweb import spool, wado
from indexer.sources.dicomweb.source import DicomWebSource, study_dates

KINDS = ["instance", "series"]
SECRET = "correct-horse-battery"


def image(number: int, side: int = 8) -> bytes:
    pixels = np.full((side, side), number % 256, np.uint8)
    return encode(dataset(pixels, SOPInstanceUID=f"1.2.3.{number}"))


def filled(pacs: LoopbackPacs, count: int = 12, per_series: int = 5) -> dict[str, bytes]:
    """Instances by locator, in the order of the server."""
    return {
        pacs.add(
            f"1.2.{number // (2 * per_series)}",
            f"1.2.9.{number // per_series}",
            f"1.2.3.{number}",
            image(number),
        ): image(number)
        for number in range(count)
    }


@pytest.fixture
def pacs() -> Iterator[LoopbackPacs]:
    with LoopbackPacs() as server:
        yield server


class Patience:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._lock = threading.Lock()

    def wait(self, stopped: threading.Event, seconds: float) -> None:
        with self._lock:
            self.pauses.append(seconds)
            self.now += seconds

    def clock(self) -> float:
        return self.now


def source(
    pacs: LoopbackPacs,
    *,
    patience: Patience | None = None,
    max_file_bytes: int = 10**6,
    query: dict[str, Any] | None = None,
    **settings: Any,
) -> DicomWebSource:
    chosen = {"kind": "dicomweb", "url": pacs.url, "timeout_seconds": 5, "attempts": 3, **settings}
    patience = patience or Patience()
    return DicomWebSource(
        "pacs",
        DicomWebSettings(**chosen),
        ImageLimits(max_file_bytes=max_file_bytes),
        wait=patience.wait,
        clock=patience.clock,
        **(query or {}),
    )


def listed(found: DicomWebSource) -> list[str]:
    return [one.locator for one in found.instances()]


def words(found: bytes | ImageRefused) -> str:
    assert isinstance(found, ImageRefused)
    return str(found)


# ---------------------------------------------------------------- what it finds


@pytest.mark.parametrize("page", [1, 3, 5, 500])
def test_all_instances_are_listed_once_whatever_the_page(pacs, page):
    expected = list(filled(pacs))
    found = list(source(pacs, page=page).instances())
    assert [one.locator for one in found] == expected
    assert {(one.size, one.modified, one.label) for one in found} == {(0, 0, None)}


def test_a_server_that_caps_its_pages_is_asked_until_nothing_comes(pacs):
    expected = list(filled(pacs))
    pacs.page_cap = 2
    assert listed(source(pacs, page=500)) == expected


def test_a_server_that_always_starts_from_the_beginning_is_found_out(pacs):
    filled(pacs)
    pacs.ignores = {"offset"}
    with pytest.raises(SourceError, match=r"same 2 entries again.*sources\.pacs\.page"):
        listed(source(pacs, page=2))
    # All on one page is all the same.
    assert len(listed(source(pacs, page=20))) == 12


def test_a_server_that_knows_no_pages_at_all_lists_everything_once(pacs):
    expected = list(filled(pacs))
    pacs.ignores = {"offset", "limit"}
    assert listed(source(pacs, page=3)) == expected


def test_instances_come_while_the_rest_is_not_listed_yet(pacs):
    filled(pacs)
    found = source(pacs, page=1).instances()
    next(found)
    # One more for the studies: whether it tells how many instances they have if it is asked to.
    assert len(pacs.asked) == 4
    found.close()


def test_dates_are_searched_month_by_month(pacs):
    days = ["", "20191231", "20200115", "20200131", "20200201", "20200310", "20200311"]
    for number, day in enumerate(days):
        pacs.add(f"1.{number}", "1.2", f"1.3.{number}", b"", date=day)
    query = {"since": date(2020, 1, 15), "until": date(2020, 3, 10)}

    found = listed(source(pacs, query=query))

    assert [re.search(r"studies/1\.(\d)/", one)[1] for one in found] == ["2", "3", "4", "5"]
    searched = [one.query["StudyDate"] for one in pacs.asked if "StudyDate" in one.query]
    assert list(dict.fromkeys(searched)) == [
        "20200115-20200131",
        "20200201-20200229",
        "20200301-20200310",
    ]


def test_a_server_that_ignores_dates_and_modality_does_not_get_its_way(pacs):
    pacs.add("1.1", "1.1.1", "1.1.1.1", b"", date="20200110")
    pacs.add("1.1", "1.1.2", "1.1.2.1", b"", date="20200110", modality="MR")
    pacs.add("1.2", "1.2.1", "1.2.1.1", b"", date="20210110")
    # Whose date is not said would come again with each month; another is known to have none.
    pacs.add("1.3", "1.3.1", "1.3.1.1", b"", date=None)
    pacs.add("1.4", "1.4.1", "1.4.1.1", b"", date="")
    pacs.ignores = {"filters"}
    query = {"since": date(2020, 1, 1), "until": date(2020, 4, 1), "modality": "CT"}
    found = listed(source(pacs, query=query))
    assert [one.rpartition("/")[2] for one in found] == ["1.1.1.1", "1.3.1.1"]


def test_open_ends_of_the_dates():
    today = date(2000, 2, 10)
    assert list(study_dates(None, date(1990, 5, 5), today)) == [("18000101", "19900505")]
    assert list(study_dates(None, date(2000, 2, 3), today)) == [
        ("18000101", "19991231"),
        ("20000101", "20000131"),
        ("20000201", "20000203"),
    ]
    assert list(study_dates(date(1999, 12, 30), None, today)) == [
        ("19991230", "19991231"),
        ("20000101", "20000131"),
        ("20000201", "20000210"),
    ]
    assert list(study_dates(date(2001, 1, 1), None, today)) == []


def test_modality_and_study_narrow_the_search(pacs):
    pacs.add("1.1", "1.1.1", "1.1.1.1", b"", modality="MR")
    pacs.add("1.2", "1.2.1", "1.2.1.1", b"")
    pacs.add("1.2", "1.2.2", "1.2.2.1", b"", modality="SR")
    assert [one[-7:] for one in listed(source(pacs, query={"modality": "CT"}))] == ["1.2.1.1"]
    assert pacs.asked[0].query["ModalitiesInStudy"] == "CT"
    assert [one[-7:] for one in listed(source(pacs, query={"study": "1.1"}))] == ["1.1.1.1"]
    assert listed(source(pacs, query={"study": "1.9"})) == []


@pytest.mark.parametrize(
    "query",
    [
        {"since": date(2021, 1, 1), "until": date(2020, 1, 1)},
        {"modality": "CT&x=1"},
        {"study": "../admin"},
        {"study": "1..2"},
    ],
)
def test_questions_that_make_no_sense_are_refused(pacs, query):
    with pytest.raises(QueryError):
        source(pacs, query=query)
    assert pacs.asked == []


def test_what_has_no_valid_uid_is_accounted_for_and_never_in_a_url(pacs, caplog):
    good = pacs.add("1.1", "1.1.1", "1.1.1.1", image(1))
    pacs.add("1.1", "1.1.1", "../../../DOE^JOHN", image(2))
    pacs.add("1.1", "..", "1.1.2.1", image(3))
    pacs.add("9" * 65, "1.1.3", "1.1.3.1", image(4))
    pacs.add("", "1.1.4", "1.1.4.1", image(5))
    found = source(pacs)

    with caplog.at_level(logging.WARNING):
        locators = listed(found)
    contents = list(found.images(locators))

    assert len(locators) == len(set(locators)) == 5
    assert [isinstance(one, bytes) for one in contents] == [one == good for one in locators]
    assert all("invalid-" in one for one in locators if one != good)
    assert "lists 4 entries without a valid UID" in caplog.text
    told = caplog.text + "".join(locators) + "".join(pacs.paths()) + "".join(map(str, contents))
    assert not re.search(r"DOE|\.\./|9{65}", told)
    assert locators == listed(found)


def _without(tag: str, reply_to: list[str], **more: str) -> bytes:
    """Entries with these UIDs; "" = an entry that lacks the element."""
    made: list[dict[str, Any]] = []
    for uid in reply_to:
        entry: dict[str, Any] = {"00080060": {"vr": "CS", "Value": ["CT"]}}
        entry |= {name: {"vr": "IS", "Value": [value]} for name, value in more.items()}
        made.append(entry | ({tag: {"vr": "UI", "Value": [uid]}} if uid else {}))
    return json.dumps(made).encode()


def test_an_entry_without_sop_instance_uid_is_refused_alone(pacs, caplog):
    """PS3.18 10.6.3: the UID is in every answer; where one lacks it, the others are good."""
    good = pacs.add("1.1", "1.1.1", "1.1.1.1", image(1))
    pacs.add("1.1", "1.1.1", "1.1.1.2", image(2))
    other = pacs.add("1.1", "1.1.2", "1.1.2.1", image(3))
    answer = _without("00080018", ["1.1.1.1", "", "", ""])
    only_bad = _without("00080018", [""])
    pages = {"1.1.1": answer, "1.1.3": only_bad}
    pacs.add("1.1", "1.1.3", "1.1.3.1", image(4))

    for series, page in pages.items():

        def send(reply: Reply, page: bytes = page) -> None:
            reply.send(200, page, "application/dicom+json")

        pacs.fail(f"/studies/1.1/series/{series}/instances", send)
        pacs.always(
            f"/studies/1.1/series/{series}/instances",
            lambda reply: reply.send(200, b"[]", "application/dicom+json"),
        )
    found = source(pacs)
    with caplog.at_level(logging.WARNING):
        locators = listed(found)
    contents = dict(zip(locators, found.images(locators), strict=True))

    assert [one for one in locators if isinstance(contents[one], bytes)] == [good, other]
    bad = [one for one in locators if isinstance(contents[one], ImageRefused)]
    places = [one.rpartition("/instances/")[0].removeprefix(f"{pacs.url}/") for one in bad]
    assert places == ["studies/1.1/series/1.1.1"] * 3 + ["studies/1.1/series/1.1.3"]
    assert all("1.1/series/1.1." in str(contents[one]) for one in bad)
    assert "lists 4 entries without a valid UID" in caplog.text


def test_studies_without_uid_are_no_answer_to_a_search_for_studies(pacs):
    answer = _without("0020000D", ["", ""])
    pacs.always("/studies", lambda reply: reply.send(200, answer, "application/dicom+json"))
    with pytest.raises(SourceError, match="StudyInstanceUID"):
        listed(source(pacs))


def test_what_is_removed_during_the_search_is_passed_over(pacs):
    expected = list(filled(pacs))
    pacs.always("/studies/1.2.0/series", lambda reply: reply.send(404))
    studies = pacs.instances
    pacs.instances = [one for one in studies if one.study != "1.2.0"]
    pacs.fail(
        "/studies",
        lambda reply: reply.send(200, _studies("1.2.0", "1.2.1"), "application/dicom+json"),
        lambda reply: reply.send(200, b"[]"),
    )
    assert listed(source(pacs)) == expected[10:]


def _studies(*uids: str) -> bytes:
    return json.dumps([{"0020000D": {"vr": "UI", "Value": [uid]}} for uid in uids]).encode()


def test_a_server_without_searches_below_a_study_is_not_an_empty_one(pacs):
    filled(pacs)
    pacs.always("/series", lambda reply: reply.send(404))
    with pytest.raises(SourceError, match="HTTP 404"):
        listed(source(pacs))


@pytest.mark.parametrize(
    "answer",
    [b"<html>log in</html>", b"[" * 100_000, b'{"error": "DOE^JOHN"}', b'["1.2"]', b'[{"0020'],
)
def test_answers_that_are_none_end_the_search(pacs, answer):
    pacs.always("/studies", lambda reply: reply.send(200, answer, "application/dicom+json"))
    with pytest.raises(SourceError) as caught:
        listed(source(pacs))
    assert "DOE" not in str(caught.value)


def test_nothing_at_all_is_an_empty_answer(pacs):
    pacs.always("/studies", lambda reply: reply.send(204))
    assert listed(source(pacs)) == []


def test_an_endless_answer_is_not_read_to_its_end(pacs):
    sent = 0

    def endless(reply: Reply) -> None:
        nonlocal sent
        reply.send(200, b"[", "application/dicom+json", length=10**12)
        while True:
            reply.raw(b" " * 2**20)
            sent += 2**20

    pacs.always("/studies", endless)
    with pytest.raises(SourceError, match="more than 64 MiB"):
        listed(source(pacs))
    assert sent < 80 * 2**20


def test_a_small_answer_that_unfolds_to_a_huge_one_is_not_unfolded(pacs):
    bomb = gzip.compress(b"[" + b" " * (100 * 2**20), 6)
    pacs.always(
        "/studies",
        lambda reply: reply.send(200, bomb, "application/dicom+json", Content_Encoding="gzip"),
    )
    with pytest.raises(SourceError, match="more than 64 MiB"):
        listed(source(pacs))


# ---------------------------------------------------------------- what it hands out


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_contents_come_in_order_and_as_they_were_stored(pacs, kind, chunked):
    expected = filled(pacs, 40, 7)
    pacs.chunked = chunked
    found = source(pacs, retrieve=kind)
    assert list(found.images(listed(found))) == list(expected.values())
    # In another order, and one of them twice.
    some = [*reversed(expected), next(iter(expected))]
    assert list(found.images(some)) == [expected[one] for one in some]


def test_a_whole_series_is_one_request(pacs):
    expected = filled(pacs, 10)
    found = source(pacs, retrieve="series")
    assert list(found.images(expected)) == list(expected.values())
    assert sorted(pacs.paths()) == [
        "/studies/1.2.0/series/1.2.9.0",
        "/studies/1.2.0/series/1.2.9.1",
    ]


def test_of_a_series_only_what_is_asked_for_is_taken_and_the_missing_is_fetched_alone(pacs):
    expected = filled(pacs, 5)
    locators = list(expected)
    missing = pacs.instances.pop(3)

    def lonely(reply: Reply) -> None:
        reply.parts(missing.content)

    pacs.always("/instances/1.2.3.3", lonely)
    found = source(pacs, retrieve="series")
    assert list(found.images(locators[1:4])) == [expected[one] for one in locators[1:4]]
    assert pacs.paths() == [
        "/studies/1.2.0/series/1.2.9.0",
        "/studies/1.2.0/series/1.2.9.0/instances/1.2.3.3",
    ]


@pytest.mark.parametrize("status", [400, 404, 406, 500, 501])
def test_a_server_without_whole_series_is_asked_for_single_instances(pacs, status):
    expected = filled(pacs, 10)
    for series in ("1.2.9.0", "1.2.9.1"):
        pacs.always(f"/series/{series}", lambda reply: reply.send(status))
    found = source(pacs, retrieve="series")
    assert list(found.images(expected)) == list(expected.values())


def test_a_series_that_breaks_off_is_taken_up_again(pacs):
    expected = filled(pacs, 5)
    whole = multipart(*expected.values())
    type_ = 'multipart/related; type="application/dicom"; boundary="a-boundary"'
    cut = len(whole) // 2
    pacs.fail(
        "/series/1.2.9.0",
        lambda reply: reply.send(200, whole[:cut], type_, length=None),
        lambda reply: reply.send(200, whole[: cut + 300], type_, length=len(whole)),
    )
    patience = Patience()
    found = source(pacs, retrieve="series", patience=patience)
    assert list(found.images(expected)) == list(expected.values())
    assert len(pacs.asked) == 3
    assert len(patience.pauses) == 2


def test_what_does_not_fit_on_the_disk_is_fetched_alone(pacs, monkeypatch):
    expected = filled(pacs, 10)
    found = source(pacs, retrieve="series")
    found._retrieval._spool_bytes = 2 * len(image(0))
    assert list(found.images(expected)) == list(expected.values())
    assert sum("/instances/" in path for path in pacs.paths()) >= 6
    # Beyond what is held in memory the same comes from a file.
    monkeypatch.setattr(spool, "_IN_MEMORY", 100)
    assert list(source(pacs, retrieve="series").images(expected)) == list(expected.values())


def test_an_instance_without_packaging_is_taken_too(pacs):
    locator = next(iter(filled(pacs, 1)))
    pacs.always("1.2.3.0", lambda reply: reply.send(200, image(0), "application/dicom"))
    assert list(source(pacs).images([locator])) == [image(0)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda reply: reply.send(404), "no longer has it"),
        (lambda reply: reply.send(410), "no longer has it"),
        (lambda reply: reply.send(204), "no longer has it"),
        (lambda reply: reply.parts(), "no longer has it"),
        (lambda reply: reply.parts(b""), "no longer has it"),
        (lambda reply: reply.send(406), "as it is stored"),
        (lambda reply: reply.send(415), "as it is stored"),
        (lambda reply: reply.send(400), "HTTP 400"),
        (lambda reply: reply.send(200, b"DOE^JOHN", "text/html"), "something else"),
        (lambda reply: reply.send(200, b"x", "multipart/related"), "something else"),
        (
            lambda reply: reply.send(
                200, multipart(b"{}", kind="text/x"), "multipart/related; boundary=a-boundary"
            ),
            "something else",
        ),
        (
            lambda reply: reply.send(200, b"x" * 100_000, "multipart/related; boundary=b"),
            "not built as multipart",
        ),
        (
            lambda reply: reply.send(200, b"no gzip", "application/dicom", Content_Encoding="gzip"),
            "not packed as it says",
        ),
    ],
)
def test_an_instance_that_is_not_to_be_had_is_refused_alone(pacs, kind, answer, said):
    expected = filled(pacs, 4)
    locators = list(expected)
    pacs.instances[1].content = b""
    pacs.always("/instances/1.2.3.1", answer)
    contents = list(source(pacs, retrieve=kind).images(locators))
    assert said in words(contents[1])
    assert contents[1].reason.value == "unreadable"
    assert "DOE" not in words(contents[1])
    del contents[1], locators[1]
    assert contents == [expected[one] for one in locators]


@pytest.mark.parametrize("kind", KINDS)
def test_an_instance_above_the_limit_is_not_read_to_its_end(pacs, kind):
    expected = filled(pacs, 4)
    locators = list(expected)
    pacs.instances[1].content = image(1)[:400] + b"x" * 10**7
    contents = list(source(pacs, retrieve=kind, max_file_bytes=10**5).images(locators))
    assert contents[1].reason.value == "too-large"
    assert "100000 bytes" in words(contents[1])
    del contents[1], locators[1]
    assert contents == [expected[one] for one in locators]


def test_an_endless_instance_is_not_read_to_its_end(pacs):
    locator = next(iter(filled(pacs, 1)))
    sent = 0

    def endless(reply: Reply) -> None:
        nonlocal sent
        type_ = "multipart/related; boundary=a-boundary"
        reply.send(200, b"--a-boundary\r\n\r\n", type_, length=None)
        while True:
            reply.raw(b"x" * 10**5)
            sent += 10**5

    pacs.always("1.2.3.0", endless)
    (found,) = source(pacs).images([locator])
    assert found.reason.value == "too-large"
    assert sent < 3 * 10**7


def test_locators_of_another_place_are_not_followed(pacs):
    filled(pacs, 1)
    with LoopbackPacs() as other:
        strange = [
            other.add("1.2", "1.3", "1.4", image(1)),
            f"{pacs.url}/studies/1.2.0/series/1.2.9.0/instances/../../x",
            f"{pacs.url}.evil.example/studies/1.2.0/series/1.2.9.0/instances/1.2.3.0",
            "file:///etc/passwd",
        ]
        for kind in KINDS:
            contents = list(source(pacs, retrieve=kind).images(strange))
            assert all("nothing that source 'pacs'" in words(one) for one in contents)
        assert other.asked == pacs.asked == []


# ---------------------------------------------------------------- patience


def _cut_length(reply: Reply) -> None:
    reply.send(200, b"[", "application/dicom", length=100)


def _reset(reply: Reply) -> None:
    reply.drop()


@pytest.mark.parametrize(
    "fault",
    [_cut_length, _reset, *(lambda reply, s=s: reply.send(s) for s in (408, 429, 500, 502, 503))],
)
@pytest.mark.parametrize("ending", ["/studies", "/series", "/instances", "/1.2.3.2"])
def test_a_fault_that_passes_is_waited_for(pacs, fault, ending):
    expected = filled(pacs, 4)
    pacs.fail(ending, fault, fault)
    patience = Patience()
    found = source(pacs, patience=patience)
    assert list(found.images(listed(found))) == list(expected.values())
    first, second = patience.pauses
    assert 0.25 <= first <= 0.5 <= second <= 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_an_instance_that_lacks_its_end_is_fetched_again(pacs, kind):
    expected = filled(pacs, 1)
    type_ = "multipart/related; boundary=a-boundary"
    whole = multipart(image(0))
    pacs.fail(
        "1.2.3.0",
        *(
            lambda reply, cut=cut: reply.send(200, whole[:cut], type_, length=None)
            for cut in (0, 30, len(whole) // 2, len(whole) - 2)
        ),
    )
    assert list(source(pacs, retrieve=kind, attempts=5).images(expected)) == [image(0)]


def test_the_pause_that_a_server_asks_for_is_kept(pacs):
    filled(pacs, 1)
    pacs.fail(
        "/studies",
        lambda reply: reply.send(429, Retry_After="7"),
        lambda reply: reply.send(
            503, Date="Mon, 01 Jan 2024 00:00:00 GMT", Retry_After="Mon, 01 Jan 2024 00:00:30 GMT"
        ),
    )
    patience = Patience()
    listed(source(pacs, patience=patience))
    first, second = patience.pauses
    assert 7.25 <= first <= 7.5
    # From the server's own clock, which need not be ours.
    assert 30.5 <= second <= 31


def test_a_server_that_asks_for_too_long_a_pause_is_left(pacs):
    filled(pacs, 1)
    pacs.always("/studies", lambda reply: reply.send(503, Retry_After="86400"))
    patience = Patience()
    with pytest.raises(SourceError, match="HTTP 503, not again before 86400 s"):
        listed(source(pacs, patience=patience))
    assert patience.pauses == []


def test_a_server_that_is_away_is_told_of(pacs):
    with LoopbackPacs() as gone:
        locator = gone.add("1.2", "1.3", "1.4", image(1))
        away = source(gone)
    with pytest.raises(SourceError, match=r"in 3 attempts \(connection refused\)"):
        listed(away)
    with pytest.raises(SourceError, match="connection refused"):
        list(away.images([locator]))


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(pacs):
    released = threading.Event()
    pacs.always("/studies", lambda reply: released.wait(20))
    try:
        with pytest.raises(SourceError, match="no answer in time"):
            listed(source(pacs, timeout_seconds=0.2, attempts=2))
    finally:
        released.set()


def test_an_answer_that_trickles_is_given_up(pacs):
    def trickle(reply: Reply) -> None:
        reply.send(200, b"[", length=10**6)
        for _ in range(200):
            reply.raw(b" ")
            time.sleep(0.02)

    pacs.always("/studies", trickle)
    settings = DicomWebSettings(kind="dicomweb", url=pacs.url, timeout_seconds=0.3, attempts=1)
    slow = DicomWebSource("pacs", settings, ImageLimits())
    started = time.monotonic()
    with pytest.raises(SourceError, match="too slowly"):
        listed(slow)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("fault", [_reset, lambda reply: reply.send(500)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_instance_on_which_the_server_always_fails_does_not_hold_up_the_others(
    pacs, kind, fault
):
    expected = filled(pacs, 12)
    locators = list(expected)
    broken = {0, 4, 5, 6, 7, 8}
    for number in broken:
        pacs.always(f"/instances/1.2.3.{number}", fault)
        pacs.instances[number].content = b""
    contents = list(source(pacs, retrieve=kind, max_connections=1).images(locators))
    for number, content in enumerate(contents):
        if number in broken:
            assert "fails on it each time" in words(content)
        else:
            assert content == expected[locators[number]]


def test_a_server_that_fails_on_everything_leaves_no_archive_of_refused_instances(pacs):
    locators = list(filled(pacs, 30))
    for number in range(30):
        pacs.always(f"/instances/1.2.3.{number}", lambda reply: reply.send(500))
    refused = []
    with pytest.raises(SourceError, match="HTTP 500"):
        refused.extend(source(pacs, max_connections=1).images(locators))
    assert len(refused) < 3


def test_a_server_that_fails_from_now_on_refuses_nothing(pacs):
    expected = filled(pacs, 20)
    locators = list(expected)
    contents = []
    found = source(pacs, max_connections=1)
    with pytest.raises(SourceError):
        for content in found.images(locators):
            contents.append(content)
            if len(contents) == 3:
                for one in pacs.instances:
                    pacs.always(f"/instances/{one.sop}", lambda reply: reply.send(504))
    assert contents == [expected[one] for one in locators[: len(contents)]]


def test_a_gateway_without_its_server_has_not_lost_every_instance(pacs):
    locators = list(filled(pacs, 3))
    pacs.instances = []
    pacs.always("/studies", lambda reply: reply.send(404))
    with pytest.raises(SourceError, match="HTTP 404"):
        list(source(pacs).images(locators))


def test_a_busy_server_refuses_no_instance(pacs):
    locators = list(filled(pacs, 3))
    pacs.always("/instances/1.2.3.1", lambda reply: reply.send(429))
    with pytest.raises(SourceError, match="HTTP 429"):
        list(source(pacs).images(locators))


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize("kind", KINDS)
def test_connections_are_bounded(pacs, kind):
    expected = filled(pacs, 40, 2)
    pacs.seconds = 0.02
    found = source(pacs, retrieve=kind, max_connections=3)
    contents = list(found.images(expected))
    assert contents == list(expected.values())
    assert 1 < pacs.most_under_way <= 3


def test_only_a_bounded_number_is_fetched_ahead(pacs, monkeypatch):
    expected = filled(pacs, 60)
    taken = 0

    def locators():
        nonlocal taken
        for one in expected:
            taken += 1
            yield one

    contents = source(pacs, max_connections=2).images(locators())
    assert next(contents) == image(0)
    time.sleep(0.2)
    assert taken <= 5
    assert len(pacs.asked) <= 5
    contents.close()

    # With much waiting already, nothing more is asked for.
    monkeypatch.setattr(wado, "_HELD", 100)
    contents = source(pacs, max_connections=8).images(locators())
    for _ in range(20):
        next(contents)
        time.sleep(0.005)
    before = taken
    time.sleep(0.1)
    next(contents)
    assert taken - before <= 16
    assert [*contents] == list(expected.values())[21:]


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_early_ends_soon_and_leaves_nothing_behind(pacs, kind):
    expected = filled(pacs, 40, 2)
    for one in pacs.instances[4:]:
        pacs.always(one.sop, lambda reply: reply.send(503, Retry_After="100"))
        pacs.always(one.series, lambda reply: reply.send(503, Retry_After="100"))
    settings = DicomWebSettings(
        kind="dicomweb", url=pacs.url, retrieve=kind, timeout_seconds=5, max_connections=2
    )
    threads = set(threading.enumerate())
    contents = DicomWebSource("pacs", settings, ImageLimits()).images(expected)
    assert next(contents) == image(0)
    time.sleep(0.1)
    started = time.monotonic()
    contents.close()
    assert time.monotonic() - started < 2
    assert not [
        one for one in threading.enumerate() if one not in threads and "dicomweb" in one.name
    ]


def test_requests_keep_a_pace_over_all_threads(pacs):
    expected = filled(pacs, 10)
    patience = Patience()
    found = source(pacs, patience=patience, requests_per_second=4, max_connections=4)
    assert list(found.images(expected)) == list(expected.values())
    # Nine pauses of a quarter of a second lie between ten requests. Threads that wait at the
    # same time wait for different moments.
    assert patience.now >= 9 * 0.25
    assert all(pause <= 4 * 0.25 for pause in patience.pauses)


def test_without_a_pace_nobody_waits(pacs):
    expected = filled(pacs, 10)
    patience = Patience()
    list(source(pacs, patience=patience).images(expected))
    assert patience.pauses == []


# ---------------------------------------------------------------- credentials


def test_credentials_are_sent_and_told_to_nobody(pacs, caplog):
    expected = filled(pacs, 3)
    pacs.user = "Basic dXNlcsO8OmNvcnJlY3QtaG9yc2UtYmF0dGVyeQ=="
    found = source(pacs, username="userü", password=SECRET)
    with caplog.at_level(logging.DEBUG):
        locators = listed(found)
        assert list(found.images(locators)) == list(expected.values())
    assert locators == list(expected)
    told = caplog.text + repr(found) + repr(vars(found)) + str(found._server)
    assert SECRET not in told
    assert "dXNlc" not in told

    pacs.user = f"Bearer {SECRET}"
    assert listed(source(pacs, token=SECRET)) == list(expected)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_password_is_told_without_showing_it(pacs, status, kind):
    locators = list(filled(pacs, 3))
    pacs.always("", lambda reply: reply.send(status, SECRET.encode(), WWW_Authenticate=SECRET))
    found = source(pacs, username="user", password=SECRET, retrieve=kind)
    patience_needed = r"refused access \(HTTP \d+\).*sources\.pacs\.username.*\.password"
    with pytest.raises(SourceError, match=patience_needed) as caught:
        listed(found)
    assert SECRET not in str(caught.value)
    with pytest.raises(SourceError, match=patience_needed):
        list(found.images(locators))
    assert len(pacs.asked) <= 5  # it is not tried again and again: accounts get locked


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": f"https://user:{SECRET}@pacs.example/"}, "sources.pacs.url holds a user name"),
        ({"url": "https://pacs.example/dicom?x=1"}, "goes on after the path"),
        ({"token": f"{SECRET}\n"}, "sources.pacs.token holds"),
        ({"token": "Bearer x"}, "sources.pacs.token holds"),
        ({"token": SECRET, "username": "user"}, "exclude each other"),
        ({"password": SECRET}, "sources.pacs.username is missing"),
        ({"username": "a:b", "password": SECRET}, "sources.pacs.username"),
        ({"ca_file": "/nowhere/ca.pem"}, "sources.pacs.ca_file is '/nowhere/ca.pem'"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(pacs, settings, said):
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        source(pacs, **settings)
    assert SECRET not in str(caught.value)


def test_the_environment_neither_gives_nor_takes_credentials(pacs, monkeypatch, tmp_path):
    expected = filled(pacs, 2)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login user password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with LoopbackPacs() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://user:{SECRET}@127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert listed(source(pacs)) == list(expected)
        assert proxy.asked == []
    assert all("Authorization" not in asked.headers for asked in pacs.asked)


def test_cookies_are_not_kept(pacs):
    filled(pacs, 2)
    pacs.fail("/studies", lambda reply: reply.send(200, _studies("1.2.0"), Set_Cookie="session=1"))
    listed(source(pacs))
    assert all("Cookie" not in asked.headers for asked in pacs.asked)


# ---------------------------------------------------------------- redirects


def _to(url: str, status: int = 302):
    return lambda reply: reply.send(status, b"moved", Location=url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_on_the_same_host_are_followed_with_credentials(pacs, status):
    expected = filled(pacs, 2)
    pacs.user = f"Bearer {SECRET}"
    pacs.always("/old/studies", _to(f"{pacs.url}/studies", status))
    pacs.always("/old/studies/1.2.0/series/1.2.9.0/instances/1.2.3.0", _to("/dicom-web/x", status))
    pacs.always("/dicom-web/x", lambda reply: reply.parts(image(7)))
    old = source(pacs, token=SECRET, url=f"{pacs.url}/old")
    (found,) = old.images([f"{pacs.url}/old/studies/1.2.0/series/1.2.9.0/instances/1.2.3.0"])
    assert found == image(7)
    studies = old._server.client.search_for_studies()
    assert studies[0]["0020000D"]["Value"] == ["1.2.0"]
    assert len(expected) == 2


def test_another_host_is_followed_only_when_it_is_allowed(pacs):
    expected = filled(pacs, 2)
    with LoopbackPacs() as other:
        other.user = f"Bearer {SECRET}"
        filled(other, 2)
        pacs.always("/studies", _to(f"{other.url}/studies?signature=private"))
        with pytest.raises(
            SourceError, match=r"redirects to 127\.0\.0\.1 .*allowed_hosts"
        ) as caught:
            listed(source(pacs, token=SECRET))
        assert "private" not in str(caught.value)
        assert other.asked == []
        with pytest.raises(SourceError, match="allowed_hosts"):
            listed(source(pacs, token=SECRET, allowed_hosts=["127.0.0.2", "127.0.0.1:1"]))
        assert other.asked == []
        for allowed in ("127.0.0.1", f"127.0.0.1:{other.port}"):
            found = source(pacs, token=SECRET, allowed_hosts=[allowed])
            assert listed(found) == list(expected)
        assert other.asked[0].headers["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "target",
    [
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "http://user:{secret}@127.0.0.1:{port}/x",
        "http://127.0.0.1:{port}@evil.example/x",
        "http://[::1/x",
        "//evil.example/x",
        "http://evil.example\\@127.0.0.1:{port}/x",
    ],
)
def test_redirects_to_strange_places_are_not_followed(pacs, target):
    filled(pacs, 2)
    where = target.format(secret=SECRET, port=pacs.port)
    pacs.always("/studies", _to(where))
    with pytest.raises(SourceError, match="redirects to") as caught:
        listed(source(pacs))
    assert SECRET not in str(caught.value)
    assert len(pacs.asked) == 1


def test_redirects_in_a_circle_end(pacs):
    pacs.always("/studies", _to("studies"))
    with pytest.raises(SourceError, match="more than 5 times"):
        listed(source(pacs))


def test_what_a_redirect_brings_along_is_not_read(pacs):
    def endless(reply: Reply) -> None:
        reply.send(302, b"", Location=f"{pacs.url}/studies", length=10**12)

    expected = filled(pacs, 2)
    pacs.fail("/studies", endless)
    assert listed(source(pacs)) == list(expected)


# ---------------------------------------------------------------- TLS


@pytest.fixture
def tls_pacs(certificate) -> Iterator[LoopbackPacs]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.parent / "key.pem")
    with LoopbackPacs(context) as server:
        yield server


def test_a_certificate_is_trusted_only_when_it_is_named(tls_pacs, certificate):
    expected = filled(tls_pacs, 2)
    with pytest.raises(SourceError, match=r"not trusted here.*sources\.pacs\.ca_file"):
        listed(source(tls_pacs))
    with pytest.raises(SourceError, match="not trusted here"):
        list(source(tls_pacs).images(expected))
    found = source(tls_pacs, ca_file=certificate)
    assert list(found.images(listed(found))) == list(expected.values())


def test_credentials_never_leave_tls(tls_pacs, certificate, pacs):
    filled(pacs, 2)
    tls_pacs.always("/studies", _to(f"{pacs.url}/studies"))
    for allowed in ([], ["127.0.0.1"]):
        with pytest.raises(SourceError, match="over http"):
            listed(source(tls_pacs, ca_file=certificate, allowed_hosts=allowed, token=SECRET))
    assert pacs.asked == []


def test_a_step_up_to_tls_is_followed_where_it_is_allowed(tls_pacs, certificate, pacs):
    expected = filled(tls_pacs, 2)
    pacs.always("/studies", _to(f"{tls_pacs.url}/studies"))
    pacs.instances = tls_pacs.instances
    allowed = [f"127.0.0.1:{tls_pacs.port}"]
    found = source(pacs, ca_file=certificate, allowed_hosts=allowed)
    assert [one.rpartition("/dicom-web")[2] for one in listed(found)] == [
        one.rpartition("/dicom-web")[2] for one in expected
    ]


def test_connections_are_used_again(pacs):
    expected = filled(pacs, 20)
    ports: set[int] = set()
    pacs.chunked = True
    original = pacs.enter

    def noting(change: int) -> None:
        original(change)
        ports.add(threading.get_ident())

    pacs.enter = noting  # one thread of the server for each connection
    assert list(source(pacs, max_connections=2).images(expected)) == list(expected.values())
    assert len(ports) <= 2
    assert len(list(itertools.islice(pacs.asked, 20))) == 20
