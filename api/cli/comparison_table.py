"""What ``precedent adapt`` prints of two models on the same queries."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from api.cli.terminal import printable

__all__ = ["show_comparison"]

_NAMED = 8


def show_comparison(console: Console, document: Mapping[str, Any]) -> None:
    """Prints a comparison, which is a ``ModelComparison`` as JSON values with both models."""
    console.print(_as_a_whole(document))
    console.print(_by_class(document))
    for line in _remarks(document):
        console.print(printable(line), soft_wrap=True)


def _as_a_whole(document: Mapping[str, Any]) -> Table:
    table = Table(title="the new model beside the one in use", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("in use", "95 %", "new", "95 %", "difference", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    k = document["k"]
    for name, key in ((f"mAP@{k}", "mean_average_precision"), ("P@1", "precision_at_1")):
        one = document[key]
        difference = one["difference"]
        table.add_row(
            name,
            *_interval(one["before"]),
            *_interval(one["after"]),
            f"{difference['mean']:+.3f}",
            f"{difference['low']:+.3f} to {difference['high']:+.3f}",
        )
    table.add_row(
        "foreign",
        *(_share(document["foreign_before"]), ""),
        *(_share(document["foreign_after"]), ""),
        *("", ""),
    )
    return table


def _by_class(document: Mapping[str, Any]) -> Table:
    table = Table(title=f"mAP@{document['k']} by class", title_justify="left")
    table.add_column("class", overflow="fold")
    for heading in ("queries", "in use", "new", "difference", "95 %", "foreign\nin use", "new"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in document["classes"].items():
        difference = one["difference"]
        table.add_row(
            printable(name),
            f"{one['queries']:,}",
            f"{one['before']:.3f}",
            f"{one['after']:.3f}",
            f"{difference['mean']:+.3f}",
            f"{difference['low']:+.3f} to {difference['high']:+.3f}",
            _share(one["foreign_before"]),
            _share(one["foreign_after"]),
        )
    return table


def _remarks(document: Mapping[str, Any]) -> Iterator[str]:
    new, before = document["model"], document["model_before"]
    yield (
        f"{document['queries']:,} queries among {document['database']:,} images that neither was "
        "trained on, those of the query's own patient left out"
    )
    yield {
        "better": f"model {new} finds more than {before}",
        "worse": f"model {new} finds LESS than {before}, and is not recommended",
        "alike": f"models {new} and {before} cannot be told apart by these queries: the difference "
        "may be chance, and the new one is not recommended",
    }[document["outcome"]]
    worse = document["worse_classes"]
    if worse:
        named = ", ".join(
            f"{name!r} ({document['classes'][name]['difference']['mean']:+.3f})"
            for name in worse[:_NAMED]
        )
        more = f" and {len(worse) - _NAMED} more" if len(worse) > _NAMED else ""
        yield f"worse in {len(worse)} of {len(document['classes'])} classes: {named}{more}"
    else:
        yield "worse in none of the classes"


def _interval(found: Mapping[str, float]) -> tuple[str, str]:
    return f"{found['mean']:.3f}", f"{found['low']:.3f}–{found['high']:.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
