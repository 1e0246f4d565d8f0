"""What can be imported from Python: the names, what importing costs, and that the page runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest

import engine
import indexer

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "docs" / "python.ipynb"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("package", [engine, indexer])
def test_every_name_is_there_and_told(package) -> None:
    assert len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        found = getattr(package, name)
        assert getattr(found, "__doc__", None) or name == "__version__"
        assert name in dir(package)
    table = PAGE.read_text().partition("## What there is")[2]
    listed = {name for row in re.findall(r"^\| (`.*?) \| `" + package.__name__, table, re.MULTILINE)
              for name in re.findall(r"`(\w+)`", row)}  # fmt: skip
    assert listed == {*package.__all__} - {"__version__"}
    assert (Path(package.__file__).parent / "py.typed").is_file()


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Idnex'"):
        engine.Idnex  # noqa: B018
    with pytest.raises(ImportError):
        exec("from indexer import Archiv")


def test_importing_loads_nothing_large() -> None:
    script = "import sys, engine, indexer; print(*{name.partition('.')[0] for name in sys.modules})"
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {*ran.stdout.split()}
    assert {"engine", "indexer"} <= loaded
    assert not loaded & {"torch", "numpy", "pydantic", "sqlalchemy", "PIL", "qdrant_edge"}


def _ran(program: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", f"import sys; sys.path.append({str(ROOT)!r})\n"]
    command[-1] += program
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _drawn(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    columns = np.mgrid[:96, :96][1]
    return (127 + 120 * np.sin(columns / (2 + seed) + rng.normal(0, 0.1, (96, 96)))).astype(
        np.uint8
    )


@pytest.mark.slow
def test_a_folder_is_indexed_and_searched(tmp_path: Path) -> None:
    from PIL import Image

    archive = tmp_path / "archive"
    archive.mkdir()
    for seed in range(6):
        Image.fromarray(_drawn(seed)).save(archive / f"{seed}.png")
    (archive / "notes.txt").write_text("words")
    (tmp_path / "query.png").write_bytes((archive / "4.png").read_bytes())

    report, *hits, verdict = _ran(PROGRAMS[0], tmp_path).splitlines()
    assert "indexed=6" in report
    assert "'not-an-image': 1" in report
    assert hits[0].split()[-1] == str(archive / "4.png")
    assert hits[0].split()[:2] == ["1.000", "0"]
    assert len(hits) == 5
    assert verdict.startswith("OodVerdict(")


@pytest.mark.slow
def test_arrays_are_indexed_and_searched(tmp_path: Path) -> None:
    sizes, of_rings, of_stripes, verdict = _ran(PROGRAMS[1], tmp_path).splitlines()
    assert sizes.startswith("6 (3, ")
    assert of_rings.startswith("[('rings',)")
    assert of_stripes == "[('stripes',), ('stripes',), ('stripes',)]"
    assert verdict.startswith("OodVerdict(")


def test_the_notebook_holds_no_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        book, timeout=None, kernel_name="python3", resources=resources
    ).execute()
    told = "".join(
        output.get("text", "") for cell in book.cells for output in cell.get("outputs", [])
    )
    assert "12 images" in told
    assert "rings" in told
