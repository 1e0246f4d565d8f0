"""The OpenAPI document as others read it: a linter, and a maker of TypeScript clients."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_site import ClientSite, client_site
from services.node import installed

FOLDER = Path(__file__).parents[1] / "services" / "openapi"
PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
OURS = "http://127.0.0.1:8000"
TSC = {
    "compilerOptions": {
        "strict": True,
        "target": "es2022",
        "module": "nodenext",
        "skipLibCheck": True,
        "types": ["node"],
    },
    "files": ["search.ts"],
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(indexed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientSite]:
    with client_site(indexed, tmp_path_factory.mktemp("typescript")) as found:
        yield found


def run(folder: Path, *words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "REDOCLY_TELEMETRY": "off", "CI": "true", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_linter_finds_nothing_in_the_document(client, tmp_path: Path) -> None:
    node = installed(FOLDER)
    (tmp_path / "openapi.json").write_text(client.get("/openapi.json").text)
    redocly = FOLDER / "node_modules" / "@redocly" / "cli" / "bin" / "cli.js"
    said = run(
        tmp_path, node, redocly, "lint", "openapi.json", "--format", "json", "--max-problems=9"
    )
    found = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert found["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}


def test_a_client_made_of_the_document_uploads(site, indexed, tmp_path: Path) -> None:
    node = installed(FOLDER)
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    shutil.copy(FOLDER / "package.json", tmp_path)
    (tmp_path / "image.dcm").write_bytes(indexed.files["ct"][0].read_bytes())
    (making,) = re.findall(r"^npx (openapi-typescript .*)$", PAGE, re.MULTILINE)
    (program,) = re.findall(r"^```typescript\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    name, *words = shlex.split(making.replace(OURS, site.address))
    run(tmp_path, node, f"node_modules/{name}/bin/cli.js", *words)
    (tmp_path / "search.ts").write_text(program.replace(OURS, site.address))
    (tmp_path / "tsconfig.json").write_text(json.dumps(TSC))
    run(tmp_path, node, "node_modules/typescript/bin/tsc")
    first, *_, related = run(tmp_path, node, "search.js", KEY=site.key).splitlines()
    assert first.split() == ["1.000", "CT", "1.2.4.0"]
    assert "1.2.4." in related
    # What is not in the document does not pass.
    wrong = (tmp_path / "search.ts").read_text().replace("k: 3,", "k: 'three',", 1)
    (tmp_path / "search.ts").write_text(wrong)
    with pytest.raises(AssertionError, match="not assignable to type"):
        run(tmp_path, node, "node_modules/typescript/bin/tsc")
