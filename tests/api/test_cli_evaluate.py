"""``precedent evaluate`` on two classes of drawn images, from folders and on an index."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import dcmread
from typer.testing import CliRunner, Result

from api.cli.main import app
from engine.errors import PrecedentError, QueryError, StoreNotFound, TrainingDataError
from engine.model.encoder import Encoder
from engine.ood.calibration import OodGate
from engine.ood.detectors import KnnDetector
from engine.records import Observations
from engine.store.edge import EdgeStore
from indexer.archive import Archive
from indexer.sources.folder import FolderSource

Run = Callable[..., Result]
SIDE = 96


def waves(seed: int, round_ones: bool) -> Image.Image:
    rng = np.random.default_rng([seed, round_ones])
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    if round_ones:
        along = np.hypot(x - rng.uniform(20, 76), y - rng.uniform(20, 76))
    else:
        along = x * rng.uniform(-1, 1) + y
    wave = np.sin(along * rng.uniform(0.1, 0.5))
    pixels = 127 + 90 * wave + rng.normal(0, 8, (SIDE, SIDE))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """database: 12 + 8 images, one of them twice. queries: 4 + 3, and a file that is none."""
    root = tmp_path_factory.mktemp("folders")
    counts = {
        "database/stripes": 12,
        "database/rings": 8,
        "queries/stripes": 4,
        "queries/rings": 3,
    }
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = waves(number + 100 * name.startswith("queries"), name.endswith("rings"))
            image.save(root / name / f"{number}.png")
    shutil.copyfile(root / "database/rings/0.png", root / "database/rings/again.png")
    (root / "queries/rings/notes.txt").write_text("no image")
    return {"database": root / "database", "queries": root / "queries"}


@pytest.fixture
def run(indexed, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command with the tiny model, in this process."""
    monkeypatch.setenv("PRECEDENT_INDEXING__READERS", "1")
    monkeypatch.setenv("PRECEDENT_DEVICE", "cpu")
    monkeypatch.setenv("PRECEDENT_MODEL", str(indexed.settings.model))
    monkeypatch.setenv("COLUMNS", "80")
    torch.set_num_threads(1)

    def ran(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])

    return ran


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def on(folders: dict[str, Path]) -> tuple[str | Path, ...]:
    return ("--database", folders["database"], "--queries", folders["queries"])


@pytest.mark.slow
def test_two_folders_in_json(run: Run, folders: dict[str, Path], indexed) -> None:
    found = document(run(*on(folders), "--k", "5", "--json"))
    assert found["model"] == Encoder.load(indexed.settings.model or Path()).manifest.fingerprint
    assert (found["queries"], found["database"], found["k"]) == (7, 20, 5)
    assert found["refused"] == {"queries": {"not-an-image": 1}, "database": {}}
    assert {name: one["queries"] for name, one in found["classes"].items()} == {
        "rings": 3,
        "stripes": 4,
    }
    assert (found["foreign"], found["unlabelled"], found["report"]) == (None, 0, None)
    assert found["stability"]["content"] == found["stability"]["hamming"] == 1
    for scores in found["orders"].values():
        assert 0 <= scores["map_relevant"]["low"] <= scores["map_relevant"]["mean"] <= 1
    assert sum(found["within"]) == 3 * 8 + 4 * 12
    again = document(run(*on(folders), "--k", "5", "--json"))
    assert again == found
    other = document(run(*on(folders), "--k", "5", "--json", "--seed", "1"))
    assert (
        other["orders"]["content"]["precision_at_1"]
        == (found["orders"]["content"]["precision_at_1"])
    )
    assert other["seed"] == 1


@pytest.mark.slow
def test_tables_for_people_fit_a_terminal(run: Run, folders: dict[str, Path]) -> None:
    result = run(*on(folders))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any("rings" in line and "3" in line for line in lines)
    assert any("hamming_random" in line for line in lines)
    assert "queries refused: not-an-image 1" in lines
    assert all(len(line) <= 80 for line in lines if line and line[0] in "┏┃┡│├└")
    assert "…" not in result.stdout


@pytest.mark.slow
def test_a_report_shows_a_query_of_each_class(
    run: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    found = document(run(*on(folders), "--json", "--out", tmp_path / "report"))
    assert found["report"] == str(tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert found["model"] in page
    assert str(folders["queries"]) in page.replace("\\", "")
    assert (tmp_path / "report" / "examples.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "report" / "report.json").read_text())["queries"] == 7


@pytest.mark.slow
def test_an_index_is_a_database(
    run: Run, folders: dict[str, Path], indexed, tmp_path: Path
) -> None:
    data_dir = indexed.copy(tmp_path / "data").data_dir
    found = document(
        run(
            *("--data-dir", data_dir, "--queries", folders["queries"]),
            *("--k", "5", "--json", "--out", tmp_path / "report"),
        )
    )
    assert (found["queries"], found["database"]) == (7, 35)
    assert found["classes"]["stripes"]["images"] == 14
    assert found["unanswerable"] == found["related"] == 0
    assert (tmp_path / "report" / "examples.png").is_file()
    # Closed again.
    EdgeStore.open(data_dir / "index").close()


@pytest.mark.slow
def test_an_index_gives_what_the_folder_gives_that_it_was_made_of(
    run: Run, folders: dict[str, Path], indexed, store_root: Path
) -> None:
    settings = indexed.settings.model_copy(update={"data_dir": store_root / "evaluated"})
    with Archive(settings, create=True) as archive:
        archive.index(FolderSource([folders["database"]], label_from_folder=True))
    options = ("--queries", folders["queries"], "--k", "5", "--json")
    of_index = document(run("--data-dir", settings.data_dir, *options))
    of_folder = document(run("--database", folders["database"], *options))
    assert of_index["within"] == of_folder["within"]
    for order in ("content", "hamming", "exact"):
        # z is stored as float16.
        assert of_index["orders"][order]["map_relevant"]["mean"] == pytest.approx(
            of_folder["orders"][order]["map_relevant"]["mean"], abs=0.02
        )


def test_images_of_the_querys_patient_are_left_out(run: Run, indexed, tmp_path: Path) -> None:
    """Each DICOM file of the archive has a patient of its own: asked again, it misses itself."""
    data_dir = indexed.copy(tmp_path / "data").data_dir
    queries = tmp_path / "queries"
    for label in ("ct", "mr"):
        (queries / label).mkdir(parents=True)
        for number, path in enumerate(indexed.files[label][:2]):
            shutil.copyfile(path, queries / label / str(number))
    # Another image of a patient in the archive.
    new = dcmread(indexed.files["ct"][3])
    new.SOPInstanceUID = new.file_meta.MediaStorageSOPInstanceUID = "1.2.3.999"
    new.PixelData = np.asarray(waves(999, round_ones=True)).tobytes()
    new.save_as(queries / "ct" / "new")
    found = document(run("--data-dir", data_dir, "--queries", queries, "--json"))
    assert (found["queries"], found["related"]) == (5, 5)
    assert sum(found["within"]) + sum(found["between"]) == 5 * (35 - 1)


@pytest.mark.slow
@pytest.mark.parametrize(("least", "share"), [(-1.0, 1.0), (3.0, 0.0)])
def test_the_share_of_queries_called_foreign(
    run: Run,
    folders: dict[str, Path],
    indexed,
    tmp_path: Path,
    least: float,
    share: float,
) -> None:
    """By a gate that lets nothing pass, and one that lets everything."""
    model = tmp_path / "model"
    shutil.copytree(indexed.settings.model or Path(), model)
    reference = Observations(np.eye(64, 256, dtype=np.float32), np.zeros((64, 8), np.uint8))
    gate = OodGate([KnnDetector(5).fit(reference)], {"knn": np.full(99, least, np.float32)})
    gate.save(model, Encoder.load(model).manifest.fingerprint)
    options = (*on(folders), "--model", model)
    found = document(run(*options, "--json"))
    assert found["foreign"] == share
    assert {one["foreign"] for one in found["classes"].values()} == {share}
    assert f"{share:.4f} of all queries called foreign" in run(*options).stdout


def complaint(result: Result, kind: type[PrecedentError]) -> str:
    assert type(result.exception) is kind, result.output
    says = str(result.exception)
    assert "\n" not in says
    assert result.stdout == ""
    return says


def test_what_cannot_be_evaluated_says_why(
    run: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    database, queries = ("--database", folders["database"]), ("--queries", folders["queries"])
    (tmp_path / "bare").mkdir()
    for arguments, kind, says in [
        ((*database, "--queries", tmp_path / "no"), TrainingDataError, "no is not a folder"),
        (("--database", tmp_path / "no", *queries), TrainingDataError, "no is not a folder"),
        ((*database, "--queries", tmp_path / "bare"), TrainingDataError, "one folder per class"),
        ((*database, *queries, "--k", "0"), QueryError, "k is 0"),
        ((*database, *queries, "--data-dir", tmp_path), QueryError, "both name a database"),
        (("--data-dir", tmp_path, *queries), StoreNotFound, "no index in"),
    ]:
        assert says in complaint(run(*arguments), kind)
    assert run(*database).exit_code == 2
    assert sorted(tmp_path.iterdir()) == [tmp_path / "bare"]


def test_classes_that_do_not_meet(run: Run, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["queries"] / "rings", tmp_path / "queries" / "knee")
    says = complaint(
        run("--database", folders["database"], "--queries", tmp_path / "queries"), QueryError
    )
    assert "'knee'" in says
    assert "'rings', 'stripes'" in says


def test_files_that_are_no_images(run: Run, folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "queries" / "notes").mkdir(parents=True)
    (tmp_path / "queries" / "notes" / "a.txt").write_text("no image")
    says = complaint(
        run("--database", folders["database"], "--queries", tmp_path / "queries"), QueryError
    )
    assert "none of the 1 files" in says
    assert "not-an-image 1" in says


@pytest.mark.slow
def test_an_index_without_labels(
    run: Run, folders: dict[str, Path], indexed, store_root: Path
) -> None:
    settings = indexed.settings.model_copy(update={"data_dir": store_root / "unlabelled"})
    with Archive(settings, create=True) as archive:
        archive.index(FolderSource([folders["queries"] / "stripes"]))
    says = complaint(
        run("--data-dir", settings.data_dir, "--queries", folders["queries"]), QueryError
    )
    assert "none of the 4 images" in says
    assert "--labels folder" in says


def test_a_report_without_matplotlib_is_refused_at_once(
    run: Run, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    says = complaint(run(*on(folders), "--out", tmp_path / "report"), PrecedentError)
    assert "pip install 'precedent-imaging[report]'" in says
    assert document(run(*on(folders), "--json"))["queries"] == 7


def test_the_page_of_the_command_names_its_options(run: Run) -> None:
    text = run("--help").stdout
    for option in ("--model", "--database", "--queries", "--data-dir", "--k", "--out", "--seed"):
        assert option in text
