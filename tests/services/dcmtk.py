"""DCMTK's own programs, for tests that send to us as a PACS does."""

import os
import shutil
import sys
from pathlib import Path

import pytest

__all__ = ["dcmtk"]


def dcmtk(program: str) -> str:
    """The path of one of DCMTK's programs, such as ``storescu``.

    The programs of this Python's environment are passed over: pynetdicom has some of the same
    names, which take other options.
    """
    own = Path(sys.executable).parent
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    path = os.pathsep.join(folder for folder in folders if Path(folder) != own)
    found = shutil.which(program, path=path)
    if found is None:
        pytest.fail(f"{program} is missing; install the Debian package dcmtk")
    return found
