"""The name under which Precedent is installed: nobody is sent to another project on PyPI."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from engine.extras import DISTRIBUTION, install_command

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# "pip install", options and other packages on the way, and then our name; or our name with extras.
OURS = r"precedent(?:-[a-z]+)?(?![\w./-])"
TOLD = re.compile(rf"(?:\bpip install\b[^\n`]*?[ '\"]({OURS}))|(?:(?<![\w./-])({OURS})\[[a-z,]+\])")


def told(text: str) -> set[str]:
    """The names of ours that a text says are to be installed."""
    return {first or second for first, second in TOLD.findall(text)}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("run `pip install precedent`", {"precedent"}),
        ("pip install 'precedent[report]'", {"precedent"}),
        ("python -m pip install --upgrade precedent==1.0", {"precedent"}),
        ("Redis needs `precedent[server]`", {"precedent"}),
        ("pip install 'precedent-imaging[server]'", {"precedent-imaging"}),
        ("pip install numpy precedent-imaging", {"precedent-imaging"}),
        ("pip install .  # and then .venv/bin/precedent", set()),
        ("pip install .\nprecedent index ARCHIVE", set()),
        ("`pip install .`, and `precedent index` after it", set()),
        ("precedent index ARCHIVE [PATH...]", set()),
    ],
)
def test_what_a_text_tells_to_install_is_found(text: str, names: set[str]) -> None:
    assert told(text) == names


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_no_text_tells_anybody_to_install_another_project() -> None:
    strangers, named = {}, 0
    for path in tracked():
        if path == Path(__file__) or not path.is_file():
            continue
        try:
            names = told(path.read_text("utf-8"))
        except UnicodeDecodeError:  # weights and pictures
            continue
        named += DISTRIBUTION in names
        if others := names - {DISTRIBUTION}:
            strangers[path.relative_to(ROOT).as_posix()] = others
    assert strangers == {}
    assert named >= 2  # README and docs/deployment.md


def test_messages_and_metadata_agree_on_the_name() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert told(install_command("server")) == {DISTRIBUTION}


def test_messages_ask_for_extras_that_there_are() -> None:
    asked = set()
    for path in tracked():
        if path.suffix == ".py" and path.parts[len(ROOT.parts)] in ("engine", "indexer", "api"):
            asked |= set(re.findall(r"install_command\(['\"](\w+)['\"]\)", path.read_text()))
    assert asked
    assert asked <= set(PROJECT["optional-dependencies"])
