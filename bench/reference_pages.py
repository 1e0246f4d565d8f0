"""Writes the tables of docs/errors.md, docs/refusals.md and docs/metrics.md from the code.

    python -m bench.reference_pages [--folder docs]

Each table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``. A test compares the pages with
the code.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from api.cli.exit_codes import ANSWERS, EXIT_CODES
from api.http import figures, problem_meanings
from api.http.problems import Problem, problem_of
from api.refusals import GROUPS as REFUSALS
from engine.errors import ImageRefused, RefusalReason
from indexer.ledger.schema import CURABLE, TRANSIENT

__all__ = ["PAGES", "filled", "problems", "read_again", "refusals"]

_DOCS = Path(__file__).parents[1] / "docs"


def problems() -> str:
    """A heading and a table of problems for each group, and one of those of images."""
    found = problem_meanings.problems()
    head = ["code", "status", "title", "what it is", "what to do"]
    parts = []
    for title, group in problem_meanings.GROUPS.items():
        rows = [
            (_code(found[code]), found[code].status, found[code].title, one.means, one.do)
            for code, one in group.items()
        ]
        parts.append(f"### {title}\n\n{_table(head, rows)}")
    return "\n\n".join(parts)


def _code(problem: Problem) -> str:
    kind = problem.type.rpartition(":")[2]
    return f"`{problem.code}`" + ("" if kind == problem.code else f" (type `{kind}`)")


def image_problems() -> str:
    """The statuses of refused images, by reason."""
    statuses: dict[int, list[str]] = {}
    for reason in RefusalReason:
        told = problem_of(ImageRefused(reason, ""), "/")
        statuses.setdefault(told.status, []).append(f"`{told.code}`")
    return _table(["status", "codes"], [(one, ", ".join(all_)) for one, all_ in statuses.items()])


def exit_codes() -> str:
    """The exit codes of the commands."""
    rows = [(f"`{code}`", means, do) for code, (means, do) in EXIT_CODES.items()]
    return _table(["exit code", "what it is", "what to do"], rows)


def answers() -> str:
    """Commands whose exit code 1 is an answer."""
    rows = [(f"`precedent {name}`", means) for name, means in ANSWERS.items()]
    return _table(["command", "1 means as well"], rows)


def refusals() -> str:
    """A heading and a table of reasons for each group, the worst first."""
    head = ["reason", "what it is", "what to do", "read again by"]
    return "\n\n".join(
        f"### {title}\n\n"
        + _table(
            head,
            [(f"`{why}`", one.means, one.do, read_again(why)) for why, one in group.items()],
        )
        for title, group in REFUSALS.items()
    )


def read_again(reason: RefusalReason) -> str:
    """Which runs read an unchanged file again that was refused for this reason."""
    if reason in TRANSIENT:
        return "each run"
    return "the first run of another version" if reason in CURABLE else "`--retry-refused` alone"


def metrics() -> str:
    """A heading and a table for each group of figures."""
    head = ["figure", "type", "labels", "unit", "what it is"]
    return "\n\n".join(
        f"### {title}\n\n"
        + _table(
            head,
            [
                (
                    f"`{one.shown}`",
                    one.type,
                    ", ".join(f"`{label}`" for label in one.labels),
                    one.unit,
                    one.meaning,
                )
                for one in group
            ],
        )
        for title, group in figures.GROUPS.items()
    )


def labels() -> str:
    """The labels of figures, and what values they take."""
    return _table(["label", "its values"], [(f"`{n}`", v) for n, v in figures.LABELS.items()])


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = [*head]
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


PAGES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "errors.md": {
        "problems": problems,
        "image problems": image_problems,
        "exit codes": exit_codes,
        "answers": answers,
    },
    "refusals.md": {"refusals": refusals},
    "metrics.md": {"metrics": metrics, "labels": labels},
}
"""By page, its tables by name."""


def filled(page: str, text: str) -> str:
    """The page with its tables as the code has them. page: its file name.

    Raises:
        ValueError: the page lacks marks.
    """
    for name, table in PAGES[page].items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{page} has no lines {begin} and {end} to put a table between")
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n\n{table()}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=_DOCS)
    folder: Path = parser.parse_args().folder
    for name in PAGES:
        page = folder / name
        page.write_text(filled(name, page.read_text()))


if __name__ == "__main__":
    main()
