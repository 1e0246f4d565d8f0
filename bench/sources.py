"""Leave-one-source-out benchmark: how well a model answers pictures of a scanner it never saw.

    python -m bench.sources DATA [--folds OUT…] [--model DIR]

DATA as in ``bench.manifests``. The shipped model and its gate are always judged. ``--folds``:
models that ``bench.weights --leave-out`` or ``--fold`` made; each is judged by the sources that it
left out, and refused where it learned from one of them. ``--model``: any other checkpoint, judged
by all sources; rows of sources that it learned from are no held-out figures, and are marked. What
is searched and asked is said in ``bench.source_judging``; the table of all kinds counts held-out
sources only. Figures are in ``bench/results/sources.json``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench.held_out import Model, fold_model, gate_of, model_of, scores_elsewhere, seen_by
from bench.machine import write_results
from bench.manifests import Picture, read_pictures
from bench.source_judging import INDEXES, Judged, Seen, judged, kind_row, overall_row, source_row
from bench.tables import show
from bench.weights import spread_out
from engine.model.manifest import SHIPPED

VERDICTS = ("unfamiliar", "foreign")
ENOUGH = 3  # held-out sources of a kind, for it to count in the mean


def thinned(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """At most so many pictures of each kind, source and part, of its patients alike."""
    of: dict[tuple[str, str, str], list[Picture]] = {}
    for one in pictures:
        of.setdefault((one.kind, one.source, one.part), []).append(one)
    return [one for some in of.values() for one in spread_out(some, most, 0)]


def report(model_judged: Sequence[Judged]) -> dict[str, Any]:
    """The rows of a model, or of several folds of one training together."""
    kinds = sorted({one.kind for one in model_judged})
    by_kind = [kind_row(kind, model_judged) for kind in kinds]
    by_kind = [row for row in by_kind if row["sources"]]
    enough = [row["class"] for row in by_kind if row["sources"] >= ENOUGH]
    alone = [one for one in model_judged if one.held_out and one.right.get("others") is None]
    return {
        "sources": [source_row(one) for one in model_judged],
        "classes": [*by_kind, overall_row(model_judged, enough)] if enough else by_kind,
        "unlike all others": [
            {
                "class": one.kind,
                "source": one.source,
                "queries": len(one),
                "caught": one.share("foreign"),
            }
            for one in alone
            if not one.taught
        ],
        "learned kinds called foreign": share(
            [one for one in model_judged if one.held_out and one.taught]
        ),
    }


def by_source(every: Sequence[tuple[Model, Seen]]) -> list[Judged]:
    """How each fold answers each source that it left out, by a gate that knows from all other
    sources left out what such images look like."""
    found = []
    for fold, seen in every:
        gate = gate_of(fold)
        for source in fold.only or ():
            own = None if gate is None else gate.with_elsewhere(scores_elsewhere(every, source))
            found += judged(seen, fold.trained_on, [source], own)
    return found


def share(some: Sequence[Judged]) -> float | None:
    """Of the queries, the share called foreign; sources count alike."""
    flagged = [found for one in some if (found := one.share("foreign")) is not None]
    return round(float(np.mean(flagged)), 4) if flagged else None


def print_report(console: Console, name: str, figures: dict[str, Any]) -> None:
    def shown(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                key: "yes" if value is True else "no" if value is False
                else f"{value[0]:.2f}–{value[1]:.2f}" if isinstance(value, list)
                else value
                for key, value in row.items()
            }
            for row in rows
        ]  # fmt: skip

    tail = [*(f"P@1 {index}" for index in INDEXES), "95 %", *VERDICTS, "wrong", "passed"]
    show(
        console,
        f"{name}: each source, while the index holds the others",
        shown(figures["sources"]),
        ["class", "source", "held out", "queries", "patients", *tail],
    )
    show(
        console,
        f"{name}: held-out sources, each counted alike",
        shown(figures["classes"]),
        ["class", "sources", "queries", "patients", *tail],
    )
    if figures["unlike all others"]:
        show(
            console,
            f"{name}: kinds that neither training nor index has",
            figures["unlike all others"],
            ["class", "source", "queries", "caught"],
        )
    console.print(
        f"learned kinds called foreign, held-out sources: {figures['learned kinds called foreign']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", type=Path, nargs="+", default=[], metavar="DIR")
    parser.add_argument("--model", type=Path, nargs="+", default=[], metavar="DIR")
    parser.add_argument("--results", default="sources", help="name of the file of figures")
    parser.add_argument("--most", type=int, help="of a kind, source and part: for a first look")
    arguments = parser.parse_args()
    pictures = read_pictures(arguments.folder)
    if arguments.most is not None:
        pictures = thinned(pictures, arguments.most)
    console = Console(width=170)
    models = [model_of(SHIPPED, pictures, "shipped")]
    models += [model_of(folder, pictures) for folder in arguments.model]
    folds = [fold_model(folder, pictures) for folder in arguments.folds]
    results: dict[str, Any] = {"models": [], "folds": None}
    for model in models:
        seen = seen_by(model, pictures)
        figures = report(judged(seen, model.trained_on, gate=gate_of(model)))
        print_report(console, model.name, figures)
        results["models"].append(
            {
                "model": model.manifest.fingerprint,
                "name": model.name,
                "learned from": sorted({row["source"] for row in model.trained_on}),
                **figures,
            }
        )
    if folds:
        figures = report(by_source([(fold, seen_by(fold, pictures)) for fold in folds]))
        print_report(console, f"{len(folds)} folds", figures)
        results["folds"] = {
            "left out": {fold.manifest.fingerprint: fold.only for fold in folds},
            **figures,
        }
    if arguments.most is None:
        print(write_results(arguments.results, results))


if __name__ == "__main__":
    main()
