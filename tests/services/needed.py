"""Tests that need more of the machine than it has: skipped, counted and named at the end.

With ``CI=true`` they fail. ``tests/conftest.py`` names this module as a plugin.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from services.packages import PACKAGES, find_dcmtk, find_program, in_ci, install_line, missing

__all__ = ["dcmtk", "do_without", "package", "program"]

_REASON = re.compile(r"needs (.+?), which this machine does not have")


def do_without(what: str, way_out: str) -> NoReturn:
    """Skips the test that needs ``what``; fails it with CI=true."""
    reason = f"needs {what}, which this machine does not have; {way_out}"
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def package(name: str) -> Path:
    """Where that of a Debian package lies which tests use; without it the test is skipped."""
    return _path(name, PACKAGES[name].find())


def program(name: str, of: str) -> Path:
    """A program of a Debian package; without it the test is skipped."""
    return _path(of, find_program(name))


def dcmtk(name: str) -> str:
    """The path of one of DCMTK's programs; without it the test is skipped."""
    return str(_path("dcmtk", find_dcmtk(name)))


def _path(name: str, found: Path | None) -> Path:
    if found is None:
        do_without(name, install_line([name]))
    return found


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Iterator[None]:
    """Counts and names the tests that were skipped here, by what they need, after all else."""
    yield
    without: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        if match := _REASON.search(str(report.longrepr)):
            without.setdefault(match[1], []).append(report.nodeid)
    if not without:
        return
    terminalreporter.section("skipped, because this machine lacks what they need")
    for what, tests in sorted(without.items()):
        purpose = f" ({PACKAGES[what].purpose})" if what in PACKAGES else ""
        terminalreporter.line(f"{len(tests)} without {what}{purpose}:")
        for file, count in sorted(Counter(test.partition("::")[0] for test in tests).items()):
            terminalreporter.line(f"    {count:3} in {file}")
    terminalreporter.line(f"{sum(map(len, without.values()))} skipped in all")
    if packages := missing():
        terminalreporter.line(f"What installs the missing packages: {install_line(packages)}")
