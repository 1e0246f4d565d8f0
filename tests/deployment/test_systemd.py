"""docker/systemd: units that systemd takes, whose processes have few rights."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from deployed import DOCKER, check_command, compose, is_setting
from services.needed import program

FOLDER = DOCKER / "systemd"
SERVICES = sorted(FOLDER.glob("*.service"))
DROP_IN = FOLDER / "precedent-.service.d" / "hardened.conf"
PROGRAM = "/opt/precedent/bin/precedent"


def read(path: Path) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, strict=False, comment_prefixes="#")
    found.optionxform = str  # type: ignore[method-assign,assignment]
    found.read(path)
    return found


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that is there."""
    shutil.copytree(FOLDER, tmp_path / "units")
    for path in (tmp_path / "units").glob("*.service"):
        path.write_text(path.read_text().replace(PROGRAM, "/bin/true"))
    return tmp_path / "units"


def analyze(units: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    binary = program("systemd-analyze", "systemd")
    # The units of the machine are looked at as well: what they need is there.
    where = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"}
    return subprocess.run(
        [binary, *arguments], env=where, capture_output=True, text=True, timeout=120
    )


def test_systemd_takes_them(units: Path) -> None:
    names = sorted(path.name for path in units.iterdir() if path.suffix in (".service", ".timer"))
    done = analyze(units, "verify", "--man=no", *(str(units / name) for name in names))
    assert (done.returncode, done.stderr) == (0, "")
    (units / "precedent-serve.service").write_text("[Service]\nExecStart=/bin/true\nUsr=nobody\n")
    done = analyze(units, "verify", "--man=no", str(units / "precedent-serve.service"))
    assert "Usr" in done.stderr


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_their_processes_have_few_rights(units: Path, path: Path) -> None:
    # 10 is a process that may do everything.
    asked = ("security", "--offline=true", "--threshold=20", "--no-pager", str(units / path.name))
    done = analyze(units, *asked)
    assert done.returncode == 0, done.stdout
    (units / DROP_IN.parent.name / DROP_IN.name).write_text("[Service]\nUser=precedent\n")
    assert analyze(units, *asked).returncode != 0
    assert DROP_IN.parent.name.removesuffix(".service.d") == "precedent-"
    assert path.name.startswith("precedent-"), "what all have in common is for these names"


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_they_run_commands_that_there_are(path: Path) -> None:
    words = read(path)["Service"]["ExecStart"].split()
    assert words[0] == PROGRAM
    check_command(words[1:])


def test_they_end_in_as_much_time_as_the_containers() -> None:
    seconds = {"30s": 30, "5m": 300, "45": 45, "5min": 300}
    services = compose()["services"]
    for unit, service in (("serve", "api"), ("worker", "worker"), ("receive", "receive")):
        own = read(FOLDER / f"precedent-{unit}.service")["Service"]["TimeoutStopSec"]
        assert seconds[own] >= seconds[services[service]["stop_grace_period"]], unit


def test_the_folder_is_the_one_that_may_be_written() -> None:
    own = read(DROP_IN)["Service"]
    given = dict(word.split("=", 1) for word in own["Environment"].split())
    assert given["PRECEDENT_DATA_DIR"] == f"/var/lib/{own['StateDirectory']}"
    assert all(is_setting(name) for name in given if name.startswith("PRECEDENT_"))
    user = re.search(r"^u (\w+) ", (FOLDER / "sysusers.conf").read_text(), re.MULTILINE)
    assert user is not None
    assert own["User"] == user[1]
