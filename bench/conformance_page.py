"""Writes what ``bench.conformance`` found as tables, and puts them into a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.verdicts import READERS, Judged, kind_rows

__all__ = ["page_tables", "replace_tables"]

_FREE = "by choice: the standard leaves it open"
_NAMED = 4
_BEGIN, _END = "<!-- tables: begin -->", "<!-- tables: end -->"


def page_tables(judged: Sequence[Judged]) -> str:
    """Markdown: all files of each source, then by kind, then every file where ours is not right."""
    parts = [_summary(judged)]
    for source in _sources(judged):
        parts.append(f"### {source[0].upper()}{source[1:]}, by kind\n")
        parts.append(_table(kind_rows([one for one in judged if one.source == source])))
    parts.append(_ours_not_right(judged))
    return "\n".join(parts).rstrip() + "\n"


def replace_tables(page: Path, tables: str) -> None:
    """Replaces what stands between the marks of ``page``.

    Raises:
        ValueError: the page lacks the marks.
    """
    text = page.read_text()
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"{page} has no lines {_BEGIN} and {_END} to put the tables between")
    before, rest = text.split(_BEGIN, 1)
    after = rest.split(_END, 1)[1]
    page.write_text(f"{before}{_BEGIN}\n\n{tables}\n{_END}{after}")


def _sources(judged: Sequence[Judged]) -> list[str]:
    return list(dict.fromkeys(one.source for one in judged))


def _summary(judged: Sequence[Judged]) -> str:
    lines = [
        "| files | | reader | shown | right | by choice | departs | refused | open | median r | "
        "worst r |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for source in _sources(judged):
        some = [one for one in judged if one.source == source]
        for reader in READERS:
            outcomes = [one.outcomes[reader] for one in some]
            counts = {
                verdict: sum(outcome.verdict == verdict for outcome in outcomes)
                for verdict in ("right", "choice", "departs", "refused", "open")
            }
            rs = [outcome.r for outcome in outcomes if outcome.r is not None]
            cells = [
                source,
                str(len(some)),
                reader,
                str(len(some) - counts["refused"]),
                *(str(count) for count in counts.values()),
                _r(float(np.median(rs)) if rs else None),
                _r(min(rs) if rs else None),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| kind | files | ours | dcmtk | gdcm | who departs, and from which section |",
        "|---|---:|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["kind"], str(row["files"]), *(_reader(row[reader]) for reader in READERS)]
        lines.append("| " + " | ".join([*cells, _why(row)]) + " |")
    return "\n".join(lines) + "\n"


def _reader(found: dict[str, Any]) -> str:
    """Right of shown, and Pearson's r: median, worst."""
    if not found["shown"]:
        return "refused"
    text = f"{found['right']}/{found['shown']}: {_r(found['median r'])}, {_r(found['worst r'])}"
    return text + (f"; {found['refused']} refused" if found["refused"] else "")


def _why(row: dict[str, Any]) -> str:
    said = [
        f"{reader}: " + "; ".join(f"{why} × {count}" for why, count in row[reader]["why"].items())
        for reader in READERS
        if row[reader]["why"]
    ]
    if said:
        return "<br>".join(said)
    return "nobody"


def _r(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _ours_not_right(judged: Sequence[Judged]) -> str:
    """Each reason with the number of files, and some of them by name."""
    found: dict[str, list[str]] = {}
    for one in judged:
        outcome = one.outcomes["ours"]
        if outcome.verdict not in ("departs", "choice"):
            continue
        whys = [f"{step.does} ({step.section or _FREE})" for step in outcome.departures]
        for why in whys or [outcome.said or "unexplained"]:
            found.setdefault(why, []).append(f"`{one.name}` (r {_r(outcome.r)})")
    lines = ["### Where ours is not what the standard says", ""]
    for why, names in sorted(found.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        lines.append(f"- {why}: {', '.join(names[:_NAMED])}{more}")
    return "\n".join(lines if found else [*lines, "Nowhere."]) + "\n"
