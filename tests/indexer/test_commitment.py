"""Storage commitment that a node answers over an association of its own, at once or days later."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from committing_node import CommittingNode, reference, report, stores
from dicom_files import dataset, encode
from filelock import FileLock
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage

from engine.errors import DocumentError
from engine.settings import DocumentsSettings, Settings
from indexer.documents.commitments import Transactions
from indexer.documents.making import Document
from indexer.documents.outbox import Outbox, commitment_nodes
from indexer.documents.plans import Listed, Plan
from indexer.documents.sendings import Sending
from indexer.sources.pushed.inbox import Inbox
from indexer.sources.pushed.storescp import StoreScp

IMAGE = "00000000-0000-0000-0000-000000000001"
INVALID_ARGUMENT = 0x0115


class Site:
    """A data folder, its listener, and a node that takes documents of it."""

    def __init__(self, folder: Path, node: CommittingNode, port: int, **more: Any) -> None:
        self.node = node
        self.now = time.time()
        self.settings = Settings(
            data_dir=folder,
            documents=DocumentsSettings(commitment_hours=1),
            destinations={
                "pacs": {
                    "kind": "dicom",
                    "ae_title": "NODE",
                    "host": "127.0.0.1",
                    "port": port,
                    "timeout_seconds": 5,
                    "commitment_seconds": 0,
                    **more,
                },
                "other": {"kind": "dicom", "ae_title": "OTHER", "host": "127.0.0.1", "port": port},
            },
            receive={"port": 0, "min_free_bytes": 0},
        )
        self.receiver = StoreScp(self.settings.receive, commitment_nodes(self.settings))
        self.inbox = Inbox(folder / "received", self.settings.receive, 2**31)
        self.port = self.receiver.start(self.inbox)

    @property
    def outbox(self) -> Outbox:
        """As after a restart."""
        return Outbox(self.settings, lambda: self.now)

    def sent(self, count: int = 1) -> Sending:
        plans = [
            Plan.new("sr", IMAGE, [Listed(IMAGE, 1.0, 0)], datetime(2026, 3, 1))
            for _ in range(count)
        ]
        noted = self.outbox.add("pacs", plans, "default", {})
        return self.attempt(noted)

    def attempt(self, noted: Sending) -> Sending:
        made = [_document(plan.sop) for plan in noted.plans]
        return self.outbox.attempt(noted, None, None, made)

    def now_is(self, sending: Sending) -> Sending:
        return self.outbox.of(sending.id, "default")


def _document(sop: str) -> Document:
    made = dataset(SOPClassUID=ComprehensiveSRStorage, SOPInstanceUID=sop, StudyInstanceUID="1.2.9")
    return Document(encode(made), "1.2.9", sop, ComprehensiveSRStorage)


@contextmanager
def running(folder: Path, node: CommittingNode, **more: Any) -> Iterator[Site]:
    with node.running() as port:
        site = Site(folder, node, port, **more)
        try:
            yield site
        finally:
            site.receiver.stop(0.0)
            site.inbox.__exit__()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running(tmp_path, CommittingNode()) as found:
        yield found


@pytest.mark.parametrize("roles", [True, False], ids=["as SCP", "without roles"])
def test_an_answer_that_comes_later_finds_its_sending(site: Site, roles: bool) -> None:
    sent = site.sent(2)
    assert (sent.state, sent.commitment) == ("sent", "asked")
    (asked,) = site.node.asked
    assert report(site.port, asked, roles=roles) == 0x0000
    found = site.now_is(sent)
    assert (found.commitment, [one.committed for one in found.fates]) == ("committed", [True] * 2)
    # Once more, as a node does that has not heard the answer.
    assert report(site.port, asked) == 0x0000
    assert site.now_is(sent) == found


def test_what_a_node_does_not_keep_has_its_reason_and_can_be_sent_again(
    site: Site, caplog: Any
) -> None:
    sent = site.sent(2)
    lost, kept = (plan.sop for plan in sent.plans)
    assert report(site.port, site.node.asked[0], failed={lost: 0x0112}) == 0x0000
    found = site.now_is(sent)
    assert (found.state, found.commitment) == ("sent", "failed")
    assert [(one.committed, one.failure) for one in found.fates] == [
        (False, "0x0112"),
        (True, None),
    ]
    assert "does not commit itself to 1 of 2 documents (0x0112)" in (found.why or "")
    assert f"sending {sent.id}" in caplog.text
    again = site.attempt(site.outbox.retry(sent.id, "default"))
    assert site.node.stored == [lost, kept, lost]
    assert (again.commitment, again.why) == ("asked", None)
    # What the first request brought does not count for the second.
    assert report(site.port, site.node.asked[0], failed={lost: 0x0112}) == 0x0000
    assert site.now_is(sent).commitment == "asked"
    assert report(site.port, site.node.asked[1]) == 0x0000
    assert site.now_is(sent).commitment == "committed"
    with pytest.raises(DocumentError, match="cannot be changed so"):
        site.outbox.retry(sent.id, "default")


def test_reports_that_nobody_asked_for_are_refused_and_logged(site: Site, caplog: Any) -> None:
    sent = site.sent()
    (asked,) = site.node.asked
    never = Dataset()
    never.TransactionUID, never.ReferencedSOPSequence = "1.2.3", [reference("1.2.9.1")]
    assert report(site.port, never) == INVALID_ARGUMENT
    assert "transaction 1.2.3, for which it was not asked" in caplog.text
    # A node that was asked for something else.
    assert report(site.port, asked, title="OTHER") == INVALID_ARGUMENT
    never.TransactionUID = ""
    assert report(site.port, never) == INVALID_ARGUMENT
    assert report(site.port, asked, title="STRANGER") is None
    assert report(site.port, asked, called="ELSEWHERE") is None
    # A data set that is larger than any report ends the association.
    assert report(site.port, asked, padding=2 * 1024**2) is None
    assert site.now_is(sent).commitment == "asked"
    # Whoever may report may not store.
    assert not stores(site.port, "NODE")


def test_a_node_may_report_under_another_title_and_know_us_by_another(tmp_path: Path) -> None:
    names = {"calling_ae_title": "SENDER", "commitment_ae_titles": ["NODE_SC"]}
    with running(tmp_path, CommittingNode(), **names) as site:
        sent = site.sent()
        (asked,) = site.node.asked
        assert report(site.port, asked, title="NODE_SC", called="SENDER") == 0x0000
        assert site.now_is(sent).commitment == "committed"


def test_an_answer_during_the_attempt_is_in_what_it_tells(tmp_path: Path) -> None:
    answers: list[threading.Thread] = []

    def answer(asked: Dataset) -> None:
        answers.append(threading.Thread(target=report, args=(site.port, asked)))
        answers[-1].start()

    with running(tmp_path, CommittingNode(answer), commitment_seconds=20) as site:
        sent = site.sent()
        answers[0].join()
    assert (sent.state, sent.commitment) == ("sent", "committed")


def test_an_answer_waits_for_whoever_changes_the_sending(site: Site) -> None:
    sent = site.sent()
    lock = FileLock(site.settings.data_dir / "outbox" / "locks" / f"{sent.id}.lock")
    with lock:
        assert report(site.port, site.node.asked[0]) == 0x0000
        assert site.now_is(sent).commitment == "asked"
    # A kill here loses nothing: the report is on disk.
    assert site.now_is(sent).commitment == "committed"


def test_an_attempt_that_was_killed_after_it_asked_is_made_again(site: Site) -> None:
    plans = [Plan.new("sr", IMAGE, [Listed(IMAGE, 1.0, 0)], datetime(2026, 3, 1))]
    noted = site.outbox.add("pacs", plans, "default", {})
    # So far it had come: the node was asked, and the sending does not say so.
    Transactions(site.settings.data_dir / "outbox").begin("1.2.3", noted.id)
    before = Dataset()
    before.TransactionUID, before.ReferencedSOPSequence = "1.2.3", [reference(plans[0].sop)]
    assert report(site.port, before) == 0x0000
    found = site.now_is(noted)
    assert (found.state, found.commitment) == ("waiting", "not-asked")
    assert site.attempt(found).commitment == "asked"
    assert report(site.port, site.node.asked[0]) == 0x0000
    assert site.now_is(noted).commitment == "committed"
    assert not list((site.settings.data_dir / "outbox" / "reports").iterdir())


def test_what_stays_unanswered_is_said_and_a_late_answer_counts(site: Site) -> None:
    sent = site.sent()
    outbox = site.outbox
    outbox.tidy()
    assert site.now_is(sent).commitment == "asked"
    site.now += 3600
    site.outbox.tidy()
    assert site.now_is(sent).commitment == "unanswered"
    site.now += 86_400
    site.outbox.tidy()
    assert report(site.port, site.node.asked[0]) == 0x0000
    assert site.now_is(sent).commitment == "committed"
