"""Listing a DICOMweb server study by study or several at once: the same instances, whatever the
server does, and few requests where it does what the standard says."""

import json
from collections.abc import Callable, Iterator

import pytest
from loopback_pacs import LoopbackPacs, Reply
from test_dicomweb import Patience, source

from engine.errors import SourceError
from indexer.sources.dicomweb.source import DicomWebSource


@pytest.fixture
def pacs() -> Iterator[LoopbackPacs]:
    with LoopbackPacs() as server:
        server.counts = lambda instances: instances
        yield server


def filled(pacs: LoopbackPacs, studies: int = 8, series: int = 2, instances: int = 3) -> list[str]:
    """Locators in the order of the server."""
    return [
        pacs.add(f"1.{study}", f"1.{study}.{one}", f"1.{study}.{one}.{instance}", b"")
        for study in range(studies)
        for one in range(series)
        for instance in range(instances)
    ]


def listed(found: DicomWebSource) -> list[str]:
    return [one.locator for one in found.instances()]


def by_series(pacs: LoopbackPacs) -> int:
    """How many searches there were for the instances of one series."""
    return sum("/series" in path for path in pacs.paths())


def test_studies_are_searched_together(pacs):
    expected = filled(pacs)
    assert listed(source(pacs)) == expected
    assert pacs.paths() == ["/studies", "/studies", "/instances", "/instances"]
    # Without the counts, that is: two for the studies, one more to ask for the counts, two for the
    # series of each, and two for each series.
    pacs.asked.clear()
    pacs.counts = None
    assert listed(source(pacs)) == expected
    assert len(pacs.asked) == 3 + 8 * 2 + 16 * 2


@pytest.mark.parametrize("page", [1, 2, 5, 6, 7, 48, 500])
@pytest.mark.parametrize("cap", [1, 4, 1000])
def test_the_same_whatever_the_pages(pacs, page, cap):
    expected = filled(pacs)
    pacs.page_cap = cap
    assert listed(source(pacs, page=page)) == expected
    assert by_series(pacs) == 0


def test_addresses_stay_short(pacs):
    expected = [
        pacs.add(f"1.{'9' * 58}.{number:03}", "1.2", f"1.3.{number}", b"") for number in range(60)
    ]
    assert listed(source(pacs)) == expected
    assert max(len(one.query.get("StudyInstanceUID", "")) for one in pacs.asked) <= 1500
    assert len(pacs.asked) == 2 + 2 * 3


QUIRKS: dict[str, Callable[[LoopbackPacs], object]] = {
    "counts too low": lambda pacs: setattr(pacs, "counts", lambda instances: instances - 1),
    "counts too high": lambda pacs: setattr(pacs, "counts", lambda instances: instances + 1),
    "a count of nothing": lambda pacs: setattr(pacs, "counts", lambda _: 0),
    "counts that are none": lambda pacs: setattr(pacs, "counts", lambda _: "many"),
    "counts below nothing": lambda pacs: setattr(pacs, "counts", lambda _: -3),
    "counts as text": lambda pacs: setattr(pacs, "counts", str),
    "counts only when asked": lambda pacs: setattr(pacs, "counts_when_asked", True),
    "ignores offset": lambda pacs: pacs.ignores.add("offset"),
    "ignores limit": lambda pacs: pacs.ignores.add("limit"),
    "ignores limit and offset": lambda pacs: pacs.ignores.update({"limit", "offset"}),
    "ignores filters": lambda pacs: pacs.ignores.add("filters"),
    "ignores everything": lambda pacs: pacs.ignores.update({"limit", "offset", "filters"}),
    "lists separated otherwise": lambda pacs: setattr(pacs, "list_separator", "\\"),
    "no lists": lambda pacs: pacs.flat.discard("list"),
    "no whole study": lambda pacs: pacs.flat.discard("study"),
    "neither": lambda pacs: pacs.flat.clear(),
    "errors": lambda pacs: pacs.always("/dicom-web/instances", lambda reply: reply.send(400)),
    "fails": lambda pacs: pacs.always("/dicom-web/instances", lambda reply: reply.send(500)),
    "forbids": lambda pacs: pacs.always("/dicom-web/instances", lambda reply: reply.send(403)),
    "answers with a page": lambda pacs: pacs.always(
        "/dicom-web/instances", lambda reply: reply.send(200, b"<html>", "text/html")
    ),
    "lists nothing": lambda pacs: pacs.always(
        "/dicom-web/instances", lambda reply: reply.send(200, b"[]", "application/dicom+json")
    ),
    "lists instances alone": lambda pacs: pacs.always("/dicom-web/instances", _bare),
}


def _bare(reply: Reply) -> None:
    entries = [{"00080018": {"vr": "UI", "Value": [f"1.0.0.{number}"]}} for number in range(3)]
    reply.send(200, json.dumps(entries).encode(), "application/dicom+json")


@pytest.mark.parametrize("quirk", QUIRKS)
def test_a_server_that_does_it_otherwise_is_listed_all_the_same(pacs, quirk):
    expected = filled(pacs)
    QUIRKS[quirk](pacs)
    assert listed(source(pacs, page=50)) == expected
    # What does not work is not tried for each study.
    assert len(pacs.asked) <= 3 + 8 * 2 + 16 * 2 + 12


@pytest.mark.parametrize("quirk", ["lists separated otherwise", "counts as text"])
def test_what_is_right_in_another_way_still_saves_requests(pacs, quirk):
    filled(pacs)
    QUIRKS[quirk](pacs)
    listed(source(pacs, page=50))
    assert by_series(pacs) == 0
    assert len(pacs.asked) <= 7


def test_without_lists_a_study_is_searched_as_a_whole(pacs):
    expected = filled(pacs)
    pacs.flat.discard("list")
    assert listed(source(pacs)) == expected
    assert by_series(pacs) == 0


def test_one_study_that_is_counted_wrongly_is_searched_by_series_and_no_other(pacs):
    expected = filled(pacs, studies=7) + [
        pacs.add("1.9", f"1.9.{number}", f"1.9.1.{number}", b"") for number in range(5)
    ]
    pacs.counts = lambda instances: 4 if instances == 5 else instances
    assert listed(source(pacs)) == expected
    assert {path.split("/")[2] for path in pacs.paths() if "/series" in path} == {"1.9"}


def test_an_instance_without_valid_uid_is_accounted_for_and_spoils_one_study_alone(pacs):
    expected = filled(pacs, studies=3)
    pacs.add("1.1", "1.1.0", "../DOE^JOHN", b"")
    found = listed(source(pacs))
    assert [one for one in found if "invalid-" not in one] == expected
    assert len(found) == len(expected) + 1
    assert {path.split("/")[2] for path in pacs.paths() if "/series" in path} == {"1.1"}


def test_what_came_or_went_or_was_replaced_is_noticed(pacs):
    before = filled(pacs)
    gone = pacs.instances.pop(10)
    assert listed(source(pacs)) == before[:10] + before[11:]
    # As many as before, so that counts alone would not tell.
    new = pacs.add(gone.study, gone.series, "1.7.7.7", b"")
    assert set(listed(source(pacs))) == {*before[:10], *before[11:], new}


def test_one_modality(pacs):
    filled(pacs, studies=3)
    wanted = [pacs.add(f"1.{study}", f"1.{study}.7", f"1.7.{study}", b"", modality="MR")
              for study in (0, 2)]  # fmt: skip
    assert listed(source(pacs, query={"modality": "MR"})) == wanted
    assert by_series(pacs) == 0
    # A study with far more than a page of others is not listed for the sake of a few.
    pacs.asked.clear()
    assert listed(source(pacs, page=5, query={"modality": "MR"})) == wanted
    assert by_series(pacs) > 0


def test_of_one_modality_where_instances_do_not_tell_theirs(pacs):
    filled(pacs, studies=2)
    wanted = pacs.add("1.0", "1.0.7", "1.7.1", b"", modality="MR")
    said = pacs._flat

    def untold(*asked: object) -> object:
        return [{t: e for t, e in one.items() if t != "00080060"} for one in said(*asked) or []]

    pacs._flat = untold
    assert listed(source(pacs, query={"modality": "MR"})) == [wanted]


def test_dates_choose_as_before(pacs):
    from datetime import date

    days = ["20200115", "20200131", "20200201", "20210310"]
    found = [pacs.add(f"1.{n}", f"1.{n}.1", f"1.3.{n}", b"", date=day)
             for n, day in enumerate(days)]  # fmt: skip
    query = {"since": date(2020, 1, 20), "until": date(2020, 12, 31)}
    assert listed(source(pacs, query=query)) == found[1:3]


def test_a_server_that_goes_away_is_not_asked_in_every_way(pacs):
    filled(pacs)
    pacs.fail("/studies")
    for path in ("/instances", "/series"):
        pacs.always(path, lambda reply: reply.drop())
    patience = Patience()
    with pytest.raises(SourceError, match="3 attempts"):
        listed(source(pacs, patience=patience))
    assert len([path for path in pacs.paths() if path != "/studies"]) == 2 + 3


def test_a_study_without_counts_does_not_hold_up_what_is_listed(pacs):
    expected = filled(pacs)
    found = source(pacs, page=6).instances()
    assert next(found).locator == expected[0]
    # One page of studies, of which one fills a page of instances, and the page after its last.
    assert len(pacs.asked) == 3
    found.close()
