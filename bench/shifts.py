"""Ablation of the augmentations: precision on queries as other archives would show them.

    python -m bench.shifts FOLDER [--jobs 2]
    python -m bench.shifts FOLDER --model DIR    # how one model bears them

Trains one model with all groups of augmentations, one without each group, and one without any. The
queries are changed by code that is independent of the augmentations (``bench.shifted_queries``).
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from bench.collection import Collection
from bench.machine import write_results
from bench.runs import Run, Scale, make_all
from bench.shifted_queries import SHIFTS, shifted_precision
from bench.tables import show
from engine.model.encoder import Encoder
from engine.training.augment import AugmentConfig

__all__ = ["GROUPS"]

# The fields of AugmentConfig that belong together; all but standardising, which is the
# preprocessing's.
GROUPS: dict[str, tuple[str, ...]] = {
    "grey windows and tone": ("narrow", "tone", "window", "gamma"),
    "polarity": ("invert",),
    "geometry": ("rotate", "scale", "shift"),
    "resolution and noise": ("coarsen", "noise", "small"),
    "shade, borders, markers": ("shade", "border", "marker"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--model", type=Path, help="train nothing, look at this one")
    arguments = parser.parse_args()
    if arguments.model:
        encoder = Encoder.load(arguments.model)
        preprocess = encoder.manifest.preprocess
        collection = Collection(arguments.folder, preprocess)
        parts = collection["database"], collection["query"].balanced(100, by="class")
        bears = shifted_precision(encoder, preprocess, *parts)
        one = [{"query": shift, "precision at 1": value} for shift, value in bears.items()]
        show(Console(), f"model {encoder.manifest.fingerprint}", one, list(one[0]))
        print(
            write_results("shifts-model", {"model": encoder.manifest.fingerprint, "shifts": bears})
        )
        return
    scale = Scale(warm_epochs=0, epochs=6)
    everything = AugmentConfig()
    nothing = replace(everything, **{field: 0.0 for group in GROUPS.values() for field in group})
    variants = {"all": everything}
    for group, fields in GROUPS.items():
        variants[f"without {group}"] = replace(everything, **dict.fromkeys(fields, 0.0))
    variants["none"] = nothing
    rows: list[dict[str, Any]] = []
    for normalise in ("standardise", "fixed"):
        chosen = replace(scale, normalise=normalise)
        runs = [
            Run(name, chosen, 64, seed, augment=augment, by="class", judged_by="class", shifts=True)
            for name, augment in variants.items()
            if normalise == "standardise" or name in ("all", "none")
            for seed in arguments.seeds
        ]
        results = make_all(arguments.folder, runs, jobs=arguments.jobs, done=_heard)
        for name in dict.fromkeys(run.row for run in runs):
            found = [r["shifts"] for run, r in zip(runs, results, strict=True) if run.row == name]
            rows.append(
                {
                    "augmentation": name
                    if normalise == "standardise"
                    else f"{name}, not standardised",
                    **{shift: round(mean(one[shift] for one in found), 4) for shift in found[0]},
                }
            )
    shown = [
        {"query": shift, **{str(row["augmentation"]): row[shift] for row in rows}}
        for shift in [*SHIFTS, "phantoms"]
    ]
    show(Console(width=220), "macro precision at 1", shown, list(shown[0]))
    print(write_results("shifts", {"rows": rows}))


def _heard(run: Any, result: dict[str, Any]) -> None:
    print(f"{run.row}, seed {run.seed}: {result['shifts']}", flush=True)


if __name__ == "__main__":
    main()
