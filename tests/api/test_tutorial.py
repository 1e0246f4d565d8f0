"""The commands of docs/tutorial.md, one after the other, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from indexer.sample import write_sample

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    install, drawn, *rest = BLOCKS
    assert "pip install ." in install
    assert drawn.startswith("precedent sample archive\n")
    # What it writes, less of it: the first patients are the same.
    write_sample(tmp_path / "archive", patients=9)
    assert rest.pop() == "precedent serve\n"
    command = tmp_path / "bin" / "precedent"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m api "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-euc", "".join(rest)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "150"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = ran.stdout
    assert "Every instance, accounted for" in told
    assert re.search(r"^no-pixels  \S+", told, re.MULTILINE)
    assert not re.search(r"^damaged  \S+", told, re.MULTILINE)
    # An image of the archive finds itself; without its own study, others of its kind.
    assert re.search(r"│ 1 │ +1\.0000 │ +0 │ (CR|DX) +│ CHEST", told)
    assert "rung" in told.rpartition("Every instance")[2]
