"""The folder that shows how well a model retrieves."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from engine.codes import pack_signs
from engine.errors import PrecedentError
from engine.evaluation.quality import EvaluationSet, QualityReport, evaluate
from engine.evaluation.report import ExampleHit, ExampleRow, require_matplotlib, write_report

ODD = "a|b <i>$x_2 *胸部*\nnew"
PICTURES = ["examples.png", "hamming.png", "map.png", "precision-recall.png"]
RED = (214, 39, 40)


def images(counts: dict[str, int], seed: int) -> EvaluationSet:
    rng = np.random.default_rng(seed)
    labels = [label for label, count in counts.items() for _ in range(count)]
    centres = {label: np.eye(8)[i] for i, label in enumerate(sorted(counts))}
    z = np.array([centres[label] for label in labels]) + rng.normal(0, 0.3, (len(labels), 8))
    z -= z.mean(axis=1, keepdims=True)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return EvaluationSet(
        z.astype(np.float32), pack_signs(z), labels, [f"{seed}-{i}" for i in range(len(z))]
    )


@pytest.fixture(scope="module")
def report() -> QualityReport:
    database = images({"ct": 20, ODD: 20}, 0)
    queries = images({"ct": 5, ODD: 4, "lacking": 3}, 1)
    return evaluate(database, queries, k=10, foreign=np.arange(12) % 4 == 0)


def row(*right: bool, label: str = "ct") -> ExampleRow:
    canvas = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    return ExampleRow(canvas, label, tuple(ExampleHit(canvas, label, one) for one in right))


def red_pixels(png: bytes) -> int:
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((np.abs(pixels - RED).sum(axis=2) < 12).sum())


def test_a_report_is_a_page_a_document_and_pictures(report, tmp_path):
    write_report(report, tmp_path / "a" / "b", about={"model": "abc"}, examples=[row(True, False)])
    folder = tmp_path / "a" / "b"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*PICTURES, "report.json", "report.md"]
    )
    page = (folder / "report.md").read_text()
    for name in PICTURES:
        assert f"]({name})" in page
        with Image.open(folder / name) as picture:
            picture.verify()
    document = json.loads((folder / "report.json").read_text())
    assert document == {"about": {"model": "abc"}, **report.to_dict()}


def test_the_page_says_the_figures(report, tmp_path):
    write_report(report, tmp_path, about={"model": "abc"})
    page = (tmp_path / "report.md").read_text()
    lines = page.splitlines()
    content = report.orders["content"]
    (line,) = [one for one in lines if one.startswith("| content")]
    for value in (content.map_found.mean, content.map_relevant.low, content.precision_at_10):
        assert f"{value:.4f}" in line
    (lacking,) = [one for one in lines if one.startswith("| lacking")]
    assert lacking.split(" | ")[1:4] == ["3", "3", "0"]
    assert "- model: abc" in lines
    assert "**3 queries are in no mean**" in page
    assert f"calls {report.foreign:.4f} of all queries foreign" in page
    assert "examples.png" not in page
    assert not (tmp_path / "examples.png").exists()


def test_every_line_of_a_table_has_as_many_cells(report, tmp_path):
    """Whatever a class is called."""
    write_report(report, tmp_path)
    page = (tmp_path / "report.md").read_text()
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1
    assert "<i>" not in page
    assert r"a\|b &lt;i>$x\_2 \*胸部\* new" in page


def test_the_same_figures_make_the_same_bytes(report, tmp_path):
    for name in ("one", "other"):
        write_report(report, tmp_path / name, examples=[row(True, False, label=ODD)])
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


@pytest.mark.slow
def test_hits_of_a_wrong_class_are_framed_in_red(report, tmp_path):
    found = []
    for wrong in range(3):
        hits = [place >= wrong for place in range(3)]
        write_report(report, tmp_path, examples=[row(*hits), row(True, True)])
        found.append(red_pixels((tmp_path / "examples.png").read_bytes()))
    assert found[0] == 0
    assert 0 < found[1] < found[2]


def test_examples_may_be_coloured_lack_hits_or_be_unreadable(report, tmp_path):
    coloured = np.zeros((8, 12, 3), np.uint8)
    rows = [
        ExampleRow(coloured, "ct", (ExampleHit(None, "gone", right=False),)),
        ExampleRow(None, "a name that is much too long for a picture", ()),
    ]
    write_report(report, tmp_path, examples=rows)
    assert red_pixels((tmp_path / "examples.png").read_bytes()) > 0


@pytest.mark.slow
def test_many_classes_fit_into_a_picture(tmp_path):
    queries = images({"ct": 1}, 1)
    many = {f"class {i}": 1 for i in range(200)}
    database = images({"ct": 5}, 0)
    one = evaluate(database, queries, k=2)
    classes = {name: replace(one.classes["ct"]) for name in many}
    write_report(replace(one, classes=classes), tmp_path)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.height < 5000


def test_without_matplotlib_the_way_out_is_named(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    for needs_it in (require_matplotlib, lambda: write_report(report, tmp_path / "out")):
        with pytest.raises(PrecedentError, match=r"pip install 'precedent-imaging\[report\]'"):
            needs_it()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PrecedentError, match=r"file.*name another folder"):
        write_report(report, tmp_path / "file")
