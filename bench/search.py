"""Search benchmark: recall, latency, memory, disk and build time; FAISS, usearch and plain Qdrant.

    python -m bench.search [DATA] [--counts 10000 100000] [--kinds synthetic collapsed real]

DATA has the images of kind ``real`` (see ``bench.collection``). The systems run one after another
on the same vectors, each in a process of its own. Finished measurements are not repeated, so an
interrupted run can be continued. After a change of our engine, ``--fresh --systems hash precise
hash-quantised`` measures our profiles again.

``bench/results/search.json``, which ``precedent plan`` reads:

systems: one for each kind, count and system.
    build: ``seconds`` by stage (ours and Qdrant: upsert, optimise) and their ``total``. For plain
        Qdrant the upsert includes making points from arrays; ours gets ready-made points.
        ``cpu_seconds`` and ``cpu_total``: the same in seconds of all processors.
    disk_bytes: size of the saved index, with the vectors if candidates are re-ranked by them.
    resident_bytes: growth of the process by all searches, and by building if the index is kept in
        memory. Without pages of the vectors' file, but with other mapped files.
        ``anonymous_bytes``: the part that is not mapped from files.
    cores: cores kept busy while ``building`` and ``searching``; above 1 with a pool of threads.
    searches: by knob value and k: ``p50_ms``, ``p99_ms`` of single queries after a warm-up pass
        over the same queries, ``recall`` of the k exact neighbours; for ours also ``rungs``,
        ``median_candidates``, what the index has measured of its ``cells``, and
        ``share_outside_store``, the share of time in our Python; for plain Qdrant ``segments`` and
        ``vectors_in_graph``, which is 0 for a small shard.
    ranking, throughput: for ``hash``: time of ranking in content order at k = 100; several threads
        that search at the same time, without facets, alone and while another one writes: queries
        per second, ``p50_ms``, ``p99_ms``.
growth: exponents of p50 at k = 10 and of build time over the counts, by log-log least squares.
ratios: processor seconds of building ``hash`` and ``precise`` over those of plain Qdrant's graph;
    p50 at k = 10 of both over plain Qdrant's, for ``hash`` at the recall that it has or the
    highest there is, for ``precise`` at the same ef; p50 of ``hash`` over that of the fastest peer
    with at least the same recall.
api/measured.json: the figures that ``precedent plan`` uses, those of an embedded index.
capacity: for our profiles: ``disk_bytes_per_image``, ``resident_bytes_per_image``,
    ``upsert_per_second``, ``optimise_per_second`` (images; null if the store had nothing to do),
    ``p50_ms`` at k = 10.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.machine import machine, remember, write_results
from bench.searching import Job, make
from bench.stores import OURS, PEERS
from bench.vectors import KINDS, SCRATCH, prepared
from engine.store.arrangement import EF as OUR_EF

RESULTS = Path(__file__).parent / "results" / "search"
PLOT = Path(__file__).parents[1] / "docs" / "images" / "search.png"
SYSTEMS = (*OURS, *PEERS)


def summary(systems: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The content of search.json, except for the machine."""
    whole = [one for one in systems if "failed" not in one]
    return {
        "systems": list(systems),
        "growth": growth(whole),
        "ratios": ratios(whole),
        "capacity": [capacity(one) for one in whole if one["system"] in OURS],
    }


def growth(systems: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    series: dict[tuple[str, str, Any], list[tuple[int, float, float]]] = {}
    for one in systems:
        for search in at_ten(one):
            point = (one["count"], search["p50_ms"], one["build"]["total"])
            series.setdefault((one["kind"], one["system"], search["value"]), []).append(point)
    found = []
    for (kind, system, value), line in series.items():
        if len(line) > 1:
            n, p50, build = np.array(line, np.float64).T
            row = {"kind": kind, "system": system, "value": value}
            found.append(row | {"p50": exponent(n, p50), "build": exponent(n, build)})
    return found


def exponent(n: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The exponent b of y = a · n^b, by least squares on the logarithms."""
    return round(float(np.polyfit(np.log(n), np.log(np.maximum(y, 1e-6)), 1)[0]), 3)


def ratios(systems: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    archives: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for one in systems:
        archives.setdefault((one["kind"], one["count"]), {})[one["system"]] = one
    found = []
    for (kind, count), there in archives.items():
        if "hash" not in there:
            continue
        ours = at_ten(there["hash"])[0]
        row: dict[str, Any] = {"kind": kind, "count": count, "recall": ours["recall"]}
        if "qdrant-hnsw" in there:
            row |= beside_qdrant(there)
        matching = {name: matched(there[name], ours["recall"]) for name in PEERS if name in there}
        able = {name: search for name, search in matching.items() if search is not None}
        if able:
            fastest = min(able, key=lambda name: able[name]["p50_ms"])
            row["fastest_peer"] = f"{fastest} {able[fastest]['value'] or ''}".strip()
            row["p50_over_fastest_peer"] = round(ours["p50_ms"] / able[fastest]["p50_ms"], 2)
        found.append(row)
    return found


def beside_qdrant(there: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Our profiles over plain Qdrant's graph; all systems are of the same archive."""
    plain = there["qdrant-hnsw"]
    found = {}
    for name in ("hash", "precise"):
        if name not in there:
            continue
        ours = at_ten(there[name])[0]
        build = there[name]["build"]["cpu_total"] / plain["build"]["cpu_total"]
        found[f"{name}_build_cpu_over_qdrant"] = round(build, 3)
        if name == "hash":
            best = max(at_ten(plain), key=lambda search: search["recall"])
            peer = matched(plain, ours["recall"]) or best
        else:
            peer = next(search for search in at_ten(plain) if search["value"] == OUR_EF)
        found[f"{name}_p50_over_qdrant"] = round(ours["p50_ms"] / peer["p50_ms"], 2)
    return found


def at_ten(one: dict[str, Any]) -> list[dict[str, Any]]:
    return [search for search in one["searches"] if search["k"] == 10]


def matched(one: dict[str, Any], least: float) -> dict[str, Any] | None:
    """The fastest search at k = 10 with at least this recall; None if no knob value reaches it."""
    able = [search for search in at_ten(one) if search["recall"] >= least]
    return min(able, key=lambda search: search["p50_ms"], default=None)


def capacity(one: dict[str, Any]) -> dict[str, Any]:
    seconds, count = one["build"]["seconds"], one["count"]
    return {
        "kind": one["kind"],
        "count": count,
        "profile": one["system"],
        "disk_bytes_per_image": round(one["disk_bytes"] / count, 1),
        "resident_bytes_per_image": round(one["resident_bytes"] / count, 1),
        "upsert_per_second": round(count / seconds["upsert"], 1),
        "optimise_per_second": (
            round(count / seconds["optimise"], 1) if seconds["optimise"] >= 0.01 else None
        ),
        "p50_ms": at_ten(one)[0]["p50_ms"],
    }


def measured(figures: dict[str, Any]) -> dict[str, Any]:
    """What ``precedent plan`` reckons with for an embedded index: all as it is at the largest count
    that was measured, and the growth over the counts of the same kind of vectors."""
    whole = [one for one in figures["systems"] if "failed" not in one and one["system"] in OURS]
    kind = max(KINDS, key=lambda kind: sorted({o["count"] for o in whole if o["kind"] == kind})[1:])
    profiles = {}
    for name in OURS:
        there = sorted(
            (one for one in whole if (one["kind"], one["system"]) == (kind, name)),
            key=lambda one: one["count"],
        )
        if len(there) < 2:
            continue
        n = np.array([one["count"] for one in there], np.float64)
        last = capacity(there[-1])
        bytes_ = ("disk_bytes", "anonymous_bytes", "resident_bytes")
        profiles[name] = {
            "count": last["count"],
            **{key: round(there[-1][key] / last["count"], 1) for key in bytes_},
            "upsert_per_second": last["upsert_per_second"],
            "optimise_per_second": last["optimise_per_second"],
            "p50_ms": last["p50_ms"],
            "growth": exponent(n, np.array([at_ten(one)[0]["p50_ms"] for one in there])),
        }
    on = machine()
    return {"machine": f"{on['cores']} cores, {on['cpu']}", "kind": kind, "profiles": profiles}


def show(console: Console, figures: dict[str, Any]) -> None:
    for kind, count in dict.fromkeys((one["kind"], one["count"]) for one in figures["systems"]):
        table = Table(title=f"{kind}, {count:,} images; milliseconds for one query")
        columns = ("build s", "disk MB", "RSS MB", "knob", "p50 @10", "p99", "recall")
        table.add_column("system")
        for name in (*columns, "p50 @100", "p99", "recall"):
            table.add_column(name, justify="right")
        for one in figures["systems"]:
            if (one["kind"], one["count"]) != (kind, count):
                continue
            if "failed" in one:
                table.add_row(one["system"], one["failed"])
                continue
            head = [one["system"], f"{one['build']['total']:.1f}"]
            head += [f"{one[name] / 1e6:.0f}" for name in ("disk_bytes", "resident_bytes")]
            for ten, hundred in zip(one["searches"][::2], one["searches"][1::2], strict=True):
                cells = [ten["p50_ms"], ten["p99_ms"], ten["recall"]]
                cells += [hundred["p50_ms"], hundred["p99_ms"], hundred["recall"]]
                knob = "" if ten["value"] is None else f"{ten['knob']} {ten['value']}"
                table.add_row(*head, knob, *(f"{cell:.3f}" for cell in cells))
                head = [""] * 4
        console.print(table)
    figures = {**figures, "several at once": several(figures["systems"])}
    for title in ("several at once", "ratios", "growth", "capacity"):
        if figures[title]:
            table = Table(*dict.fromkeys(k for row in figures[title] for k in row), title=title)
            names = [str(column.header) for column in table.columns]
            for row in figures[title]:
                table.add_row(*(str(row.get(name, "")) for name in names))
            console.print(table)


def several(systems: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of searches at the same time, each with its p99 over the one without writes."""
    rows = []
    for one in systems:
        measured = one.get("throughput", [])
        for row in measured:
            quiet = next(r for r in measured if r["threads"] == row["threads"] and not r["writing"])
            share = round(row["p99_ms"] / quiet["p99_ms"], 2)
            rows.append(
                {"kind": one["kind"], "count": one["count"], **row, "p99 / without writes": share}
            )
    return rows


def plot(figures: dict[str, Any], path: Path) -> None:
    """Recall against p50 at each count, and p50 against the count at the recall of ``hash``."""
    import matplotlib.pyplot as plt

    systems = [one for one in figures["systems"] if "failed" not in one]
    kinds = list(dict.fromkeys(one["kind"] for one in systems))
    counts = sorted({one["count"] for one in systems})
    wide = len(counts) + 1
    figure, axes = plt.subplots(
        len(kinds),
        wide,
        figsize=(4.2 * wide, 3.8 * len(kinds)),
        squeeze=False,
        layout="constrained",
    )
    colours = {name: plt.get_cmap("tab10")(i) for i, name in enumerate(SYSTEMS)}
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    least = {(r["kind"], r["count"]): r["recall"] for r in figures["ratios"]}
    for one in systems:
        ours, name = one["system"] in OURS, one["system"]
        row = axes[kinds.index(one["kind"])]
        by_speed = sorted(
            (search for search in at_ten(one) if search["value"] != "with facets"),
            key=lambda search: search["p50_ms"],
        )
        row[counts.index(one["count"])].plot(
            [search["p50_ms"] for search in by_speed],
            [search["recall"] for search in by_speed],
            marker="*" if ours else ".",
            ls="none" if ours else "-",
            color=colours[name],
        )
        level = least.get((one["kind"], one["count"]), 0.0)
        chosen = at_ten(one)[0] if ours else matched(one, level)
        if chosen is not None:
            lines.setdefault((one["kind"], name), []).append((one["count"], chosen["p50_ms"]))
    for (kind, name), line in lines.items():
        axes[kinds.index(kind)][-1].plot(
            *zip(*sorted(line), strict=True),
            marker="*" if name in OURS else ".",
            color=colours[name],
            label=name,
        )
    for kind, row in zip(kinds, axes, strict=True):
        for axis, count in zip(row[:-1], counts, strict=True):
            axis.set(title=f"{kind}, {count:,} images", xlabel="p50, ms", ylabel="recall@10")
            axis.set(xscale="log")
        row[-1].set(title=f"{kind}, recall@10 at least that of hash", xscale="log", yscale="log")
        row[-1].set(xlabel="images", ylabel="p50, ms")
        row[-1].legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def measurements(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    kinds = arguments.kinds or [kind for kind in KINDS if arguments.data or kind != "real"]
    systems = []
    for kind in kinds:
        for count in arguments.counts:
            folder = prepared(kind, count, arguments.queries, data=arguments.data)
            for system in arguments.systems:
                job = Job(kind, count, system, str(folder.resolve()), arguments.seconds)
                print(f"{kind}, {count:,}: {system}", file=sys.stderr)
                systems.append(make(job, RESULTS, SCRATCH, arguments.timeout, arguments.fresh))
    return systems


def known(results: Path) -> list[dict[str, Any]]:
    """All finished measurements, in the order of the tables."""
    found = [json.loads(path.read_text()) for path in results.glob("*.json")]
    return sorted(found, key=lambda one: (one["kind"], one["count"], SYSTEMS.index(one["system"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of the kind 'real'")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", choices=KINDS, nargs="+", help="all, but real only with DATA")
    parser.add_argument("--systems", choices=SYSTEMS, nargs="+", default=SYSTEMS)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60, help="most of one pass of queries")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for one system")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--only-known", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    systems = [] if arguments.only_known else measurements(arguments)
    figures = summary([*known(RESULTS), *(one for one in systems if "failed" in one)])
    show(Console(width=150), figures)
    plot(figures, PLOT)
    embedded = measured(figures)
    if embedded["profiles"]:
        print(remember(embedded=embedded))
    print(write_results("search", figures))


if __name__ == "__main__":
    main()
