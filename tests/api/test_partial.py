"""Instances some of whose frames are missing or broken: everywhere that people look says so."""

import csv
import io
import json
from pathlib import Path

import pydicom
import pytest
from commands import run
from services.loopback import LoopbackClient

from api.service import create_service
from engine.settings import Settings

CUT = "frames 2 to 3: truncated"


def document(*arguments: object) -> dict:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture
def place(indexed, tmp_path: Path) -> list[str]:
    return ["--data-dir", str(tmp_path / "data"), "--model", str(indexed.settings.model)]


@pytest.fixture
def movie(indexed) -> list[bytes]:
    """The pixels of four frames."""
    return [pydicom.dcmread(path).PixelData for path in indexed.files["ct"][:4]]


@pytest.fixture
def files(indexed, movie, tmp_path: Path) -> Path:
    """A whole slice, and four frames of which two are there."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "whole.dcm").write_bytes(indexed.files["ct"][0].read_bytes())
    made = pydicom.dcmread(indexed.files["ct"][5])
    made.NumberOfFrames, made.PixelData = 4, b"".join(movie[:2])
    made.save_as(folder / "cut.dcm")
    return folder


def test_index_and_info_count_and_name_them(files, place) -> None:
    report = document("index", files, *place)
    assert (report["indexed"], report["partial"], report["points"]) == (2, 1, 3)
    told = run("index", files, *place)
    assert "1 of those in the index are partial" in told
    assert "`precedent info --refusals` names missing frames." in told
    found = document("info", *place)
    assert found["partial"] == 1
    assert "missing_frames" not in found
    named = document("info", "--refusals", *place)["missing_frames"]
    assert named == [{"path": str(files / "cut.dcm"), "frames": CUT}]
    assert f"partial  {files / 'cut.dcm'}: {CUT}" in run("info", "--refusals", *place)
    assert document("info", "--refusals", "--limit", "0", *place).get("missing_frames", []) == []


def test_a_file_that_is_whole_again_is_no_longer_partial(files, movie, place) -> None:
    run("index", files, *place)
    made = pydicom.dcmread(files / "cut.dcm")
    made.PixelData = b"".join(movie)
    made.save_as(files / "cut.dcm")
    report = document("index", files, *place)
    assert (report["partial"], report["points"]) == (0, 4)
    assert document("info", *place)["partial"] == 0
    (hit, *_) = document("search", files / "cut.dcm", *place)["hits"]
    assert (hit["path"], hit["missing_frames"]) == (str(files / "cut.dcm"), None)


def test_a_report_of_a_job_has_them_in_a_column(files, place) -> None:
    only = place[:2]
    run("jobs", "submit", files, *only)
    run("worker", "--until-idle", *place)
    rows = list(csv.DictReader(io.StringIO(run("jobs", "report", 1, *only))))
    told = {Path(row["instance"]).name: (row["fate"], row["missing_frames"]) for row in rows}
    assert told == {"whole.dcm": ("indexed", ""), "cut.dcm": ("indexed", CUT)}
    run("jobs", "submit", files, *only)
    run("worker", "--until-idle", *place)
    rows = list(csv.DictReader(io.StringIO(run("jobs", "report", 2, *only))))
    told = {Path(row["instance"]).name: (row["fate"], row["missing_frames"]) for row in rows}
    assert told == {"whole.dcm": ("unchanged", ""), "cut.dcm": ("unchanged", CUT)}


def test_a_hit_says_what_its_instance_lacks(files, place) -> None:
    run("index", files, *place)
    answer = document("search", files / "whole.dcm", *place)
    lacking = {(Path(hit["path"]).name, hit["missing_frames"]) for hit in answer["hits"]}
    assert lacking == {("whole.dcm", None), ("cut.dcm", CUT)}
    places = [n for n, hit in enumerate(answer["hits"], 1) if hit["missing_frames"]]
    said = f"frames are missing or broken in {', '.join(f'#{n}' for n in places)}"
    assert said in run("search", files / "whole.dcm", *place)
    cases = document("recommend", files / "whole.dcm", *place)["hits"]
    assert CUT in {hit["missing_frames"] for hit in cases}
    assert "frames are missing or broken in #" in run("recommend", files / "whole.dcm", *place)
    settings = Settings(data_dir=Path(place[1]), model=Path(place[3]))
    with LoopbackClient(create_service(settings)) as client:
        sent = {"file": (files / "whole.dcm").read_bytes()}
        hits = client.post("/v1/search", files=sent).json()["hits"]
        assert sorted(hit["missing_frames"] or "" for hit in hits) == ["", CUT, CUT]
        own = {"group_by": "none", "exclude_own": "none"}
        page = client.get("/", params={"like": answer["hits"][0]["id"], **own}).text
        assert f"<dt>Cannot be read</dt><dd>{CUT}</dd>" in page


def test_a_snapshot_keeps_what_is_missing(files, place, tmp_path) -> None:
    run("index", files, *place)
    run("snapshot", tmp_path / "file.snapshot", *place)
    other = ["--data-dir", str(tmp_path / "other"), *place[2:]]
    run("restore", tmp_path / "file.snapshot", *other)
    hits = document("search", files / "whole.dcm", *other)["hits"]
    assert sorted(hit["missing_frames"] or "" for hit in hits) == ["", CUT, CUT]
