"""Writes the tables of docs/settings.md from the classes of the settings.

    python -m bench.settings_page [--page docs/settings.md]

They stand between ``<!-- settings -->`` and ``<!-- /settings -->``. A test compares the page with
the code.
"""

import argparse
from pathlib import Path

from engine.settings_described import Described, Group, groups

__all__ = ["filled", "tables"]

_PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
_BEGIN, _END = "<!-- settings -->", "<!-- /settings -->"


def tables() -> str:
    """A heading and a table for each group of settings."""
    return "\n\n".join(map(_table, groups()))


def _table(group: Group) -> str:
    heading = f"[{group.name}]" if group.name else "Under no heading"
    if group.kind is not None:
        heading += f', kind = "{group.kind}"'
    lines = [f"### `{heading}`" if group.name else f"### {heading}", ""]
    lines += [group.about, ""] if group.about else []
    lines += ["| setting | values | unless set | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{one.name.rpartition('.')[2]}` | {_cell(one.values)} | {_default(one)} "
        f"| {_cell(one.meaning)} |"
        for one in group.settings
    ]
    return "\n".join(lines)


def _default(setting: Described) -> str:
    if setting.is_needed:
        return "has to be given"
    if setting.by_machine:
        return "by the machine" if setting.values != "table" else ""
    return "" if setting.default is None else f"`{setting.default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def filled(text: str) -> str:
    """The page with its tables as the code has them.

    Raises:
        ValueError: the page lacks the marks.
    """
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"the page has no lines {_BEGIN} and {_END} to put the tables between")
    before, rest = text.split(_BEGIN, 1)
    return f"{before}{_BEGIN}\n\n{tables()}\n\n{_END}{rest.split(_END, 1)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the tables of docs/settings.md.")
    parser.add_argument("--page", type=Path, default=_PAGE)
    page = parser.parse_args().page
    page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
