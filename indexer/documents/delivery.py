"""What became of documents at a destination, whichever way they went."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from indexer.sources.pushed.commitment import CommitmentReport

__all__ = ["Asking", "Delivery", "Fate", "Unreachable", "commitment_of", "with_report"]


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one document.

    state: "stored"; "refused", by the destination, for good; "waiting", to be tried again.
    status: code of the answer, as in "0x0000" (C-STORE), "200" or a Failure Reason such as "0x0110"
    (STOW-RS); None = there was none. detail: a sentence, or None.
    transaction: in which the destination was asked to commit itself to it; None = in none.
    committed: whether the destination answers for it (storage commitment); None = it did not say.
    failure: the Failure Reason if it does not, as in "0x0112"; None = there is none.
    """

    sop: str
    state: str
    status: str | None = None
    detail: str | None = None
    committed: bool | None = None
    transaction: str | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt. commitment: "not-asked", "not-offered", "refused", or "asked": the fates have
    the answer if it came at once."""

    fates: tuple[Fate, ...]
    commitment: str = "not-asked"


class Asking(Protocol):
    """Where it is noted that a node was asked to commit itself."""

    def begin(self, transaction: str) -> None:
        """Notes a transaction; it is on disk when this returns, before the node is asked."""
        ...

    def report(self, transaction: str) -> CommitmentReport | None:
        """What the node said of it over another association; None = nothing yet."""
        ...


class Unreachable(Exception):
    """Nothing could be sent now. words: why, without a name of anybody."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


def with_report(fates: Sequence[Fate], report: CommitmentReport) -> tuple[Fate, ...]:
    """The fates with what a node said of those for which it was asked in this transaction."""

    def said(one: Fate) -> Fate:
        if one.transaction != report.transaction:
            return one
        if one.sop in report.committed:
            return replace(one, committed=True, failure=None)
        if one.sop not in report.failed:
            return one
        reason = report.failed[one.sop]
        return replace(one, committed=False, failure=None if reason is None else f"0x{reason:04X}")

    return tuple(map(said, fates))


def commitment_of(fates: Sequence[Fate], otherwise: str) -> str:
    """Storage commitment of all documents together: "asked" while an answer is awaited, then
    "failed" if the destination does not answer for one, or "committed".

    otherwise: what it is if nothing was asked for.
    """
    if otherwise in ("asked", "unanswered"):
        # Of what was not asked for, the destination did not want to be.
        otherwise = "refused"
    asked = [one.committed for one in fates if one.transaction is not None]
    if not asked:
        return otherwise
    if None in asked:
        return "asked"
    if False in asked:
        return "failed"
    stored = [one for one in fates if one.state == "stored"]
    return "committed" if len(asked) == len(stored) else otherwise
