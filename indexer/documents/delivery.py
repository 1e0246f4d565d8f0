"""What became of documents at a destination, whichever way they went."""

from dataclasses import dataclass, replace

__all__ = ["Delivery", "Fate", "Unreachable"]


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one document.

    state: "stored"; "refused", by the destination, for good; "waiting", to be tried again.
    status: code of the answer, as in "0x0000" (C-STORE), "200" or a Failure Reason such as "0x0110"
    (STOW-RS); None = there was none. detail: a sentence, or None.
    committed: whether the destination answers for it (storage commitment); None = it did not say.
    """

    sop: str
    state: str
    status: str | None = None
    detail: str | None = None
    committed: bool | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt. commitment: "not-asked", "not-offered", "asked" (no answer came in time),
    "refused" or "answered"."""

    fates: tuple[Fate, ...]
    commitment: str = "not-asked"

    def committed(self, sops: set[str], failed: set[str], commitment: str) -> "Delivery":
        """The delivery with what the destination said of its commitment."""
        fates = tuple(
            replace(
                one, committed=True if one.sop in sops else False if one.sop in failed else None
            )
            for one in self.fates
        )
        return Delivery(fates, commitment)


class Unreachable(Exception):
    """Nothing could be sent now. words: why, without a name of anybody."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words
