"""``precedent jobs`` and ``precedent worker`` as an administrator uses them, without a broker."""

import csv
import io
import json
import signal
import time
from pathlib import Path

import pytest
from commands import run
from services.commands import CommandProcess

from engine.errors import JobError, QueryError, SettingsError, SourceError


@pytest.fixture
def place(tmp_path: Path) -> list[str]:
    return ["--data-dir", str(tmp_path / "data")]


@pytest.fixture
def images(indexed) -> Path:
    """The folder of one label: fourteen images."""
    return indexed.files["stripes"][0].parent


@pytest.fixture
def worker(indexed, place: list[str]) -> list[str]:
    return ["worker", "--until-idle", *place, "--model", str(indexed.settings.model)]


def test_a_job_from_submission_to_its_report(images, place, worker, tmp_path):
    job = json.loads(run("jobs", "submit", images, "--json", *place))["job"]
    waiting = json.loads(run("jobs", "show", job, "--json", *place))
    assert (waiting["state"], waiting["discovering"], waiting["done"]) == ("running", True, 0)
    run(*worker)
    told = json.loads(run("jobs", "show", job, "--json", *place))
    assert (told["state"], told["total"], told["indexed"]) == ("finished", 14, 14)
    (listed,) = json.loads(run("jobs", "list", "--json", *place))["jobs"]
    assert listed["id"] == job
    assert "finished" in run("jobs", "list", *place)
    assert "indexed" in run("jobs", "show", job, *place)
    rows = list(csv.DictReader(io.StringIO(run("jobs", "report", job, *place))))
    assert {row["fate"] for row in rows} == {"indexed"}
    assert {row["instance"] for row in rows} == {str(path) for path in images.iterdir()}
    out = tmp_path / "report.csv"
    assert "14 instances" in run("jobs", "report", job, "-o", out, *place)
    assert list(csv.DictReader(io.StringIO(out.read_text()))) == rows


def test_refusals_are_told_by_reason(images, place, worker, indexed, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    image = min(images.iterdir())
    (folder / image.name).write_bytes(image.read_bytes())
    (folder / "empty").write_bytes(b"")
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("words")
    job = json.loads(run("jobs", "submit", folder, "--json", *place))["job"]
    run(*worker)
    reasons = [("empty-file", 1), ("not-an-image", 2)]

    told = json.loads(run("jobs", "report", job, "--json", *place))
    assert [(one["reason"], one["count"]) for one in told["refused_by_reason"]] == reasons
    assert told["refused_by_reason"][0]["what_to_do"] == "send it again from its source"
    assert "instances" not in told
    words = run("jobs", "report", job, "-o", tmp_path / "all.csv", *place)
    assert words.index("empty-file") < words.index("not-an-image")
    assert "send it again" in words

    only = [*place, "--reason", "not-an-image"]
    told = json.loads(run("jobs", "report", job, "--json", *only))
    assert [Path(one["instance"]).name for one in told["instances"]] == ["a.txt", "b.txt"]
    run("jobs", "report", job, "-o", tmp_path / "some.csv", *only)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "some.csv").read_text())))
    assert {(row["fate"], row["reason"]) for row in rows} == {("refused", "not-an-image")}
    assert len(rows) == 2

    model = ["--model", str(indexed.settings.model)]
    told = json.loads(run("info", "--json", *only, *model))
    assert [(one["reason"], one["count"]) for one in told["refused_by_reason"]] == reasons
    assert {one["reason"] for one in told["refusals"]} == {"not-an-image"}
    assert told["missing_frames"] == []
    words = run("info", "--refusals", *place, *model)
    assert "refused: not-an-image 2: nothing" in words


@pytest.mark.slow
def test_a_job_is_paused_resumed_cancelled_and_retried(images, place, worker):
    job = json.loads(run("jobs", "submit", images, "--json", *place))["job"]
    assert "paused" in run("jobs", "pause", job, *place)
    run(*worker)
    assert json.loads(run("jobs", "show", job, "--json", *place))["done"] == 0
    assert "goes on" in run("jobs", "resume", job, *place)
    run("jobs", "cancel", job, *place)
    with pytest.raises(JobError, match="is cancelled"):
        run("jobs", "resume", job, *place)
    again = json.loads(run("jobs", "submit", images, "--json", *place))["job"]
    run(*worker)
    assert json.loads(run("jobs", "retry", again, "--json", *place)) == {"tasks": 0}


def test_mistakes_show_when_a_job_is_made(images, place):
    with pytest.raises(QueryError, match="does not exist"):
        run("jobs", "submit", images / "nowhere", *place)
    with pytest.raises(QueryError, match="folders and files, or one source"):
        run("jobs", "submit", *place)
    with pytest.raises(QueryError, match="DICOMweb"):
        run("jobs", "submit", images, "--since", "2024-01-01", *place)
    with pytest.raises(SettingsError, match=r"no source 'pacs'.*\[sources\.pacs\]"):
        run("jobs", "submit", "--source", "pacs", *place)
    for share in ("120%", "a fifth", "-1"):
        with pytest.raises(QueryError, match=f"--at-most is '{share}'"):
            run("jobs", "submit", images, "--at-most", share, *place)
    with pytest.raises(QueryError, match="would remove all that --since"):
        run("jobs", "submit", "--source", "pacs", "--modality", "CT", "--delete-vanished", *place)
    with pytest.raises(QueryError, match=r"'soon'.*interactive, bulk"):
        run("jobs", "submit", images, "--priority", "soon", *place)
    assert json.loads(run("jobs", "list", "--json", *place))["jobs"] == []


@pytest.mark.slow
def test_a_worker_ends_when_it_is_told_to(images, place, indexed):
    run("jobs", "submit", images, *place)
    worker = CommandProcess(["worker", *place, "--model", indexed.settings.model])
    try:
        ends = time.monotonic() + 60
        while "finished" not in run("jobs", "show", 1, *place):
            assert time.monotonic() < ends
            time.sleep(0.3)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.communicate()


@pytest.mark.slow
def test_index_takes_named_sources_and_forgets_what_vanished(images, place, indexed, tmp_path):
    folder = tmp_path / "shelf"
    folder.mkdir()
    for path in sorted(images.iterdir())[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    config = tmp_path / "precedent.toml"
    config.write_text(f'[sources.shelf]\nkind = "folder"\npaths = ["{folder}"]\n')
    model = ["--model", str(indexed.settings.model)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRECEDENT_CONFIG", str(config))
        told = json.loads(run("index", "--source", "shelf", "--json", *place, *model))
        assert told["indexed"] == 3
        next(folder.iterdir()).unlink()
        command = ["index", "--source", "shelf", "--delete-vanished", "--json", *place, *model]
        with pytest.raises(SourceError, match=r"1 of 3 .* --at-most 100%"):
            run(*command)
        told = json.loads(run(*command, "--at-most", "34%"))
        assert (told["unchanged"], told["removed"]) == (2, 1)
        assert json.loads(run("info", "--json", *place, *model))["points"] == 2
