"""Writes the tables of docs/dicom-conformance.md from the code.

    python -m bench.statement [--page docs/dicom-conformance.md]

Each table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``. A test compares the page with
the code.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from pydicom.uid import (
    UID,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
)
from pynetdicom import sop_class

from api.refusals import REFUSALS
from bench.isolation import Isolated
from bench.statement_files import verdict_on
from engine.errors import RefusalReason
from engine.records import RECORD_FIELDS
from engine.settings import ImageLimits, ReceiveSettings
from indexer.imaging import dicom
from indexer.imaging.deidentify import HEADER_KEYWORDS
from indexer.imaging.pixels import PIXEL_KEYWORDS
from indexer.sources.pushed import arrival, storescp
from indexer.sources.pushed.arrival import Answer
from indexer.sources.pushed.storescp import StoreScp

__all__ = ["TABLES", "filled"]

_DOCS = Path(__file__).parents[1] / "docs"
_PAGE = _DOCS / "dicom-conformance.md"
_VERIFICATION = "Verification SOP Class"
_BY_GDCM = (JPEGLossless, JPEGLosslessSV1)


def _scp() -> StoreScp:
    return StoreScp(ReceiveSettings(allowed_ae_titles=("PACS",)))


def sop_classes() -> str:
    """SOP classes that the C-STORE SCP accepts."""
    lines = ["| SOP class | UID | role |", "|---|---|---|"]
    found = {UID(str(one.abstract_syntax)) for one in _scp().contexts}
    # Newer than pydicom's dictionary are some; pynetdicom has a word for them.
    words = {str(uid): word for word, uid in vars(sop_class).items() if isinstance(uid, UID)}
    named = {uid: words.get(uid, uid) if uid.name == uid else uid.name for uid in found}
    for uid in sorted(found, key=lambda uid: (named[uid] != _VERIFICATION, named[uid], uid)):
        lines.append(f"| {named[uid]} | `{uid}` | SCP |")
    return "\n".join(lines)


def transfer_syntaxes() -> str:
    """Transfer syntaxes that are accepted, and of which the pixels are read."""
    accepted: set[str] = set()
    for context in _scp().contexts:
        if UID(str(context.abstract_syntax)).name != _VERIFICATION:
            accepted |= {str(syntax) for syntax in context.transfer_syntax or []}
    lines = [
        "| transfer syntax | UID | pixels read |",
        "|---|---|---|",
    ]
    with Isolated(60, preload=("bench.statement_files",)) as isolated:
        for syntax in sorted(accepted, key=_number):
            uid = UID(syntax)
            # A crash over a stream that means nothing is a decoder, too.
            read = isolated(verdict_on, syntax)
            said = "no" if read == RefusalReason.UNSUPPORTED_SYNTAX.value else "yes"
            if uid in _BY_GDCM:
                said = "yes, by GDCM"
            elif uid == JPEGExtended12Bit:
                said = "yes; 12 bits by GDCM"
            lines.append(f"| {uid.name} | `{syntax}` | {said} |")
    return "\n".join(lines)


def _number(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]


def associations() -> str:
    """What holds for associations, with the defaults of settings."""
    receive = ReceiveSettings()
    rows = [
        ("AE title", f"`{receive.ae_title}`", "receive.ae_title"),
        ("port", str(receive.port), "receive.port"),
        ("address", f"`{receive.host}`", "receive.host"),
        (
            "calling AE titles",
            "none: nobody may send until some are named",
            "receive.allowed_ae_titles",
        ),
        ("associations at once", str(receive.max_associations), "receive.max_associations"),
        (
            "largest PDU that is announced",
            f"{storescp._PDU_BYTES} bytes; one above {storescp._LARGEST_PDU_BYTES} ends it",
            "",
        ),
        ("largest command set", f"{storescp._COMMAND_BYTES} bytes", ""),
        (
            "time for the association request",
            f"{storescp._ASSOCIATE_SECONDS:.0f} s from the connection (ARTIM)",
            "",
        ),
        ("silence, or time of a PDU", f"{storescp._SILENT_SECONDS:.0f} s", ""),
        ("asynchronous operations", "one; not negotiated", ""),
        ("implementation class UID and version name", "those of pynetdicom", ""),
        ("implementation class UID (files)", f"`{arrival._IMPLEMENTATION}`", ""),
        (
            "received and not yet indexed",
            f"{receive.max_waiting_bytes} bytes",
            "receive.max_waiting_bytes",
        ),
        ("free on the disk", f"{receive.min_free_bytes} bytes", "receive.min_free_bytes"),
    ]
    limits = ImageLimits()
    rows += [
        (f"limit of a file: {name.replace('_', ' ')}", str(getattr(limits, name)), f"limits.{name}")
        for name in type(limits).model_fields
    ]
    lines = ["| what | value (default) | setting |", "|---|---|---|"]
    lines += [
        f"| {what} | {value} | {f'`{setting}`' if setting else 'fixed'} |"
        for what, value, setting in rows
    ]
    return "\n".join(lines)


def statuses() -> str:
    """C-STORE statuses."""
    lines = ["| status | when | comment that is sent |", "|---|---|---|"]
    lines += [
        f"| {answer.status:04X} | {answer.name.lower().replace('_', ' ')} | {answer.comment} |"
        for answer in Answer
    ]
    return "\n".join(lines)


def display() -> str:
    """Elements that decide what is shown."""
    shown = [keyword for keyword in dicom._KEYWORDS if keyword not in HEADER_KEYWORDS]
    return ", ".join(dict.fromkeys([*shown, *PIXEL_KEYWORDS.values()])) + "."


def stored() -> str:
    """Fields of the index, and the elements that are read for them."""
    return (
        f"Kept: `{'`, `'.join(RECORD_FIELDS)}`.\n\n"
        f"Read to fill them, or to recognise what identifies the patient in other elements: "
        f"{', '.join(HEADER_KEYWORDS)}."
    )


def refusals() -> str:
    """Reasons of refusals, in the order of their codes."""
    rows = (f"| `{reason.value}` | {REFUSALS[reason].means} |" for reason in RefusalReason)
    return "\n".join(["| reason | what it is |", "|---|---|", *rows])


TABLES: dict[str, Callable[[], str]] = {
    "sop classes": sop_classes,
    "transfer syntaxes": transfer_syntaxes,
    "associations": associations,
    "statuses": statuses,
    "display": display,
    "stored": stored,
    "refusals": refusals,
}


def filled(text: str, names: list[str] | None = None) -> str:
    """The page with its tables as the code has them.

    Args:
        names: the tables to write; None = all of them.

    Raises:
        ValueError: the page lacks the marks of a table.
    """
    for name in names or list(TABLES):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"the page has no lines {begin} and {end} to put the table between")
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n\n{TABLES[name]()}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the tables of the conformance statement.")
    parser.add_argument("--page", type=Path, default=_PAGE)
    page = parser.parse_args().page
    page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
