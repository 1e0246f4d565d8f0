"""What a backup says of itself at its beginning."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from engine.errors import BackupError

__all__ = ["Counts", "Head"]

_FORMAT, _VERSION = "precedent-backup", 1


@dataclass(frozen=True, slots=True)
class Counts:
    """What is in a backup. points: in the index; None = there is none. instances: rows of the
    ledger by state; keys: API keys; audit_rows: of the audit log; audit_heads: of each of its
    chains number and hash of the last row."""

    points: int | None
    instances: dict[str, int]
    keys: int
    audit_rows: int
    audit_heads: dict[str, tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Head:
    """What a backup is.

    id: its own. full: that of the full backup that it belongs to. since: the one whose files it
        lacks; None = it is a full one. number: 0 for a full one, else one more than that one's.
    at: the moment, UTC, ISO 8601. versions: of the programs and formats that it was made with.
    root: path of the data folder. index: name of the folder of its index; None = there is none.
    secrets: whether the keys are in it. received: whether received files are.
    pseudonyms: where the key of pseudonyms is: in the backup, to be kept apart, in the settings, or
        there is none yet. pseudonyms_check: tells whether a key is that one.
    settings: those that are not as they come, without secrets.
    """

    id: str
    full: str
    since: str | None
    number: int
    at: str
    versions: dict[str, str]
    root: str
    index: str | None
    secrets: bool
    received: bool
    pseudonyms: Literal["backup", "apart", "settings", "none"]
    pseudonyms_check: str
    counts: Counts
    settings: dict[str, Any] = field(default_factory=dict)

    def written(self) -> bytes:
        told = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        return json.dumps(told, indent=1).encode("ascii") + b"\n"

    @classmethod
    def read(cls, data: bytes, place: str) -> "Head":
        """Raises BackupError: it is of no backup, or of a later version."""
        try:
            told = json.loads(data)
            if told.pop("format") != _FORMAT:
                raise ValueError("another format")
            version = told.pop("version")
            if version != _VERSION:
                raise BackupError(
                    f"{place} has version {version} of the format of backups, and this program "
                    f"reads {_VERSION}; use the version of Precedent that made it, or a later one"
                )
            counts = told.pop("counts")
            heads = {name: (int(at), str(one)) for name, (at, one) in counts["audit_heads"].items()}
            return cls(**told, counts=Counts(**{**counts, "audit_heads": heads}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackupError(
                f"{place} is no backup, or its beginning is damaged ({type(error).__name__}); name "
                "a file that `precedent backup create` wrote"
            ) from None
