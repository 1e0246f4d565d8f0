"""Series benchmark: which series are found as most alike, by several rules of comparing them.

    python -m bench.series FOLDER [--model DIR]

FOLDER has ``manifest.csv`` with cardiac MR and, in ``more``, the volumes of other sources (their
README says which). Each series is compared with all others. *Same patient*: what is wanted are the
other acquisitions of its patient. *Same kind*: its own patient is left out, and what is wanted are
series of the same class, plane and weighting or window. A rule is chosen on the patients of one
half (``validation``) and judged on the others (``test``); all series are in the index for both.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench.machine import write_results
from bench.series_data import Series, all_series, encoded
from bench.series_rules import RULES, Compared
from bench.tables import show
from engine.model.encoder import Encoder
from engine.model.manifest import SHIPPED

TASKS = ("same patient", "same kind")
JUDGED = ("cardiac MR", "volumes of more")


def scores(
    z: Sequence[NDArray[np.float32]], series: Sequence[Series]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """For each task and rule the score of each series (column) for each query (row)."""
    rows = np.concatenate(z).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    starts = np.cumsum([0, *[len(one) for one in z[:-1]]])
    patients = np.array([one.patient for one in series])
    found: dict[str, dict[str, list[NDArray[np.float64]]]] = {
        task: {rule: [] for rule in RULES} for task in TASKS
    }
    for at, one in enumerate(z):
        query = rows[starts[at] : starts[at] + len(one)]
        for task in TASKS:
            others = np.arange(len(series)) != at
            if task == "same kind":
                others &= patients != patients[at]
            compared = Compared(query, rows, starts, others)
            for name, rule in RULES.items():
                found[task][name].append(np.where(others, rule(compared), -np.inf))
    return {
        task: {rule: np.stack(by_query) for rule, by_query in by_rule.items()}
        for task, by_rule in found.items()
    }


def wanted(series: Sequence[Series], task: str) -> NDArray[np.bool_]:
    """Which series (columns) are right answers for each query (row)."""
    patients = np.array([one.patient for one in series])
    kinds = np.array([one.kind for one in series])
    same = patients[:, None] == patients
    if task == "same kind":
        right: NDArray[np.bool_] = ~same & (kinds[:, None] == kinds)
        return right
    return same & ~np.eye(len(series), dtype=bool)


def measured(score: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of each query whether the first answer is right, and the average precision over all: (N, 2);
    NaN where there is no right answer."""
    figures = np.full((len(score), 2), np.nan)
    for at, (row, good) in enumerate(zip(score, right, strict=True)):
        if good.any():
            order = np.argsort(-row, kind="stable")
            hits = good[order][np.isfinite(row[order])]
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            figures[at] = hits[0], (precision * hits).sum() / good.sum()
    return figures


def table(
    series: Sequence[Series], by_task: dict[str, dict[str, NDArray[np.float64]]], half: str
) -> list[dict[str, Any]]:
    """Of each part, task and rule the figures of one half, and the means of parts at the end."""
    chosen = np.array([one.half == half for one in series])
    parts = np.array([one.part for one in series])
    names = list(dict.fromkeys(parts.tolist()))
    rows = []
    for task, by_rule in by_task.items():
        right = wanted(series, task)
        for rule, score in by_rule.items():
            figures = measured(score, right)
            valid = chosen & ~np.isnan(figures[:, 0])
            of_parts = [
                (name, figures[valid & (parts == name)])
                for name in names
                if (valid & (parts == name)).any()
            ]
            of_more = [some for name, some in of_parts if name != "cardiac MR"]
            of_parts.append(("volumes of more", np.concatenate(of_more)))
            for name, some in of_parts:
                precision, average = (round(float(value), 4) for value in some.mean(axis=0))
                row = {"task": task, "part": name, "rule": rule, "queries": len(some)}
                rows.append({**row, "precision at 1": precision, "mAP": average})
    return rows


def beside(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rules in the rows, the parts in the columns: P@1 and mAP."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        one = found.setdefault(row["rule"], {"method": row["rule"]})
        for figure in ("precision at 1", "mAP"):
            one[f"{row['part']}: {figure}"] = row[figure]
    return list(found.values())


def chosen(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The rules, the best first, by the mean of all figures of cardiac MR and volumes of more."""
    figures: dict[str, list[float]] = {}
    for row in rows:
        if row["part"] in JUDGED:
            figures.setdefault(row["rule"], []).extend((row["precision at 1"], row["mAP"]))
    means = {rule: round(float(np.mean(values)), 4) for rule, values in figures.items()}
    return dict(sorted(means.items(), key=lambda one: -one[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    series = all_series(arguments.folder)
    encoder = Encoder.load(arguments.model, device="cpu", precision="fp32")
    by_task = scores(encoded(encoder, series), series)
    console = Console(width=200)
    halves = {half: table(series, by_task, half) for half in ("validation", "test")}
    for half, rows in halves.items():
        for task in TASKS:
            shown = beside([row for row in rows if row["task"] == task])
            show(console, f"{task}, {half}", shown, list(shown[0]))
    counts = {
        part: {
            "series": sum(one.part == part for one in series),
            "patients": len({one.patient for one in series if one.part == part}),
            "slices": sum(len(one.files) for one in series if one.part == part),
        }
        for part in dict.fromkeys(one.part for one in series)
    }
    order = chosen(halves["validation"])
    console.print(f"mean of the figures of {' and '.join(JUDGED)}, validation: {order}")
    figures = {
        "model": encoder.manifest.fingerprint,
        "parts": counts,
        "by_validation": order,
        **halves,
    }
    print(write_results("series", figures))


if __name__ == "__main__":
    main()
