"""Why an instance of a request is not stored: the codes of PS3.18, table I.2-2."""

from dataclasses import dataclass

from indexer.sources.pushed.arrival import Answer

__all__ = [
    "CLASS_NOT_TAKEN",
    "DIFFERENT_HEAD",
    "NOT_DEFLATED",
    "NOT_DICOM",
    "NO_STUDY",
    "NO_UID",
    "OTHER_TYPE",
    "OUT_OF_RESOURCES",
    "SYNTAX_NOT_TAKEN",
    "TOO_DEEP",
    "WRONG_STUDY",
    "Refusal",
]

OUT_OF_RESOURCES = Answer.NO_ROOM.status
"""The reason of those that may be sent again later."""
DIFFERENT_HEAD = 0xB000
"""The warning (PS3.18, table I.2-1) where the file meta information names another instance, class
or both than the data set: that of the data set is kept."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """reason: a Failure Reason (0008,1197). comment: for people, 64 characters at most, of which
    nothing is quoted from the instance."""

    reason: int
    comment: str

    @classmethod
    def of(cls, answer: Answer) -> "Refusal":
        """What C-STORE would answer."""
        return cls(answer.status, answer.comment)


NO_UID = Refusal.of(Answer.NO_UID)
NOT_DICOM = Refusal(0xC000, "it is no DICOM file (PS3.10), or cannot be read as one")
NOT_DEFLATED = Refusal(0xC000, "its transfer syntax is Deflated, its data set is not")
TOO_DEEP = Refusal(0xC000, "its sequences nest deeper than limits.max_nesting")
NO_STUDY = Refusal(0xC000, "no Study Instance UID is where it belongs")
OTHER_TYPE = Refusal(0xC000, "the Content-Type of the part is not application/dicom")
SYNTAX_NOT_TAKEN = Refusal(0xC122, "its transfer syntax is not known")
CLASS_NOT_TAKEN = Refusal(0x0122, "its SOP class is not one of storage")
WRONG_STUDY = Refusal(0x0110, "it is of another study than the address names")
