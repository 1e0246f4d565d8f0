"""Writes the commands in docs/cli.md from the code of the command line.

    python -m bench.cli_page [--page docs/cli.md]

They stand between ``<!-- commands -->`` and ``<!-- /commands -->``. A test compares the page with
the code.
"""

import argparse
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from api.cli.main import GROUPS, app

__all__ = ["commands", "filled"]

_PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
_BEGIN, _END = "<!-- commands -->", "<!-- /commands -->"


def commands() -> str:
    """A heading for each group of commands and each command, with a table of what it takes."""
    root: Any = typer.main.get_command(app)
    lines: list[str] = []
    for title, group in GROUPS.items():
        lines += [f"## {title}", ""]
        for name in group:
            lines += _command(f"precedent {name}", root.get_command(None, name), "###")
    return "\n".join(lines).strip()


def _command(name: str, command: Any, heading: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    usage = " ".join([name, *_arguments(command), *(["COMMAND"] if inner else [])])
    yield from (f"{heading} `{usage}`", "")
    help_ = inspect.cleandoc(command.help or "")
    for paragraph in help_.split("\n\n"):
        yield from (_text(textwrap.dedent(paragraph)), "")
    rows = [row for one in command.params if (row := _row(one)) is not None]
    if rows:
        yield from ("| | unless given | what it is |", "|---|---|---|", *rows, "")
    for sub, found in (inner or {}).items():
        yield from _command(f"{name} {sub}", found, heading + "#")


def _arguments(command: Any) -> Iterator[str]:
    for one in command.params:
        if one.param_type_name == "argument":
            yield _metavar(one)


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    if argument.metavar and argument.metavar.startswith(("[", "{")):
        return str(name)
    many = "..." if argument.nargs != 1 else ""
    return f"{name}{many}" if argument.required else f"[{name}]{many}"


def _row(one: Any) -> str | None:
    if one.param_type_name == "argument":
        name = f"`{_metavar(one)}`"
    else:
        if getattr(one, "hidden", False):
            return None
        name = ", ".join(f"`{flag}`" for flag in [*one.opts, *one.secondary_opts])
    return f"| {name} | {_default(one)} | {_text(one.help or '')} |"


def _default(one: Any) -> str:
    value = one.default
    if one.required:
        return "has to be given"
    if value is None or value is False or callable(value) or value == []:
        return ""
    if value is True:
        return f"`{one.opts[0]}`"
    return f"`{value}`"


def _text(words: str) -> str:
    # What looks like a tag to Markdown, and what would end a cell.
    return " ".join(words.split()).replace("|", "\\|").replace("<", "&lt;")


def filled(text: str) -> str:
    """The page with its commands as the code has them.

    Raises:
        ValueError: the page lacks the marks.
    """
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"the page has no lines {_BEGIN} and {_END} to put the commands between")
    before, rest = text.split(_BEGIN, 1)
    after = rest.split(_END, 1)[1]
    return f"{before}{_BEGIN}\n\n{commands()}\n\n{_END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", type=Path, default=_PAGE)
    page: Path = parser.parse_args().page
    page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
