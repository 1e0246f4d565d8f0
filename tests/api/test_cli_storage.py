"""``precedent profile``, ``snapshot``, ``restore`` and ``plan``, and deleting what was restored."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import run

from api.cli.plan import Measured, needs
from engine.errors import QueryError, StoreError
from engine.settings import Settings
from engine.store.base import Filter, Profile
from indexer.archive import Archive

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(indexed, tmp_path: Path) -> Settings:
    return indexed.copy(tmp_path / "data")


@pytest.fixture
def place(settings: Settings) -> list[str]:
    return ["--data-dir", str(settings.data_dir), "--model", str(settings.model)]


def hits(settings: Settings) -> list[Any]:
    from engine.search.query import Query

    with Archive(settings) as archive:
        first = next(archive.store.scroll(Filter()))
        return [hit.id for hit in archive.engine.search_like(first.id, Query(10, exact=True)).hits]


def test_the_profile_is_told_and_changed_and_stays(settings, place):
    before = hits(settings)
    assert "hash, not quantised" in run("profile", *place)
    told = json.loads(run("profile", "precise", "--quantised", "--json", *place))
    assert (told["graph"], told["quantised"], told["images"]) == ("precise", True, 35)
    with Archive(settings) as archive:
        assert archive.store.profile == Profile("precise", True)
    assert hits(settings) == before
    assert "hash, not quantised" in run("profile", "hash", *place)


def test_an_unknown_profile_changes_nothing(settings, place):
    with pytest.raises(QueryError, match=r"fast.*hash, precise"):
        run("profile", "fast", *place)
    assert "hash, not quantised" in run("profile", *place)


def test_a_snapshot_fills_another_index(settings, place, tmp_path):
    file = tmp_path / "points.snapshot"
    assert "35 images written" in run("snapshot", file, *place)
    before = hits(settings)
    other = ["--data-dir", str(tmp_path / "other"), "--model", str(settings.model)]
    assert json.loads(run("restore", file, "--json", *other)) == {"restored": 35}
    assert json.loads(run("restore", file, "--json", *other)) == {"restored": 35}
    moved = settings.model_copy(update={"data_dir": tmp_path / "other"})
    assert hits(moved) == before


def test_a_file_that_is_there_is_replaced_only_if_asked(settings, place, tmp_path):
    file = tmp_path / "points.snapshot"
    file.write_bytes(b"kept")
    with pytest.raises(QueryError, match=r"points\.snapshot', which is there already.*--force"):
        run("snapshot", file, *place)
    assert file.read_bytes() == b"kept"
    assert "35 images written" in run("snapshot", file, "--force", *place)
    assert file.read_bytes() != b"kept"


def test_a_restored_index_has_the_precision_of_its_snapshot(settings, place, tmp_path):
    file = tmp_path / "points.snapshot"
    made_in = json.loads((settings.data_dir / "index" / "collection.json").read_text())
    other_one = {"fp32": "bf16", "bf16": "fp32"}[made_in["precision"]]
    noted = json.dumps({**made_in, "precision": other_one})
    (settings.data_dir / "index" / "collection.json").write_text(noted)
    run("snapshot", file, *place)
    other = ["--data-dir", str(tmp_path / "other"), "--model", str(settings.model)]
    run("restore", file, *other)
    told = json.loads(run("info", "--json", *other))
    assert told["index_precision"] == told["precision"] == other_one


def test_what_was_restored_without_a_ledger_can_be_deleted(settings, place, tmp_path):
    file = tmp_path / "points.snapshot"
    run("snapshot", file, *place)
    other = ["--data-dir", str(tmp_path / "other"), "--model", str(settings.model)]
    run("restore", file, *other)
    told = json.loads(run("delete", "--study", "1.2.4.1", "--yes", "--json", *other))
    assert told == {"instances": 0, "points": 2}
    moved = settings.model_copy(update={"data_dir": tmp_path / "other"})
    with Archive(moved) as archive:
        assert archive.store.count(Filter()) == 33
        assert "1.2.4.1" not in {point.record.study for point in archive.store.scroll(Filter())}


def test_what_is_no_snapshot_is_refused_and_makes_no_points(settings, place, tmp_path):
    file = tmp_path / "holiday.jpg"
    file.write_bytes(b"no snapshot")
    with pytest.raises(StoreError, match=r"holiday\.jpg"):
        run("restore", file, *place)
    assert len(hits(settings)) == 10


# Capacity

MEASURED = Measured(
    count=1_000_000,
    disk_bytes=4000,
    anonymous_bytes=1000,
    resident_bytes=3000,
    upsert_per_second=5000,
    optimise_per_second=1000,
    p50_ms=10,
    growth=0.5,
    indexing_per_second=250,
    machine="a machine",
    graph=True,
)
PLAIN: dict[str, Any] = {
    "dim": 256, "bits": 64, "quantised": False, "replicas": 1, "workers": 1, "rate": None,
    "node_memory": 64e9, "node_disk": 2e12,
}  # fmt: skip


def test_needs_follow_from_what_was_measured():
    one = needs(MEASURED, 9_000_000, **PLAIN)
    assert one.disk_bytes == 9e6 * 4000 * 2
    assert one.memory_bytes == 9e6 * 1000 * 1.25
    assert one.fast_memory_bytes == 9e6 * 3000 * 1.25
    assert (one.nodes, one.shards) == (1, 1)
    assert one.indexing_hours == pytest.approx(10)
    assert one.arranging_hours == pytest.approx(2.5)
    assert one.p50_ms == pytest.approx(30)
    # Without a graph everything is compared, whatever small archives seemed to say.
    flat = needs(replace(MEASURED, graph=False), 9_000_000, **PLAIN)
    assert flat.p50_ms == pytest.approx(90)


def test_replicas_workers_and_wider_vectors_count():
    one = needs(MEASURED, 9_000_000, **PLAIN)
    two = needs(MEASURED, 9_000_000, **PLAIN | {"replicas": 2, "workers": 4})
    assert two.disk_bytes == 2 * one.disk_bytes
    # Never two.
    assert (one.nodes, two.nodes) == (1, 3)
    assert two.indexing_hours == pytest.approx(one.indexing_hours / 4)
    wide = needs(MEASURED, 9_000_000, **PLAIN | {"dim": 512, "bits": 128})
    assert wide.disk_bytes == 9e6 * (4000 + 512 + 120) * 2
    large = needs(MEASURED, 1_000_000_000, **PLAIN)
    assert large.nodes == 20  # 1,250 GB of memory on nodes of 64
    assert large.shards == 60
    assert large.shards % large.nodes == 0


@pytest.mark.parametrize("profile", ["hash", "precise", "hash-quantised"])
def test_a_plan_shows_its_sums(profile):
    text = run("plan", "--images", "50M", "--profile", profile)
    assert "50,000,000" in text
    assert "Measured up to" in text
    for word in ("disk", "memory", "Qdrant nodes", "shards", "indexing"):
        assert word in text
    told = json.loads(run("plan", "--images", "50M", "--profile", profile, "--json"))
    assert told["images"] == 50_000_000
    assert 0 < told["memory_bytes"] <= told["fast_memory_bytes"]
    more = json.loads(run("plan", "--images", "100M", "--profile", profile, "--json"))
    assert more["disk_bytes"] == pytest.approx(2 * told["disk_bytes"])


def test_a_small_archive_is_planned_for_one_machine():
    text = run("plan", "--images", "800k")
    assert "machines" in text
    assert "Qdrant nodes" not in text
    told = json.loads(run("plan", "--images", "800k", "--json"))
    assert (told["store"], told["nodes"]) == ("embedded", 1)
    # Cells: four times as many images take about twice as long, not four times.
    more = json.loads(run("plan", "--images", "3M", "--json"))
    assert more["p50_ms"] < 3 * told["p50_ms"]
    copied = json.loads(run("plan", "--images", "800k", "--replicas", "2", "--json"))
    assert (copied["nodes"], copied["shards"]) == (3, 3)
    served = json.loads(run("plan", "--images", "800k", "--store", "server", "--json"))
    assert served["store"] == "server"
    assert served["disk_bytes"] != told["disk_bytes"]
    for arguments in (["--images", "50M"], ["--images", "800k", "--replicas", "2"]):
        assert json.loads(run("plan", *arguments, "--json"))["store"] == "server"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--images", "1M", "--store", "cloud"], "cloud"),
        (["--images", "1M", "--store", "embedded", "--profile", "hash-quantised"], "quantised"),
        (["--images", "1M", "--store", "embedded", "--replicas", "2"], "--replicas"),
        (["--images", "many"], "many"),
        (["--images", "0"], "'0'"),
        (["--images", "-5M"], "-5M"),
        (["--images", "1M", "--profile", "fast"], "fast"),
        (["--images", "1M", "--format", "tiff"], "tiff"),
        (["--images", "1M", "--gpu"], "--images-per-second"),
        (["--images", "1M", "--replicas", "0"], "--replicas"),
        (["--images", "1M", "--bits", "12"], "12"),
        (["--images", "1M", "--node-disk-gb", "nan"], "nan"),
    ],
)
def test_a_plan_for_nothing_sensible_is_refused(arguments, named):
    with pytest.raises(QueryError, match=named):
        run("plan", *arguments)


def test_a_gpu_s_rate_is_taken_from_the_one_who_measured_it():
    text = run("plan", "--images", "36M", "--gpu", "--images-per-second", "2000")
    assert "5.0 h" in text


def test_indexing_is_reckoned_from_what_was_measured_of_the_format():
    rows = json.loads((ROOT / "bench" / "results" / "indexing.json").read_text())["rows"]
    hours = []
    for form, row in (("uncompressed", "DICOM, uncompressed"), ("jpeg-2000", "JPEG 2000")):
        (measured,) = (one for one in rows if row in one["format"])
        text = run("plan", "--images", "36M", "--format", form)
        assert f"× {measured['instances_per_second']:,.0f} images/s)" in text
        assert f"{measured['kib_a_file']:.0f} KiB each" in text
        told = json.loads(run("plan", "--images", "36M", "--format", form, "--json"))
        hours.append(told["indexing_hours"])
        assert hours[-1] == pytest.approx(10_000 / measured["instances_per_second"], rel=1e-3)
    assert hours[1] > hours[0]
    assert "KiB" not in run("plan", "--images", "36M", "--images-per-second", "2000")
