"""Transactions of storage commitment: which nodes were asked, and what they have reported since.

A node may report over an association of its own, days later, and before the program that asked has
written down that it did. So each transaction is a file from before the node is asked, and a report
is one as well, until it stands in its sending.
"""

import json
from contextlib import suppress
from pathlib import Path

from engine.documents_settings import DicomDestination
from engine.files import write_atomically
from engine.settings import Settings
from indexer.sources.pushed.commitment import CommitmentReport

__all__ = ["Asked", "Transactions", "called_by_nodes", "titles_of"]


class Transactions:
    """The transactions of the sendings in a folder. UIDs are checked before they get here."""

    def __init__(self, folder: Path) -> None:
        self._begun = folder / "transactions"
        self._reports = folder / "reports"

    def begin(self, transaction: str, sending: str) -> None:
        """Notes that a sending's destination is asked now."""
        self._begun.mkdir(mode=0o700, exist_ok=True)
        write_atomically(self._begun / transaction, sending.encode())

    def sending_of(self, transaction: str) -> str | None:
        """The id of the sending to which it belongs; None = nobody was asked in it."""
        try:
            return (self._begun / transaction).read_text("ascii")
        except (FileNotFoundError, ValueError):
            return None

    def note(self, report: CommitmentReport) -> None:
        """Notes a report; it is on disk when this returns."""
        self._reports.mkdir(mode=0o700, exist_ok=True)
        written = {"committed": sorted(report.committed), "failed": dict(report.failed)}
        write_atomically(self._reports / report.transaction, json.dumps(written).encode())

    def report(self, transaction: str) -> CommitmentReport | None:
        """What was noted and is in no sending yet; None = nothing."""
        try:
            written = json.loads((self._reports / transaction).read_bytes())
            return CommitmentReport(transaction, frozenset(written["committed"]), written["failed"])
        except FileNotFoundError:
            return None

    def reported(self) -> list[str]:
        """The transactions whose reports are in no sending yet."""
        try:
            names = sorted(one.name for one in self._reports.iterdir())
        except FileNotFoundError:
            return []
        return [name for name in names if not name.startswith(".")]

    def applied(self, transaction: str) -> None:
        """Forgets a report, which is in its sending now."""
        (self._reports / transaction).unlink(missing_ok=True)

    def forget(self, before: float) -> None:
        """Forgets the transactions that began before then, and what a kill left of writing one."""
        for folder in (self._begun, self._reports):
            try:
                found = list(folder.iterdir())
            except FileNotFoundError:
                continue
            for path in found:
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < before:
                        path.unlink()


class Asked:
    """The transactions of one sending, for whoever asks its destination."""

    def __init__(self, transactions: Transactions, sending: str) -> None:
        self._transactions = transactions
        self._sending = sending

    def begin(self, transaction: str) -> None:
        self._transactions.begin(transaction, self._sending)

    def report(self, transaction: str) -> CommitmentReport | None:
        return self._transactions.report(transaction)


def titles_of(to: DicomDestination) -> set[str]:
    """The AE titles under which a destination may report."""
    return {one.strip() for one in (to.ae_title, *to.commitment_ae_titles)}


def called_by_nodes(settings: Settings) -> dict[str, frozenset[str]]:
    """By the AE title of each node that may be asked to commit itself, the titles under which it
    knows this program; empty = none may be."""
    found: dict[str, set[str]] = {}
    for to in settings.destinations.values():
        if isinstance(to, DicomDestination) and to.commitment:
            for title in titles_of(to):
                found.setdefault(title, set()).add(to.calling_ae_title.strip())
    return {title: frozenset(called) for title, called in found.items()}
