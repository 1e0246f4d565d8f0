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


def told() -> dict[tuple[str, str], str]:
    """The scope that the page names, by method and address. In a cell a method holds for what
    follows it, and a word stands for the last part of the address before it."""
    found = {}
    for cell, scope in re.findall(r"^\| (`[A-Z]+ /[^|]*) \| ([^|]*) \|", PAGE, re.MULTILINE):
        method, path = "", ""
        for named in re.findall(r"`([^`]+)`", cell):
            *given, address = named.split()
            method = given[0] if given else method
            path = address if address[0] == "/" else f"{path.rpartition('/')[0]}/{address}"
            found[method, path] = scope.strip("`")
    return found


def test_the_page_has_every_operation_of_the_document(indexed) -> None:
    document = create_service(indexed.settings).openapi()
    operations = {
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item.keys() & {"get", "post", "put", "patch", "delete"}
    }
    assert len(operations) > 50
    assert operations - told().keys() == set()


def test_the_page_names_the_scope_of_every_operation() -> None:
    scopes = {one: "none" if scope is None else str(scope) for one, scope in POLICY.items()}
    wrong = {one: said for one, said in told().items() if scopes.get(one) != said}
    # What asks for a key of any kind is told so.
    assert wrong == {("GET", "/v1/whoami"): "any key"}
