"""Sendings are kept over a restart, also those of other versions; what has ended costs nothing."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from engine.settings import DocumentsSettings, Settings
from indexer.documents.outbox import Outbox
from indexer.documents.plans import Listed, Plan
from indexer.documents.sendings import Sending

IMAGE = "00000000-0000-0000-0000-000000000001"
PLAN = Plan.new("teaching", IMAGE, [Listed(IMAGE, 1.0, 0)], datetime(2026, 3, 1))


class Site:
    def __init__(self, folder: Path) -> None:
        self.now = time.time()
        self.settings = Settings(
            data_dir=folder,
            documents=DocumentsSettings(keep_days=2),
            destinations={
                "pacs": {"kind": "dicom", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
            },
        )
        self.folder = folder / "outbox"

    @property
    def outbox(self) -> Outbox:
        """As after a restart."""
        return Outbox(self.settings, lambda: self.now)

    def add(self) -> Sending:
        return self.outbox.add("pacs", [PLAN], "default", {})

    def ids(self) -> set[str]:
        return {one.id for one in self.outbox.newest("default", 100)}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


@contextmanager
def opened(folder: Path) -> Iterator[list[str]]:
    """Files of the folder that are opened in the block, by whichever function."""
    global _opened
    found: list[str] = []
    _opened = []
    try:
        yield found
        found += [path for path in _opened if path.startswith(str(folder))]
    finally:
        _opened = None


sys.addaudithook(_hook)


def test_what_another_version_noted_is_left_alone(site: Site, caplog: Any) -> None:
    kept, other, broken = site.add(), site.add(), site.add()
    assert site.ids() == {kept.id, other.id, broken.id}
    path = site.folder / f"{other.id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3, "new": "field"}))
    (site.folder / f"{broken.id}.json").write_text("{")
    outbox = site.outbox
    assert outbox.newest("default", 100) == [kept]
    # Whoever looks every few seconds is told once.
    assert outbox.due() == []
    assert outbox.newest("default", 100) == [kept]
    assert caplog.text.count("another version noted it") == 2
    assert path.is_file()


def test_what_has_ended_is_not_read_when_it_is_looked_for_what_is_due(site: Site) -> None:
    outbox = site.outbox
    for _ in range(20):
        outbox.cancel(site.add().id, "default")
    later, soon = site.add(), site.add()
    outbox.due()
    with opened(site.folder) as files:
        outbox.tidy()
        assert outbox.due() == []
    assert files == []
    site.now += 60
    with opened(site.folder) as files:
        outbox.tidy()
        assert {one.id for one in outbox.due()} == {later.id, soon.id}
    assert sorted(files) == sorted(str(site.folder / f"{one.id}.json") for one in (later, soon))
    # A list of the latest ones reads no more than these either.
    with opened(site.folder) as files:
        assert len(outbox.newest("default", 5)) == 5
    assert len(files) < 20


def test_what_ended_long_ago_is_forgotten(site: Site) -> None:
    old = site.add()
    site.outbox.cancel(old.id, "default")
    site.now += 86_400
    new = site.add()
    site.outbox.cancel(new.id, "default")
    site.now += 86_401
    site.outbox.tidy()
    assert site.ids() == {new.id}
    assert not [path for path in site.folder.rglob("*") if path.name.startswith(old.id)]


def test_sendings_of_before_are_read_and_put_where_they_belong(site: Site) -> None:
    """All lay in one folder, and what a node had answered had one word."""
    waiting, sent, refused = site.add(), site.add(), site.add()
    for one, committed in ((sent, True), (refused, False)):
        path = site.folder / f"{one.id}.json"
        written = json.loads(path.read_text())
        fate = {"sop": PLAN.sop, "state": "stored", "status": "0x0000", "detail": None}
        written |= {"format": 1, "state": "sent", "ended_at": site.now, "commitment": "answered"}
        written["fates"] = [{**fate, "committed": committed}]
        path.write_text(json.dumps(written))
    site.now += 60
    assert [one.id for one in site.outbox.due()] == [waiting.id]
    assert sorted(path.name for path in site.folder.glob("*.json")) == [f"{waiting.id}.json"]
    found = [site.outbox.of(one.id, "default").commitment for one in (sent, refused)]
    assert found == ["committed", "failed"]
    assert site.ids() == {waiting.id, sent.id, refused.id}


def test_a_kill_between_writing_and_moving_loses_nothing(site: Site) -> None:
    one = site.add()
    cancelled = site.outbox.cancel(one.id, "default")
    name = f"{one.id}.json"
    # Ended, and not moved yet …
    (site.folder / "ended" / name).rename(site.folder / name)
    assert site.outbox.of(one.id, "default") == cancelled
    site.now += 60
    assert site.outbox.due() == []
    assert (site.folder / "ended" / name).is_file()
    # … or tried again, and the older one not removed yet.
    older = (site.folder / "ended" / name).read_bytes()
    text = json.loads(older) | {"state": "waiting", "ended_at": None}
    (site.folder / name).write_text(json.dumps(text))
    assert site.outbox.of(one.id, "default").state == "waiting"
    assert [found.id for found in site.outbox.due()] == [one.id]
    assert site.outbox.cancel(one.id, "default").state == "cancelled"
    assert [path.parent.name for path in site.folder.rglob(name)] == ["ended"]
