"""The wheel of the Python client, in an environment without the rest of the project."""

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from client_site import client_site

import engine
from bench.client_package import lay_out

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
WHEEL = "precedent_imaging_client-{version}-py3-none-any.whl"
WITHOUT = """
import importlib.util, sys
import precedent_client
print([name for name in ("torch", "engine", "api") if importlib.util.find_spec(name)])
print(precedent_client.asking._user_agent())
"""


def run(folder: Path, *command: str | Path, **environment: str) -> str:
    # Without what makes the project's own packages known.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_laid_out_is_the_client_alone(tmp_path: Path) -> None:
    folder = tmp_path / "client"
    lay_out(folder)
    lay_out(folder)  # over the one before
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["version"]) == ("precedent-imaging-client", engine.__version__)
    needed = {re.split(r"[<>=]", one)[0] for one in project["dependencies"]}
    assert needed == {"httpx", "pydantic"}
    assert f"dist/{WHEEL.format(version=engine.__version__)}" in PAGE
    modules = {path.name for path in (folder / "precedent_client").iterdir()}
    assert modules == {path.name for path in (ROOT / "api" / "client").glob("*.py")} | {"py.typed"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FileExistsError):
        lay_out(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_programs_of_the_page_run_without_the_project(indexed, tmp_path: Path) -> None:
    lay_out(tmp_path / "client")
    wheels = tmp_path / "dist"
    run(tmp_path, sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", wheels, "./client")
    wheel = wheels / WHEEL.format(version=engine.__version__)
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty" / "bin" / "python"
    # The oldest that it says to work with; all other tests are run with the newest.
    project = tomllib.loads((tmp_path / "client" / "pyproject.toml").read_text())["project"]
    oldest = [re.sub(r">=([\d.]+),.*", r"==\1.0", one) for one in project["dependencies"]]
    assert oldest == ["httpx==0.27.0", "pydantic==2.11.0"]
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(tmp_path, *pip, "install", "--quiet", wheel, *oldest)
    said = run(tmp_path, python, "-c", WITHOUT).splitlines()
    assert said == ["[]", f"precedent-imaging-client/{engine.__version__}"]
    (tmp_path / "image.dcm").write_bytes(indexed.files["ct"][0].read_bytes())
    assert len(PROGRAMS) == 2
    with client_site(indexed, tmp_path) as site:
        told = []
        for number, text in enumerate(PROGRAMS):
            program = tmp_path / f"program{number}.py"
            program.write_text(text.replace("http://127.0.0.1:8000", site.address))
            told.append(run(tmp_path, python, program, KEY=site.key))
    blocking, together = told
    assert "CT 1.2.4." in blocking
    assert "end 1 of 1" in blocking
    assert "1 not-an-image" in blocking
    assert "finished" in together
    # The types of the wheel are those that programs are checked with.
    checked = [tmp_path / f"program{number}.py" for number in range(len(PROGRAMS))]
    run(tmp_path, sys.executable, "-m", "mypy", "--strict", "--python-executable", python, *checked)
