"""Programs of npm that tests run: installed beside their package.json, once, as locked there."""

import subprocess
import time
from pathlib import Path

from filelock import FileLock

from services.needed import do_without, program

__all__ = ["installed"]

_LEAST_NODE = (20, 19)


def installed(folder: Path) -> Path:
    """Node, once what the folder's package.json names is installed; without it the test is
    skipped."""
    node, npm = program("node", "nodejs"), program("npm", "npm")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = said.strip().removeprefix("v").split(".")[:2]
    if (int(major), int(minor)) < _LEAST_NODE:
        do_without("nodejs", f"version 20.19 or later, and this is {said.strip()}")
    lock = folder / "package-lock.json"
    done = folder / "node_modules" / ".installed"
    with FileLock(str(folder / ".lock"), timeout=600):
        if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
            subprocess.run(
                [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=folder,
                check=True,
                capture_output=True,
                timeout=300,
            )
            done.write_text(time.strftime("%F"))
    return node
