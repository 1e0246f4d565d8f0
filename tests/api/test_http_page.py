"""The lines of the page on the HTTP API do what it says."""

import re
import shlex
import subprocess
from pathlib import Path

from services.running import served

from api.security.policy import POLICY
from api.service import create_service

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


def test_the_lines_of_the_page_are_answered(archive, indexed, tmp_path: Path) -> None:
    (tmp_path / "image.dcm").write_bytes(indexed.files["ct"][0].read_bytes())
    lines = [line for line in PAGE.splitlines() if line.startswith("curl ")]
    assert len(lines) > 5
    with served(create_service(archive=archive)) as address:
        for line in lines:
            words = shlex.split(line.replace("http://127.0.0.1:8000", address))
            words[1:1] = ["--silent", "--show-error", "--fail-with-body", "--max-time", "60"]
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            assert done.stdout.startswith("{")


def test_the_page_has_every_operation() -> None:
    told = re.findall(r"`(?:GET |POST )?(/[^` ]+)`", PAGE)
    mine = {path for _, path in POLICY if path.startswith("/v1") or path.endswith("z")}
    spelled = set(told) | {f"/v1/jobs/{{id}}/{one}" for one in ("resume", "cancel", "retry")}
    assert mine <= spelled
