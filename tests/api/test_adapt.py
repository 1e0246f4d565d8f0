"""``precedent adapt``: from an archive to a model that is in use, and the places to stop."""

import csv
import io
import json
import os
import pty
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from conftest import dicom, png, rings, stripes
from pydicom import dcmread
from rich.console import Console

from api.cli.adaptation import Adaptation, AdaptationOptions
from api.cli.comparison_table import show_comparison
from api.cli.main import main
from api.cli.training_data import ExampleSource
from engine.errors import DiskFull, QueryError, TrainingDataError
from engine.model.manifest import read_manifest
from engine.ood.calibration import OodGate
from engine.settings import Settings
from engine.training.config import TrainConfig
from engine.training.learner import Learner

SMALL = ("--labels", "dicom-tags", "--epochs", 2, "--batch-size", 8, "--validation", 0.2)
EASY = ("--alpha", 0.2, "--catch", 0.01)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of 24 patients, half of them of each kind."""
    root = tmp_path_factory.mktemp("images")
    for number in range(48):
        patient = number // 2
        draw, modality, part = (stripes, "CT", "CHEST") if patient % 2 else (rings, "MR", "BRAIN")
        found = dcmread(
            io.BytesIO(dicom(draw(200 + number), 500 + number, modality=modality, part=part))
        )
        found.PatientID = f"HIDDEN-{patient}"
        found.save_as(root / f"{number:02}.dcm")
    return root


@pytest.fixture
def settings(indexed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a copy of the archive, whose model has learned nothing and is named by the environment."""
    settings = indexed.copy(tmp_path / "data")
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("PRECEDENT_MODEL", str(settings.model))
    return settings


@pytest.fixture
def no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.delenv("PRECEDENT_MODEL", raising=False)


def narrow(out: Path) -> str:
    """What the comparison looks like in a terminal of 80 columns."""
    console = Console(width=80, file=io.StringIO())
    show_comparison(console, json.loads((out / "evaluation.json").read_text()))
    return str(console.file.getvalue())


class Killed(BaseException):
    """What nothing catches, as nothing catches the end of a process."""


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that were learned; the second is not, the first time."""
    done: list[int] = []
    learn = Learner.epoch

    def epoch(self: Learner, *arguments: Any) -> Any:
        if done == [1]:
            done.append(0)
            raise Killed
        entry = learn(self, *arguments)
        done.append(entry["epoch"])
        return entry

    monkeypatch.setattr(Learner, "epoch", epoch)
    return done


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., str]:
    """Runs the command as somebody does who sits at a terminal, and types a line."""

    def ran(typed: str, *arguments: object) -> str:
        ours, theirs = pty.openpty()
        os.write(ours, typed.encode())
        with os.fdopen(theirs) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            monkeypatch.setattr(sys, "argv", ["precedent", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                main()
        os.close(ours)
        output = capsys.readouterr()
        assert ended.value.code == 0, output.err
        return output.out

    return ran


@pytest.mark.slow
def test_from_an_archive_to_its_model_in_use(
    images: Path,
    settings: Settings,
    indexed: Any,
    epochs: list[int],
    at_a_terminal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    out = tmp_path / "out"
    command = ("adapt", images, "--out", out, *SMALL, *EASY)
    with pytest.raises(Killed):
        run(*command)
    assert not (out / "model" / "manifest.json").exists()
    table = (out / "split.csv").read_bytes()
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    assert len({row["file"] for row in rows}) == 48
    assert len({(row["group"], row["part"]) for row in rows}) == 24
    assert b"HIDDEN" not in table

    # The same command goes on, and stops before what nobody was asked for.
    told = run(*command)
    assert epochs == [1, 0, 2]
    assert (out / "split.csv").read_bytes() == table
    assert "no group is in two parts; groups are: 24 patients" in told
    assert "catches" in told
    made, old = read_manifest(out / "model").fingerprint, read_manifest(settings.model).fingerprint
    assert f"model {made} finds more than {old}" in told
    assert f"nothing is encoded; this puts it in force: precedent reencode --model {out}" in told
    assert "…" not in narrow(out)
    gate = OodGate.load(out / "model", made)
    assert gate is not None
    assert gate.alpha == 0.2
    noted = json.loads((out / "evaluation.json").read_text())
    assert noted["outcome"] == "better"
    assert noted["queries"] == sum(row["part"] == "evaluation" for row in rows)
    assert noted["database"] == sum(row["part"] != "training" for row in rows)
    text = "".join(path.read_text() for path in out.glob("*.json")) + told
    assert "HIDDEN" not in text

    # Nothing is done twice.
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    told = at_a_terminal("n\n", *command)
    assert "Encode the archive in" in told
    assert "nothing is encoded" in told
    document = json.loads(run(*command, "--json"))
    assert (document["recommended"], document["in_force"], document["reencoded"]) == (
        *(True, False, None),
    )
    assert document["next"].startswith("precedent reencode --model")
    assert json.loads(run("info", "--json"))["model"] == old

    # A model that is not better is not put in force, whoever wants it.
    (out / "evaluation.json").write_text(json.dumps({**noted, "outcome": "worse"}))
    with pytest.raises(QueryError, match=r"not better than the one in force.*precedent reencode"):
        run(*command, "--yes")
    assert "is not recommended" in run(*command, "--no-reencode")
    (out / "evaluation.json").write_text(json.dumps(noted, indent=2) + "\n")

    told = at_a_terminal("y\n", *command)
    assert f"model {made} is in force (index-{made}): 35 images encoded" in told
    assert "PRECEDENT_MODEL" in told
    monkeypatch.delenv("PRECEDENT_MODEL")
    query = indexed.files["ct"][0]
    (answer,) = [json.loads(line) for line in run("search", query, "--json").splitlines()]
    assert answer["evidence"]["model"] == made
    assert answer["hits"][0]["similarity"] > 0.99
    assert f"model {made} is in force already" in run(*command, "--yes")
    with pytest.raises(QueryError, match="in force, and its gate was not calibrated with --alpha"):
        run(*command, "--alpha", 0.3)
    unchanged = {path: path.stat().st_mtime_ns for path in written if path.suffix != ".json"}
    assert unchanged.items() <= written.items()
    assert epochs == [1, 0, 2]
    with pytest.raises(QueryError, match="an adaptation with --epochs 2, not 3; give the same"):
        run(*command, "--epochs", 3)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (("--labels", "none"), QueryError, "compared by classes"),
        (("--yes", "--no-reencode"), QueryError, "contradict each other"),
        (("--out", "FILE"), QueryError, "which is a file"),
        (("--data-dir", "ELSEWHERE"), QueryError, "has no archive that could be encoded anew"),
        (("--k", "0"), QueryError, "--k is 0"),
        (("--evaluation", "0.7"), TrainingDataError, "leave 0.1 for training"),
        (
            ("--alpha", "0.01"),
            TrainingDataError,
            r"48 images of 24 patients .* alpha 0.01 takes 99",
        ),
        (("--batch-size", "40"), TrainingDataError, "do not fill one batch of 40; .* --batch-size"),
        (("--patience", "2", "--validation", "0"), TrainingDataError, "nothing is held out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_told_before_anything_is_trained(
    images: Path, no_archive: None, tmp_path: Path, options: Any, error: type, says: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    named = {"FILE": tmp_path / "file", "ELSEWHERE": tmp_path / "elsewhere"}
    given = [named.get(one, one) for one in options]
    command = ("adapt", images, "--out", tmp_path / "out", *SMALL, *EASY, *given)
    with pytest.raises(error, match=says):
        run(*command)
    assert not (tmp_path / "out").exists()


def test_a_table_is_divided_by_its_groups_and_else_by_file(tmp_path: Path) -> None:
    lines = ["file,label,who"]
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(png(stripes(number)))
        lines.append(
            f"{number}.png,{'ab'[number % 2]},{'' if number < 10 else f'Doe {number // 4}'}"
        )
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines))
    source = ExampleSource(table, "csv", "file", "label", "who", 10, tmp_path / "out")
    config = TrainConfig(batch_size=8)
    options = AdaptationOptions(table, {"labels": "csv"}, 0.2, 0.2, False, config)
    settings = Settings()
    first = Adaptation(tmp_path / "out", options, settings)
    parts = first.divide(lambda: source.examples(settings.limits), 0.3)
    assert first.plan["grouped_by"] == {"file": 10, "group": 8}
    assert "Doe" not in first.table.read_text()

    def nothing() -> Any:
        pytest.fail("what was divided is listed again")

    again = Adaptation(tmp_path / "out", options, settings).divide(nothing, 0.3)
    for ours, theirs in zip(parts.named().values(), again.named().values(), strict=True):
        assert [one.path for one in ours] == [one.path for one in theirs]
    others = replace(options, leave_out=True)
    with pytest.raises(QueryError, match="an adaptation with --leave-out-rare False, not True"):
        Adaptation(tmp_path / "out", others, settings)
    (tmp_path / "out" / "plan.json").write_text("{")
    with pytest.raises(TrainingDataError, match=r"plan.json cannot be read .*--out"):
        Adaptation(tmp_path / "out", options, settings)


def test_a_disk_without_room(images: Path, no_archive: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PRECEDENT_INDEXING__MIN_FREE_BYTES", str(10**18))
    with pytest.raises(DiskFull, match=f"the disk of {tmp_path / 'out'} has"):
        run("adapt", images, "--out", tmp_path / "out", *SMALL, *EASY)


def test_too_few_patients_of_a_class(no_archive: None, tmp_path: Path) -> None:
    """Copies of one file are one image, whatever they are called."""
    for name, count in (("rings", 12), ("stripes", 12), ("rare", 4)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(count):
            drawn = (
                stripes(number if name == "stripes" else 90) if name != "rings" else rings(number)
            )
            (tmp_path / "images" / name / f"{number}.png").write_bytes(png(drawn))
    command = ("adapt", tmp_path / "images", "--out", tmp_path / "out", "--alpha", 0.3)
    with pytest.raises(
        TrainingDataError, match=r"'rare' has 4 image.*of 1 patient.*leave-out-rare"
    ):
        run(*command)
    # Without it, the next thing that is too little.
    with pytest.raises(TrainingDataError, match="one batch of 64"):
        run(*command, "--leave-out-rare")
