"""Retrieval benchmark: mAP and OOD verdicts of a model, with the engine of `precedent search`.

    python -m bench.retrieval FOLDER [--model DIR] [--foreign FOLDER]

FOLDER has the folders ``database`` and ``query``, each with a subfolder for every class. The
database must not hold the queries. mAP@100 is normalised by min(100, relevant).
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.machine import write_results
from engine.model.manifest import SHIPPED
from engine.records import Answer
from engine.search.query import Query
from engine.settings import load_settings
from indexer.archive import Archive, QueryImage
from indexer.sources.folder import FolderSource

K = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--foreign", type=Path, help="images of no class at all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        settings = load_settings(data_dir=Path(scratch), model=arguments.model)
        with Archive(settings, create=True) as archive:
            source = FolderSource([arguments.folder / "database"], label_from_folder=True)
            archive.index(source)
            sizes = archive.store.facets(["labels"], Query().where, 1000)["labels"]
            queries = {
                name: images(archive, folder)
                for name, folder in classes(arguments.folder / "query").items()
            }
            answers, short, exact = (
                {name: search(archive, some, query) for name, some in queries.items()}
                for query in (Query(k=K), Query(k=10), Query(k=10, exact=True))
            )
            foreign = {}
            if arguments.foreign:
                shown = images(archive, arguments.foreign)
                foreign = {
                    name: search(archive, shown, Query(k=1), grey=name == "in grey")
                    for name in ("as they are", "in grey")
                }
            fingerprint = archive.manifest.fingerprint
    rows = [figures(name, answers[name], short[name], exact[name], sizes) for name in answers]
    rows.append(
        {
            "class": "all",
            **{
                name: round(
                    float(
                        np.average(
                            [row[name] for row in rows], weights=[row["queries"] for row in rows]
                        )
                    ),
                    4,
                )
                for name in (
                    "precision_at_1",
                    "map_at_100",
                    "recall_at_10_of_exact",
                    "flagged_foreign",
                )
            },
            "queries": sum(row["queries"] for row in rows),
        }
    )
    table = Table(title=f"model {fingerprint}")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(str(row[name]) for name in rows[0]))
    console = Console(width=140)
    console.print(table)
    rungs = {10: taken(short), K: taken(answers)}
    results = {"model": fingerprint, "rows": rows, "rungs": rungs}
    for k, counts in rungs.items():
        console.print(f"rungs taken at k = {k}: {counts}")
    for name, found in foreign.items():
        caught = flagged(found)
        console.print(f"foreign images caught, {name}: {caught:.4f} of {len(found)}")
        results[f"foreign, {name}"] = {"images": len(found), "caught": round(caught, 4)}
    print(write_results("retrieval", results))


def classes(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}


def images(archive: Archive, folder: Path) -> list[QueryImage]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with archive.query_reader() as reader:
        return [one for one in reader.read(paths) if isinstance(one, QueryImage)]


def search(
    archive: Archive, some: list[QueryImage], query: Query, *, grey: bool = False
) -> list[Answer]:
    """grey: nothing is said of their colour, which would give photographs away."""
    colour = None if grey else [one.colour for one in some]
    return archive.engine.search([one.canvas for one in some], query, colour=colour)


def figures(
    name: str,
    answers: list[Answer],
    short: list[Answer],
    exact: list[Answer],
    sizes: dict[str, int],
) -> dict[str, object]:
    relevant = np.array([[name in hit.record.labels for hit in answer.hits] for answer in answers])
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    best = min(K, sizes.get(name, 0))
    average = (precision * relevant).sum(axis=1) / max(best, 1)
    overlap = [
        len({hit.id for hit in answer.hits} & {hit.id for hit in whole.hits})
        / max(len(whole.hits), 1)
        for answer, whole in zip(short, exact, strict=True)
    ]
    return {
        "class": name,
        "queries": len(answers),
        "precision_at_1": round(float(relevant[:, 0].mean()), 4),
        "map_at_100": round(float(average.mean()), 4),
        "recall_at_10_of_exact": round(float(np.mean(overlap)), 4),
        "flagged_foreign": round(flagged(answers), 4),
    }


def taken(answers: dict[str, list[Answer]]) -> dict[str, int]:
    return dict(Counter(answer.evidence.rung for found in answers.values() for answer in found))


def flagged(answers: list[Answer]) -> float:
    verdicts = [answer.ood.foreign for answer in answers if answer.ood is not None]
    return float(np.mean(verdicts)) if verdicts else 0.0


if __name__ == "__main__":
    main()
