"""The lines and settings of the page on integration do what it says."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

from services.running import served

from api.service import create_service
from engine.integration_settings import QidoSettings
from engine.settings import Settings, load_settings

PAGE = (Path(__file__).parents[2] / "docs" / "integration.md").read_text()


def test_the_lines_of_the_page_are_answered(archive) -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("curl ")]
    assert len(lines) == 6
    with served(create_service(archive=archive)) as address:
        for line in lines:
            words = shlex.split(line.replace("http://127.0.0.1:8000", address))
            words[1:1] = ["--silent", "--show-error", "--fail-with-body", "--max-time", "60"]
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            assert done.stdout.startswith("[{" if "/dicomweb" in line else "{")
            assert '"entry":[{' in done.stdout or "fhir+json" not in line
            assert '"cards":[{' in done.stdout or "--json" not in line


def test_the_settings_of_the_page_are_taken() -> None:
    found = tomllib.loads("\n".join(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)))
    settings = load_settings(**found)
    assert [*settings.viewers] == ["ohif", "ours"]
    asked = settings.smart["ehr"]
    assert f"`{asked.request_scope}`" in PAGE
    assert asked.standalone_scope is not None
    assert settings.qido == QidoSettings(wado_root=settings.qido.wado_root, sources=("pacs",))
    # The page shows the defaults of these.
    assert (settings.fhir, settings.cds_hooks) == (Settings().fhir, Settings().cds_hooks)
