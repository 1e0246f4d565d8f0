"""What the tests need of the machine is installed where that is allowed, and said where not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from services import packages

ROOT = Path(__file__).parents[1]
FOUND_BY_PATH = {"redis-server", "dcmtk", "openssl"}
"""Packages that are missing where nothing is in PATH."""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Nothing is in PATH but the shell scripts that the test writes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PRECEDENT_TEST_SERVICES", raising=False)

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


@pytest.fixture
def debian(programs, tmp_path, monkeypatch) -> Path:
    """A Debian whose apt-get installs a server with a unit and a script; what it was asked."""
    asked, policy, enabled = tmp_path / "asked", tmp_path / "policy-rc.d", tmp_path / "enabled"
    monkeypatch.setattr(packages, "_POLICY", policy)
    monkeypatch.setattr(packages, "_ENABLED", enabled)
    wanted = enabled / "multi-user.target.wants"
    wanted.mkdir(parents=True)
    for unit in ("a", "old"):
        (wanted / f"{unit}.service").symlink_to(f"/lib/systemd/system/{unit}.service")
    programs("apt-get", f'echo "apt-get $*, policy $({policy}; echo $?)" >> {asked}')
    programs(
        "dpkg-query",
        f"case $1 in\n-L) echo /lib/systemd/system/a.service; echo /etc/init.d/a;;\n"
        f"*) echo installed old; [ ! -e {asked} ] || echo installed new;;\nesac",
    )
    programs("update-rc.d", f'echo "update-rc.d $*" >> {asked}')
    return asked


def test_it_is_installed_without_being_started_or_enabled(debian):
    assert packages.main(["--as-root", "redis-server", "dcmtk"]) == 0
    update, install, *disabled = debian.read_text().splitlines()
    assert update.startswith("apt-get update")
    assert install.startswith("apt-get install --yes --no-install-recommends")
    assert "redis-server dcmtk, policy 101" in install
    assert disabled == ["update-rc.d a disable"]
    assert [link.name for link in packages._ENABLED.glob("*/*")] == ["old.service"]
    assert not packages._POLICY.exists()


def test_a_policy_of_the_administrator_stays(debian):
    packages._POLICY.write_text("#!/bin/sh\nexit 104\n")
    packages._POLICY.chmod(0o755)
    assert packages.main(["--as-root", "redis-server"]) == 0
    assert "policy 104" in debian.read_text()
    assert packages._POLICY.read_text().endswith("exit 104\n")


def test_a_failed_installation_leaves_no_policy(debian, programs):
    programs("apt-get", "exit 100")
    assert packages.main(["--as-root", "redis-server"]) == 100
    assert not packages._POLICY.exists()


@pytest.mark.parametrize("user", ["root", "another"])
def test_it_is_listed_before_it_is_installed(debian, programs, monkeypatch, capfd, user):
    ran = debian.with_name("ran")
    programs("sudo", f'echo "$*" >> {ran}')
    programs("python", f'echo "$*" >> {ran}; echo installing')
    monkeypatch.setattr(sys, "executable", str(debian.with_name("bin") / "python"))
    monkeypatch.setattr(os, "geteuid", lambda: 0 if user == "root" else 1000)
    assert packages.main([]) == 0
    said = capfd.readouterr().out
    command = ran.read_text().splitlines()[-1]
    assert command.startswith("-n ") is (user == "another")
    for name in FOUND_BY_PATH:
        assert f"  {name} " in said
        assert name in command.partition("--as-root")[2].split()
    if user == "root":
        assert said.index("  openssl ") < said.index("installing")


@pytest.mark.parametrize("why", ["not Debian", "sudo asks", "no network"])
@pytest.mark.parametrize("ci", [False, True])
def test_where_it_cannot_be_installed_it_says_so(programs, monkeypatch, capfd, why, ci):
    monkeypatch.setattr(os, "geteuid", lambda: 0 if why == "no network" else 1000)
    if why != "not Debian":
        programs("apt-get", "exit 100")
        programs("dpkg-query", "exit 0")
        programs("sudo", "exit 1")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    if ci:
        monkeypatch.setenv("CI", "true")
    assert packages.main([]) == int(ci)
    said = capfd.readouterr().out
    last = said.splitlines()[-1].split()
    assert last[:3] == ["sudo", "apt-get", "install"]
    assert set(last) > FOUND_BY_PATH
    assert ("the tests that need them are skipped" in said) is not ci


def test_the_machine_is_left_alone_when_asked_to(debian, monkeypatch, capfd):
    monkeypatch.setenv("PRECEDENT_TEST_SERVICES", "skip")
    assert packages.missing()
    assert packages.main([]) == 0
    assert not debian.exists()
    assert capfd.readouterr().out == ""


def test_the_readme_names_every_package():
    readme = (ROOT / "README.md").read_text()
    for name in packages.PACKAGES:
        assert f"`{name}`" in readme, name


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("ci", ["false", "true"])
def test_tests_without_their_services_are_counted_and_named(tmp_path, ci, workers):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "tests/test_services.py", "-n", workers),
            *("-k", "password_is_asked or left_behind", "-p", "no:cacheprovider"),
        ],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path), "CI": ci},
        capture_output=True,
        text=True,
    )
    said = done.stdout
    if ci == "true":
        assert done.returncode == 1, said
        assert "2 failed" in said
        assert "needs redis-server, which this machine does not have" in said
        return
    assert done.returncode == 0, said + done.stderr
    assert "2 without redis-server (Redis, a message broker)" in said
    assert "  2 in tests/test_services.py" in said
    (line,) = (line for line in said.splitlines() if line.startswith("What installs"))
    assert set(line.split()) > FOUND_BY_PATH | {"apt-get", "install"}
    assert said.rstrip().splitlines()[-1].strip("= ").startswith("2 skipped")
