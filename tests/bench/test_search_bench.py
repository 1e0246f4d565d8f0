"""What the search benchmark reports follows from what it measured."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from bench.search import SYSTEMS, exponent, matched, plot, show, summary
from bench.searching import Job, make
from bench.stores import OURS, PEERS
from bench.vectors import prepared

JOB = Job("synthetic", 2000, "hash", "vectors", 0.2)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One of our profiles and one peer on 2,000 images, each from a process of its own."""
    scratch = tmp_path_factory.mktemp("scratch")
    folder = str(prepared("synthetic", 2000, 20, scratch=scratch))
    jobs = [replace(JOB, system=system, vectors=folder) for system in ("hash", "faiss-flat")]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda job: make(job, scratch / "r", scratch, 120, False), jobs))
    again = [make(job, scratch / "r", scratch, 0, False) for job in jobs]
    assert again == found
    return {one["system"]: one for one in found}


def made_up(system, count, p50, recall, build):
    stages = {"upsert": build / 2, "optimise": build / 2}
    return {
        "kind": "synthetic",
        "count": count,
        "system": system,
        "build": {"seconds": stages, "total": build, "cpu_total": 2 * build},
        "disk_bytes": 1000 * count,
        "resident_bytes": 10 * count,
        "searches": [
            {"knob": "ef", "value": value, "k": k, "p50_ms": ms, "p99_ms": ms, "recall": r}
            for value, ms, r in zip((16, 64), p50, recall, strict=True)
            for k in (10, 100)
        ],
    }


def shown(figures):
    console = Console(width=160, file=io.StringIO())
    show(console, figures)
    return console.file.getvalue()


SYSTEM_FIGURES = [
    made_up(system, count, p50, recall, build * count / 1000)
    for count in (1000, 4000)
    for system, p50, recall, build in (
        ("hash", (1.0, 2.0), (0.95, 1.0), 1.0),
        ("faiss-hnsw", (0.1, 0.5), (0.9, 0.99), 3.0),
        ("qdrant-hnsw", (0.4, 0.8), (0.94, 0.98), 10.0),
    )
]


def test_a_peer_counts_at_the_speed_that_has_our_recall():
    assert matched(SYSTEM_FIGURES[1], 0.95)["value"] == 64
    assert matched(SYSTEM_FIGURES[1], 0.999) is None
    (first, _) = summary(SYSTEM_FIGURES)["ratios"]
    assert first["fastest_peer"] == "faiss-hnsw 64"
    assert first["p50_over_fastest_peer"] == 2.0
    assert first["hash_build_cpu_over_qdrant"] == 0.1
    # At the least recall that is as high as ours.
    assert first["hash_p50_over_qdrant"] == 1.25


def test_growth_is_the_power_of_the_count():
    n = np.array([1e4, 1e5, 1e6])
    assert exponent(n, 3 * n**0.5) == pytest.approx(0.5)
    found = {(row["system"], row["value"]): row for row in summary(SYSTEM_FIGURES)["growth"]}
    assert found["hash", 16]["p50"] == pytest.approx(0)
    assert found["hash", 16]["build"] == pytest.approx(1)


def test_capacity_is_told_for_an_image():
    first, second = summary(SYSTEM_FIGURES)["capacity"]
    assert (first["profile"], first["count"], second["count"]) == ("hash", 1000, 4000)
    assert first["disk_bytes_per_image"] == 1000
    assert first["resident_bytes_per_image"] == 10
    assert first["upsert_per_second"] == first["optimise_per_second"] == 2000
    assert first["p50_ms"] == 1.0


def test_a_system_that_failed_is_shown_and_left_out_of_all_figures():
    failed = {"kind": "synthetic", "count": 1000, "system": "usearch-hnsw", "failed": "too long"}
    figures = summary([*SYSTEM_FIGURES, failed])
    assert figures["systems"][-1] == failed
    assert figures["ratios"] == summary(SYSTEM_FIGURES)["ratios"]
    assert "too long" in shown(figures)


@pytest.mark.parametrize(
    "change",
    [{"system": "precise"}, {"vectors": "others"}, {"seconds": 9.0}, {"count": 9}],
    ids=str,
)
def test_whatever_decides_a_measurement_changes_its_file(change):
    assert replace(JOB, **change).file != JOB.file
    assert replace(JOB, place="elsewhere").file == JOB.file


def test_what_took_too_long_is_told_and_not_kept(tmp_path):
    found = make(replace(JOB, system="faiss-flat"), tmp_path / "r", tmp_path, 0.01, False)
    assert "longer than" in found["failed"]
    assert not (tmp_path / "r").exists()


def test_systems_have_names_of_their_own():
    assert len(SYSTEMS) == len({*OURS, *PEERS}) == len(OURS) + len(PEERS)


@pytest.mark.slow
def test_comparing_with_everything_finds_everything(measured):
    assert {search["recall"] for search in measured["faiss-flat"]["searches"]} == {1.0}
    exactly = [s for s in measured["hash"]["searches"] if s["value"] == "exactly"]
    assert min(search["recall"] for search in exactly) > 0.98


@pytest.mark.slow
def test_our_search_is_told_with_its_evidence(measured):
    plainly = measured["hash"]["searches"][0]
    assert (plainly["value"], plainly["k"]) == ("plainly", 10)
    assert plainly["recall"] > 0.8
    assert sum(plainly["rungs"].values()) == plainly["queries"]
    assert 0 < plainly["share_outside_store"] < 1
    assert plainly["p50_ms"] <= plainly["p99_ms"]
    assert measured["hash"]["build"]["seconds"].keys() == {"upsert", "optimise"}
    assert measured["hash"]["ranking"]["points"] >= 100
    both = [(one["threads"], one["writing"]) for one in measured["hash"]["throughput"]]
    assert both == [(n, writing) for writing in (False, True) for n in (1, 4, 16)]
    for one in measured["hash"]["throughput"]:
        assert one["queries_per_second"] > 0
        assert 0 < one["p50_ms"] <= one["p99_ms"]


@pytest.mark.slow
def test_memory_and_disk_are_of_the_right_size(measured):
    flat = measured["faiss-flat"]
    vectors = 2000 * 256 * 4
    assert vectors < flat["disk_bytes"] < 1.1 * vectors
    assert 0.9 * vectors < flat["resident_bytes"] < 16 * vectors
    assert measured["hash"]["disk_bytes"] > 0


@pytest.mark.slow
def test_measurements_are_shown_and_drawn(measured, tmp_path):
    figures = summary(list(measured.values()))
    assert "faiss-flat" in shown(figures)
    plot(figures, tmp_path / "images" / "search.png")
    assert (tmp_path / "images" / "search.png").stat().st_size > 10_000
