"""What the command line says of itself: help, groups of commands, completion."""

import os
import subprocess
import sys

import pytest
from commands import run
from typer.testing import CliRunner

from api.cli.main import COMMANDS, GROUPS, app

_PRECEDENT = """
import sys
from api.cli.main import main
sys.argv = ["precedent", *sys.argv[1:]]
try:
    main()
finally:
    print("loaded:", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


def completed(*words: str) -> tuple[list[str], set[str]]:
    """What bash is told may stand in place of the last word, and which packages that has loaded."""
    asked = {
        "_PRECEDENT_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["precedent", *words]),
        "COMP_CWORD": str(len(words)),
    }
    ran = subprocess.run(
        [sys.executable, "-c", _PRECEDENT],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.split(), {*ran.stderr.rpartition("loaded:")[2].split()}


@pytest.mark.parametrize("command", [(), ("search",), ("jobs",), ("jobs", "report")])
def test_h_is_help(command: tuple[str, ...]) -> None:
    assert run(*command, "-h") == run(*command, "--help")


def test_commands_stand_in_groups() -> None:
    assert sorted(COMMANDS) == sorted(name for group in GROUPS.values() for name in group)
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).output
    for title, group in GROUPS.items():
        lines = said.partition(f"\n{title}:\n")[2].split("\n\n")[0].splitlines()
        assert [line.split()[0] for line in lines] == list(group)
        assert [line.split(maxsplit=1)[1] for line in lines] == [text for _, text in group.values()]


@pytest.mark.slow
def test_commands_are_completed_without_loading_them() -> None:
    names, loaded = completed("s")
    assert names == [name for name in COMMANDS if name.startswith("s")]
    assert "typer" in loaded
    # pydantic is what typer reads options with.
    assert not {"numpy", "sqlalchemy", "torch", "rich"} & loaded


@pytest.mark.slow
def test_options_and_inner_commands_are_completed() -> None:
    assert completed("snapshot", "--f")[0] == ["--force"]
    assert completed("jobs", "re")[0] == ["resume", "retry", "report"]
