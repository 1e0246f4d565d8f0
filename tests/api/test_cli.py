"""The command as people and scripts run it: a process with arguments, output and exit code."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from services.commands import run_command
from typer.testing import CliRunner

from api.cli.main import app
from engine import __version__
from engine.errors import QueryError, SettingsError
from engine.store.edge import EdgeStore
from indexer.sample import write_queries, write_sample

ROOT = Path(__file__).parents[2]
HIT = {
    *("id", "similarity", "hamming", "path", "study", "series", "sop", "frame"),
    *("modality", "body_part", "labels"),
}
FACETS = {
    *("modality", "body_part", "view", "laterality", "labels", "sex", "age_band"),
    *("study_year", "manufacturer", "source"),
}


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def complaint(self) -> str:
        """The one line on standard error, when there is no other."""
        (line,) = self.err.splitlines()
        return line


def command(*arguments: str | Path) -> list[str]:
    # Warnings of the libraries are errors here as they are in the other tests.
    return [sys.executable, "-W", "error", "-m", "api", *map(str, arguments)]


def environment(data_dir: Path | None, **more: str) -> dict[str, str]:
    kept = {name: v for name, v in os.environ.items() if not name.startswith("PRECEDENT_")}
    named = {} if data_dir is None else {"PRECEDENT_DATA_DIR": str(data_dir)}
    always = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "PRECEDENT_INDEXING__READERS": "1"}
    return {**kept, **always, **named, **more}


def run(*arguments: str | Path, data_dir: Path | None = None, **more: str) -> Ran:
    done = run_command(
        arguments, env=environment(data_dir, **more), warnings_are_errors=True, timeout=240
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def run_from_nothing(*arguments: str | Path, data_dir: Path | None = None, **more: str) -> Ran:
    """With all that it imports, which takes seconds."""
    done = subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(data_dir, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=240,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Case:
    """An archive that the command has indexed. hits: a query of each anatomy by file name."""

    archive: Path
    data_dir: Path
    queries: dict[str, Path]
    indexed: Ran
    files: int

    @contextmanager
    def copy(self) -> Iterator[Path]:
        """A data folder of one's own."""
        with tempfile.TemporaryDirectory(dir=self.data_dir.parent) as folder:
            yield Path(
                shutil.copytree(
                    self.data_dir, Path(folder) / "data", ignore=shutil.ignore_patterns("*.sock")
                )
            )


@pytest.fixture(scope="module")
def case(store_root: Path) -> Case:
    archive = store_root / "archive"
    write_sample(archive, patients=4, include_pydicom=False)
    (archive / "empty.dcm").write_bytes(b"")
    queries = {path.stem: path for path in write_queries(store_root / "queries")}
    data_dir = store_root / "data"
    ran = run_from_nothing(
        *("index", archive, "--labels", "folder", "--data-dir", data_dir, "--json")
    )
    files = sum(path.is_file() for path in archive.rglob("*"))
    return Case(archive, data_dir, queries, ran, files)


@pytest.mark.slow  # as all that share the case, which takes longer than any of them
def test_index_accounts_for_every_file(case: Case) -> None:
    assert (case.indexed.code, case.indexed.err) == (0, "")
    (report,) = case.indexed.documents
    assert {"indexed", "unchanged", "refused", "seconds"} <= set(report)
    assert report["refused"] == {"empty-file": 1, "no-pixels": 2, "not-an-image": 1}
    assert report["indexed"] == case.files - 4
    assert report["unchanged"] == 0
    assert report["seconds"] > 0


@pytest.mark.slow
def test_search_answers_in_json_one_line_an_image(case: Case, tmp_path: Path) -> None:
    bad = tmp_path / "bad.dcm"
    bad.write_text("no image")
    images = [
        case.queries["query-chest-ct"],
        bad,
        case.queries["query-chest-xray"],
        tmp_path / "nowhere.png",
    ]
    ran = run("search", *images, "-k", "5", "--json", data_dir=case.data_dir)
    assert ran.code == 1
    assert ran.err == ""
    ct, refused, xray, missing = ran.documents
    assert set(refused) == set(missing) == {"error", "query"}
    assert refused["error"]["code"] == "not-an-image"
    assert missing["error"]["code"] == "unreadable"
    for document, modality in ((ct, "CT"), (xray, "CR")):
        assert set(document) == {"ood", "evidence", "hits", "facets", "next_page", "query"}
        assert {"foreign", "p", "scores"} <= set(document["ood"])
        assert isinstance(document["ood"]["foreign"], bool)
        assert 0 < document["ood"]["p"] <= 1
        assert document["ood"]["scores"]
        evidence = document["evidence"]
        assert {"rung", "radius", "candidates", "model", "timings_ms"} <= set(evidence)
        assert evidence["candidates"] >= len(document["hits"]) == 5
        assert all(value >= 0 for value in evidence["timings_ms"].values())
        for hit in document["hits"]:
            assert set(hit) >= HIT
            assert not {"patient", "tenant"} & set(hit)
            assert Path(hit["path"]).is_file()
            assert hit["labels"] == [Path(hit["path"]).parent.name]
            assert -1 <= hit["similarity"] <= 1
            assert 0 <= hit["hamming"] <= evidence["bits"]
        similarities = [hit["similarity"] for hit in document["hits"]]
        assert similarities == sorted(similarities, reverse=True)
        assert document["hits"][0]["modality"] == modality
        assert set(document["facets"]) <= FACETS
        assert sum(document["facets"]["modality"].values()) == evidence["candidates"]


# One start of the command costs seconds, so most of what needs one is marked slow.


@pytest.mark.slow
def test_a_sample_is_described_in_json(tmp_path: Path) -> None:
    ran = run("sample", tmp_path / "sample", "--json")
    assert (ran.code, ran.err) == (0, "")
    (document,) = ran.documents
    assert document["directory"] == str(tmp_path / "sample")
    assert document["written"] == document["instances"] + document["pydicom_files"] > 0


@pytest.mark.slow
def test_the_table_shows_the_top_hit_and_the_evidence(case: Case, tmp_path: Path) -> None:
    """The query is indexed itself, under a name that a table could take for markup."""
    known = min(case.archive.rglob("*xr-chest*/*/001.dcm"))
    query = tmp_path / "a[" / "]b[red].dcm"
    query.parent.mkdir()
    shutil.copyfile(known, query)
    ran = run("search", query, "-k", "2", data_dir=case.data_dir)
    assert (ran.code, ran.err) == (0, "")
    assert "a[/]b[red].dcm" in ran.out
    assert "1.0000" in ran.out
    assert "/".join(known.parts[-3:]) in ran.out
    assert "rung" in ran.out
    assert "candidates" in ran.out


@pytest.mark.slow
def test_where_there_is_no_index_it_is_one_line(case: Case, tmp_path: Path) -> None:
    ran = run("search", case.queries["query-chest-ct"], data_dir=tmp_path / "nothing")
    assert (ran.code, ran.out) == (1, "")
    assert ran.complaint.startswith("precedent: no index in ")
    assert "precedent index" in ran.complaint
    assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
def test_a_second_process_is_told_so_in_one_line(case: Case) -> None:
    with EdgeStore.open(case.data_dir / "index"):
        ran = run("info", data_dir=case.data_dir)
    assert ran.code == 0
    said = ran.out + ran.err
    (line,) = (one for one in said.splitlines() if "are not told: the index in " in one)
    assert f"(pid {os.getpid()}" in line


def test_version() -> None:
    ran = run_from_nothing("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"precedent {__version__}\n", "")


def test_a_wrong_option_is_not_understood() -> None:
    ran = run_from_nothing("search", "--no-such-option", "image.png")
    assert (ran.code, ran.out) == (2, "")
    assert "--no-such-option" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [["search"], ["index"], ["sample"], ["search", "x", "-k", "many"], ["no-such-command"]],
    ids=" ".join,
)
def test_what_is_not_understood_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (["search", "x", "-k", "0"], QueryError, "k is 0"),
        (["search", "x", "--order", "size"], QueryError, "'size'"),
        (["search", "x", "--where", "modality"], QueryError, "field=value"),
        (["search", "x", "--where", "patient_name=Doe"], QueryError, "no field 'patient_name'"),
        (["search", "x", "--where", "tenant=other"], QueryError, "no field 'tenant'"),
        (["index", ".", "--labels", "csv"], QueryError, "'csv'"),
        (["index", "no/such/folder"], QueryError, "no/such/folder does not exist"),
        (["delete", "--yes"], QueryError, "--study"),
        (["train", ".", "--out", "o", "--labels", "xml"], QueryError, "'xml'"),
    ],
)
def test_what_cannot_be_answered_says_why(
    arguments: list[str], kind: type[Exception], says: str
) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, kind)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_setting_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEDENT_INDEXING__READERS", "none")
    result = CliRunner().invoke(app, ["info"])
    assert isinstance(result.exception, SettingsError)
    assert "PRECEDENT_INDEXING__READERS" in str(result.exception)


@pytest.mark.slow
def test_filters_orders_and_the_exact_search(case: Case) -> None:
    query = case.queries["query-chest-ct"]
    plain = run("search", query, "--json", data_dir=case.data_dir)
    where = run("search", query, "--where", "modality=CR", "--json", data_dir=case.data_dir)
    exact = run("search", query, "--exact", "--json", data_dir=case.data_dir)
    hamming = run("search", query, "--order", "hamming", "--json", data_dir=case.data_dir)
    assert {ran.code for ran in (plain, where, exact, hamming)} == {0}
    (everything,), (only,) = exact.documents, where.documents
    assert {hit["modality"] for hit in only["hits"]} == {"CR"}
    assert only["facets"]["modality"] == {"CR": len(only["hits"])}
    assert everything["evidence"]["rung"] == "exact"
    assert everything["evidence"]["radius"] is None
    assert everything["evidence"]["candidates"] == case.indexed.documents[0]["points"]
    assert plain.documents[0]["hits"] == everything["hits"]
    keys = [(hit["hamming"], -hit["similarity"]) for hit in hamming.documents[0]["hits"]]
    assert keys == sorted(keys)
    assert hamming.documents[0]["evidence"]["order"] == "hamming"


@pytest.mark.slow
def test_info_says_what_is_in_and_what_was_refused(case: Case) -> None:
    ran = run("info", "--json", data_dir=case.data_dir)
    assert (ran.code, ran.err) == (0, "")
    (document,) = ran.documents
    assert document["points"] == case.indexed.documents[0]["points"]
    assert document["instances"] == {"done": case.files - 4, "refused": 4}
    assert document["version"] == __version__
    assert sum(document["facets"]["modality"].values()) == document["points"]
    assert "refusals" not in document
    refusals = run("info", "--refusals", "--json", data_dir=case.data_dir)
    found = {Path(one["path"]): one["reason"] for one in refusals.documents[0]["refusals"]}
    assert found[case.archive / "empty.dcm"] == "empty-file"
    assert sorted(found.values()) == ["empty-file", "no-pixels", "no-pixels", "not-an-image"]


@pytest.mark.slow
def test_a_refused_file_is_named_on_one_line_however_narrow_the_terminal(case: Case) -> None:
    """So that the name can be copied, and found with grep."""
    ran = run("info", "--refusals", data_dir=case.data_dir, COLUMNS="40")
    assert ran.code == 0
    lines = [line for line in ran.out.splitlines() if line.startswith("empty-file")]
    assert lines == [f"empty-file  {case.archive / 'empty.dcm'}: the file has 0 bytes"]


@pytest.mark.slow
def test_a_query_whose_name_is_no_text(case: Case, tmp_path: Path) -> None:
    query = tmp_path / os.fsdecode(b"caf\xe9.dcm")
    shutil.copyfile(case.queries["query-chest-ct"], query)
    # What a terminal has under LANG=en_US.UTF-8; under C.UTF-8 output takes any bytes.
    encoding = {"PYTHONIOENCODING": "utf-8:strict"}
    ran = run_from_nothing("search", query, "-k", "1", data_dir=case.data_dir, **encoding)
    assert (ran.code, ran.err) == (0, "")
    assert "candidates" in ran.out


@pytest.mark.slow
def test_delete_asks_first_and_removes_a_study(case: Case) -> None:
    with case.copy() as data_dir:
        exact = ("--exact", "--json", "-k", "100")
        query = case.queries["query-chest-ct"]
        (before,) = run("search", query, *exact, data_dir=data_dir).documents
        study = before["hits"][0]["study"]
        points = sum(hit["study"] == study for hit in before["hits"])
        unasked = run("delete", "--study", study, data_dir=data_dir)
        assert unasked.code == 1
        assert "nothing was changed" in unasked.err
        ran = run("delete", "--study", study, "--yes", "--json", data_dir=data_dir)
        assert (ran.code, ran.err) == (0, "")
        assert ran.documents == [{"instances": points, "points": points}]
        (after,) = run("search", query, *exact, data_dir=data_dir).documents
        assert len(after["hits"]) == len(before["hits"]) - points
        assert study not in {hit["study"] for hit in after["hits"]}
        assert study not in (data_dir / "ledger.sqlite").read_bytes().decode("latin-1")


@pytest.mark.slow
def test_a_closed_pipe_leaves_no_traceback(case: Case) -> None:
    """As in `precedent search … | head -1`."""
    images = [case.queries["query-chest-ct"]] * 60
    for form in ([], ["--json"]):
        with subprocess.Popen(
            command("search", *images, *form),
            cwd=ROOT,
            env=environment(case.data_dir),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            err = process.stderr.read().decode()
            process.wait(timeout=60)
        assert err == ""
        assert process.returncode == 1


@pytest.mark.slow
def test_indexing_again_by_the_variable_shows_a_table(case: Case) -> None:
    with case.copy() as data_dir:
        ran = run("index", case.archive, "--labels", "folder", data_dir=data_dir)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert any("already there" in line and str(case.files - 4) in line for line in lines)
    assert any("refused: empty-file" in line and "1" in line for line in lines)
    assert any("seen" in line and str(case.files) in line for line in lines)
    assert "info --refusals" in ran.out


@pytest.mark.slow
def test_the_default_data_folder_in_the_archive_is_not_indexed(case: Case, tmp_path: Path) -> None:
    image = tmp_path / "one.dcm"
    shutil.copyfile(case.queries["query-chest-ct"], image)
    done = run_command(
        ["index", ".", "--json"],
        cwd=tmp_path,
        env=environment(None, PRECEDENT_INDEXING__READER_SECONDS="1"),
        warnings_are_errors=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["indexed"], report["refused"]) == (1, {})


def draw(folder: Path, seeds: range) -> None:
    """Two classes that a network tells apart: stripes across and stripes down."""
    for name in ("across", "down"):
        (folder / name).mkdir(parents=True)
        for seed in seeds:
            rng = np.random.default_rng([seed, len(name)])
            wave = 127 + 100 * np.sin(np.arange(64) * rng.uniform(0.3, 1.2) + rng.uniform(0, 6))
            rows = np.repeat(wave[:, None], 64, axis=1) + rng.normal(0, 10, (64, 64))
            pixels = (rows if name == "across" else rows.T).clip(0, 255).astype(np.uint8)
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "PNG")
            (folder / name / f"{seed}.png").write_bytes(out.getvalue())


@pytest.mark.slow
def test_a_model_of_ones_own_from_training_to_search(
    case: Case, store_root: Path, tmp_path: Path
) -> None:
    draw(tmp_path / "train", range(16))
    draw(tmp_path / "held-out", range(100, 160))
    model, data_dir = tmp_path / "model", store_root / "own"
    trained = run(
        *("train", tmp_path / "train", "--out", model, "--tower", "timm:test_resnet"),
        *("--size", "64", "--epochs", "1", "--batch-size", "8", "--json"),
    )
    assert trained.code == 0, trained.err
    (document,) = trained.documents
    assert document["images"] == 32
    assert document["classes"] == ["across", "down"]
    calibrated = run(
        *("calibrate", tmp_path / "train", tmp_path / "held-out", "--model", model, "--json")
    )
    assert calibrated.code == 0, calibrated.err
    assert calibrated.documents[0]["model"] == document["model"]
    assert calibrated.documents[0]["calibration"] == 120
    chosen = ("--model", model, "--json")
    indexed = run("index", tmp_path / "train", *chosen, data_dir=data_dir)
    assert indexed.documents[0]["indexed"] == 32
    query = tmp_path / "train" / "down" / "3.png"
    ran = run("search", query, "-k", "1", *chosen, data_dir=data_dir)
    assert (ran.code, ran.err) == (0, "")
    (answer,) = ran.documents
    assert answer["evidence"]["model"] == document["model"]
    assert answer["hits"][0]["path"] == str(query)
    assert answer["hits"][0]["hamming"] == 0
    assert answer["ood"]["foreign"] is False
    # The index belongs to this model: the shipped one is refused.
    other = run("search", query, data_dir=data_dir)
    assert (other.code, other.out) == (1, "")
    assert document["model"] in other.complaint
    assert "--model" in other.complaint
