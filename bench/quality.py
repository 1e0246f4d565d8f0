"""Quality benchmark: SCH with DaRF against its peers and ablations, with equal data and schedule.

    python -m bench.quality FOLDER [--table main|structure|knee|long] [--jobs 2]

FOLDER has the images and ``manifest.csv`` (see ``bench.collection``). Finished runs are not
repeated, so an interrupted table can be continued. ``--only-known`` prints the finished runs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from bench.machine import write_results
from bench.runs import RESULTS, Bench, Run, Scale, make_all, unpacked
from bench.tables import show
from engine.evaluation.metrics import paired_bootstrap
from engine.training.peers import PEERS, PeerConfig
from engine.training.sch import SchConfig

FULL = "SCH with DaRF"
PEER_NAMES = {
    "hashnet": "HashNet", "dch": "DCH", "greedyhash": "GreedyHash", "csq": "CSQ", "dpn": "DPN",
    "orthohash": "OrthoHash",
}  # fmt: skip

# Ours: alike labels of unlike structure placed apart.
SPREAD = SchConfig(spread=0.3, separate_means=True)

# What differs from the full method, one thing at a time.
ABLATIONS: dict[str, dict[str, Any]] = {
    "no fingerprints": {"loss": SchConfig(fingerprint="none")},
    "cosine fingerprints": {"loss": SchConfig(fingerprint="cosine")},
    "class weights off": {"loss": SchConfig(weighted=False)},
    "separate means": {"loss": SchConfig(separate_means=True)},
    "spread .3": {"loss": SPREAD},
    "L_Q as released": {"loss": SchConfig(centred_quantisation=True)},
    "MLP head": {"head": "mlp"},
    "deep tap only": {"fusion": "deep"},
    "plain concatenation": {"fusion": "concat"},
    "no pixel transformer": {"fusion": "cross"},
    "no shallow tap": {"fusion": "pixels"},
    "roles swapped": {"fusion": "swapped"},
    "P×K batches, K = 8": {"images_per_class": 8},
}


def main_table(scale: Scale, bits: Sequence[int], seeds: Sequence[int]) -> list[Run]:
    """The runs of the main table, the most informative (full method, bottleneck peers) first."""
    runs = []
    for part in (_full, _bottleneck, _ablations, _with_darf):
        for b in bits:
            if part is _ablations and b != 64:
                continue  # ablations are run at one code length only
            runs += [run for seed in seeds for run in part(Run("", scale, b, seed))]
    return runs


def _full(base: Run) -> list[Run]:
    return [replace(base, row=FULL)]


def _bottleneck(base: Run) -> list[Run]:
    return [
        replace(base, row=f"{PEER_NAMES[peer]}, bottleneck", loss=PeerConfig(peer), fusion="deep")
        for peer in PEERS
    ]


def _with_darf(base: Run) -> list[Run]:
    return [
        replace(base, row=f"{PEER_NAMES[peer]} with DaRF", loss=PeerConfig(peer)) for peer in PEERS
    ]


def _ablations(base: Run) -> list[Run]:
    return [replace(base, row=row, **change) for row, change in ABLATIONS.items()]


def best_table(scale: Scale, seeds: Sequence[int]) -> list[Run]:
    """The runs of the full method, of the same without shallow tap and transformer, and of the
    peers that are best in the main table.
    """
    runs = []
    for seed in seeds:
        base = Run("", scale, 64, seed)
        best = {f"{PEER_NAMES[peer]}, bottleneck" for peer in ("csq", "greedyhash", "orthohash")}
        runs += [*_full(base), replace(base, row="deep tap only", **ABLATIONS["deep tap only"])]
        runs += [run for run in _bottleneck(base) if run.row in best]
    return runs


def structure_table(scale: Scale, seeds: Sequence[int]) -> list[Run]:
    """Runs that are trained with the coarse classes only and evaluated with the fine ones."""
    runs = []
    for seed in seeds:
        base = Run("", scale, 64, seed, by="class")
        spread = replace(base, row=f"{FULL}, spread .3", loss=SPREAD)
        deep = replace(spread, row="SCH, deep tap only, spread .3", fusion="deep")
        wider = replace(spread, row=f"{FULL}, spread .5", loss=replace(SPREAD, spread=0.5))
        runs += [*_full(base), spread, wider, deep, *_bottleneck(base)]
    return runs


def rows_of(runs: Sequence[Run], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method and code length: means over seeds, and p against the full method.

    The p-values are those of paired bootstraps over the queries, of AP averaged over the seeds: the
    full method in content order against this method in Hamming order (as the peers are published),
    and against this method in content order.
    """
    grouped: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for run, result in zip(runs, results, strict=True):
        grouped.setdefault((run.bits, run.row), []).append(result)
    rows = []
    for (bits, name), found in grouped.items():
        row: dict[str, Any] = {"bits": bits, "method": name, "seeds": len(found)}
        for order in ("hamming_random", "hamming", "content"):
            for norm in ("map_found", "map_relevant"):
                values = [result["orders"][order][norm] for result in found]
                row[f"{order} {norm}"] = round(mean(values), 4)
                row[f"{order} {norm} sd"] = round(stdev(values), 4) if len(values) > 1 else None
        row["precision at 1"] = round(
            mean(result["orders"]["content"]["precision_at_1"] for result in found), 4
        )
        row["distinct codes"] = round(mean(result["distinct_codes"] for result in found))
        row["overlap at 10"] = round(mean(r["stability"]["hamming_random"] for r in found), 3)
        row["seconds"] = round(mean(result["seconds"]["training"] for result in found))
        best = grouped.get((bits, FULL))
        if best is not None and name != FULL:
            ours = per_query(best, "content")
            for order in ("hamming_random", "content"):
                test = paired_bootstrap(ours, per_query(found, order))
                row[f"p {order}"] = round(test.p, 4)
        rows.append(row)
    return rows


def per_query(results: Sequence[dict[str, Any]], order: str) -> Any:
    """The AP of each query, averaged over seeds: float64 (Q,)."""
    return np.mean([unpacked(result["average_precision"][order]) for result in results], axis=0)


def margins(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The relative gain of the full method over the best bottleneck peer, at each code length."""
    found = []
    for bits in sorted({row["bits"] for row in rows}):
        peers = [r for r in rows if r["bits"] == bits and r["method"].endswith("bottleneck")]
        ours = [r for r in rows if r["bits"] == bits and r["method"] == FULL]
        if not peers or not ours:
            continue
        for theirs in ("hamming_random", "content"):
            for norm in ("map_found", "map_relevant"):
                best = max(peers, key=lambda row: row[f"{theirs} {norm}"])
                gain = ours[0][f"content {norm}"] / best[f"{theirs} {norm}"] - 1
                found.append(
                    {
                        "bits": bits,
                        "measure": norm,
                        "peers' order": theirs,
                        "best peer": best["method"],
                        "relative gain": round(gain, 4),
                        "p": best[f"p {theirs}"],
                    }
                )
    return found


BEST: dict[str, Scale] = {
    # Fine labels of one class at the resolution of its images: where shallow detail should tell.
    "knee": Scale(
        size=128,
        train=600,
        database=1000,
        queries=1000,
        epochs=6,
        warm_epochs=10,
        classes=("KneeXR",),
    ),
    # Three times as long as the main table: time for the layers that start from nothing.
    "long": Scale(epochs=12),
}

COLUMNS = (
    "bits", "method", "seeds", "hamming_random map_found", "content map_found",
    "hamming_random map_relevant", "hamming map_relevant", "content map_relevant",
    "p hamming_random", "p content", "overlap at 10", "distinct codes", "seconds",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", choices=("main", "structure", *BEST), default="main")
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--extended", action="store_true", help="all images, larger, longer")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--only-known", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    scale = (
        Scale(size=112, train=10_000, database=10_000, queries=10_000, epochs=12)
        if arguments.extended
        else Scale()
    )
    if arguments.table in BEST:
        scale = BEST[arguments.table]
        runs = best_table(scale, arguments.seeds)
    elif arguments.table == "main":
        runs = main_table(scale, arguments.bits, arguments.seeds)
    else:
        runs = structure_table(scale, arguments.seeds)
    if arguments.only_known:
        bench = Bench(arguments.folder, scale)
        runs = [run for run in runs if (RESULTS / f"{run.key(bench.digest)}.json").exists()]
    console = Console(width=170)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=len(runs))

        def done(run: Run, result: dict[str, Any]) -> None:
            progress.advance(task)
            order = result["orders"]["content"]["map_relevant"]
            progress.console.print(f"{run.row}, {run.bits} bits, seed {run.seed}: {order}")

        results = make_all(arguments.folder, runs, jobs=arguments.jobs, done=done)
    rows = rows_of(runs, results)
    show(console, "mAP@100", rows, COLUMNS)
    gains = margins(rows)
    if gains:
        show(console, "the full method, content-guided, above the best bottleneck peer", gains,
             list(gains[0]))  # fmt: skip
    if arguments.table == "structure":
        structure = structure_rows(runs, results)
        show(console, "what was not taught: mAP@100 by subclass", structure, list(structure[0]))
        rows = [{**row, "structure": extra} for row, extra in zip(rows, structure, strict=True)]
    name = f"quality-{arguments.table}" + ("-extended" if arguments.extended else "")
    print(write_results(name, {"rows": rows, "margins": gains}))


def structure_rows(runs: Sequence[Run], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds of the measures in ``bench.structure``."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for run, result in zip(runs, results, strict=True):
        grouped.setdefault(run.row, []).append(result["structure"])
    return [
        {
            "method": name,
            **{key: round(mean(one[key] for one in found), 4) for key in found[0]},
        }
        for name, found in grouped.items()
    ]


if __name__ == "__main__":
    main()
