"""What the tests need of the machine: Debian's packages, what for, and how they are installed.

    python tests/services/packages.py

installs what is missing where that is allowed: on Debian or Ubuntu, by root or with a ``sudo``
that does not ask. Nothing is started and nothing is enabled: tests start what they need, on ports
of their own. Where it is not allowed this says what is missing, and ends well; the tests that
need it are skipped. It fails only with ``CI=true``. ``PRECEDENT_TEST_SERVICES=skip`` leaves the
machine as it is. It runs before anything else is installed, so the standard library is enough.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PACKAGES", "Package", "find_dcmtk", "find_program", "in_ci", "install_line", "missing"]

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Not in everybody's PATH, and servers lie there."""
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The server's own script. The one in /usr/sbin changes the user and the folder."""
_ORTHANC_PLUGIN = "libOrthancDicomWeb.so"
_ORTHANC_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc")
_POLICY = Path("/usr/sbin/policy-rc.d")
_ENABLED = Path("/etc/systemd/system")
"""Links here, in folders such as multi-user.target.wants, are what systemd starts."""


def find_program(name: str) -> Path | None:
    """A program in PATH, or where Debian keeps what only root starts."""
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which(name, path=path)
    if found is None and name in ("Orthanc", "rabbitmq-server", "nginx"):
        found = shutil.which(name, path=os.pathsep.join(_SYSTEM_FOLDERS))
    return None if found is None else Path(found)


def find_dcmtk(program: str = "storescu") -> Path | None:
    """One of DCMTK's programs.

    The programs of this Python's environment are passed over: pynetdicom has some of the same
    names, which take other options.
    """
    own = Path(sys.executable).parent
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    path = os.pathsep.join(folder for folder in folders if Path(folder) != own)
    found = shutil.which(program, path=path)
    return None if found is None else Path(found)


def _find_rabbitmq() -> Path | None:
    # Outside Debian the script that is in the path is the server's own.
    return _RABBITMQ if _RABBITMQ.exists() else find_program("rabbitmq-server")


def _find_postgresql() -> Path | None:
    versions = Path("/usr/lib/postgresql").glob("[0-9]*/bin/postgres")
    found = sorted((int(path.parts[-3]), path) for path in versions)
    return found[-1][1] if found else None


def _find_orthanc_plugin() -> Path | None:
    found = (
        one for at in _ORTHANC_FOLDERS for one in sorted(Path(at).glob(f"**/{_ORTHANC_PLUGIN}*"))
    )
    return next(found, None)


@dataclass(frozen=True)
class Package:
    """A package of Debian. find: what the tests use of it, None where that is missing."""

    name: str
    purpose: str
    find: Callable[[], Path | None]


PACKAGES = {
    package.name: package
    for package in (
        Package("redis-server", "Redis, a message broker", lambda: find_program("redis-server")),
        Package("rabbitmq-server", "RabbitMQ, a message broker", _find_rabbitmq),
        Package("postgresql", "PostgreSQL, which keeps ledgers", _find_postgresql),
        Package("chromium", "Chromium, a browser", lambda: find_program("chromium")),
        Package("orthanc", "Orthanc, a PACS", lambda: find_program("Orthanc")),
        Package("orthanc-dicomweb", "the DICOMweb plugin of Orthanc", _find_orthanc_plugin),
        Package("dcmtk", "DCMTK, which pushes images by C-STORE", find_dcmtk),
        Package("dicom3tools", "dciodvfy, which checks DICOM", lambda: find_program("dciodvfy")),
        Package("nginx", "nginx, a proxy", lambda: find_program("nginx")),
        Package("caddy", "Caddy, another proxy", lambda: find_program("caddy")),
        Package(
            "prometheus",
            "Prometheus, which watches the service, and promtool, which checks rules",
            lambda: find_program("prometheus"),
        ),
        Package(
            "systemd",
            "systemd-analyze, which checks units; systemd itself is not started",
            lambda: find_program("systemd-analyze"),
        ),
        Package("chromium", "Chromium, a browser", lambda: find_program("chromium")),
        Package(
            "nodejs",
            "Node.js: an identity provider, clients of TypeScript",
            lambda: find_program("node"),
        ),
        Package("npm", "npm, which installs what Node.js runs", lambda: find_program("npm")),
        Package("openssl", "OpenSSL, which makes certificates", lambda: find_program("openssl")),
    )
}


def missing() -> list[str]:
    """The packages of which nothing is found on this machine."""
    return [name for name, package in PACKAGES.items() if package.find() is None]


def install_line(names: Iterable[str]) -> str:
    """What one types to install packages."""
    return f"sudo apt-get install --no-install-recommends {' '.join(names)}"


def in_ci() -> bool:
    """Whether a missing service is a failure."""
    return os.environ.get("CI") == "true"


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 unless packages are missing at the end and CI=true says that none may."""
    if arguments[:1] == ["--as-root"]:
        return _install(arguments[1:])
    wanted = missing()
    if os.environ.get("PRECEDENT_TEST_SERVICES") == "skip" or not wanted:
        return 0
    print("Tests need services that this machine does not have, as Debian packages:")
    for name in wanted:
        print(f"  {name:<18}{PACKAGES[name].purpose}")
    root = _as_root()
    if root is None:
        why = "installing them takes Debian or Ubuntu, and root or a sudo that does not ask"
    else:
        print("They are installed now, neither started nor enabled.", flush=True)
        subprocess.run([*root, sys.executable, __file__, "--as-root", *wanted], check=False)
        wanted = missing()
        why = "they could not be installed"
    if not wanted:
        return 0
    end = "" if in_ci() else "; the tests that need them are skipped"
    print(f"{why[0].upper()}{why[1:]}{end}.\n  {install_line(wanted)}", flush=True)
    return 1 if in_ci() else 0


def _as_root() -> list[str] | None:
    """What goes before a command to run it as root; None where packages cannot be installed."""
    if not all(map(shutil.which, ("apt-get", "dpkg-query"))):
        return None
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo is None or subprocess.run([sudo, "-n", "true"], capture_output=True).returncode:
        return None
    return [sudo, "-n"]


def _install(names: Sequence[str]) -> int:
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    os.umask(0o022)
    options = ("-qq", "-o", "DPkg::Lock::Timeout=120")
    before = _installed()
    with _nothing_starts():
        subprocess.run(["apt-get", "update", *options], check=False)
        install = ("apt-get", "install", "--yes", "--no-install-recommends")
        done = subprocess.run([*install, *options, *names], check=False)
        _disable(_installed() - before)
    return done.returncode


@contextmanager
def _nothing_starts() -> Iterator[None]:
    """Packages that are installed meanwhile start no service."""
    # Ended in order, so that the file does not stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if _POLICY.exists():  # the administrator's own
        yield
        return
    try:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def _installed() -> set[str]:
    shown = "${db:Status-Status} ${binary:Package}\n"
    lines = _output("dpkg-query", "--show", f"--showformat={shown}").splitlines()
    return {
        name for state, _, name in (line.partition(" ") for line in lines) if state == "installed"
    }


def _disable(packages: set[str]) -> None:
    """Takes what these packages brought from among what starts with the machine."""
    listed = [line for name in packages for line in _output("dpkg-query", "-L", name).splitlines()]
    files = {line.removeprefix("/usr") for line in listed}  # /lib may be a link to /usr/lib
    # deb-systemd-helper works for packages' own scripts alone, and systemctl may be missing.
    for link in _ENABLED.glob("**/*"):
        if link.is_symlink() and str(link.readlink()).removeprefix("/usr") in files:
            link.unlink()
    for script in sorted(Path(file).name for file in files if file.startswith("/etc/init.d/")):
        subprocess.run(["update-rc.d", script, "disable"], check=False)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
