"""Writes an evaluation as a folder with report.md, report.json and plots.

The plots need matplotlib, an optional dependency. The same results give the same bytes.
"""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.errors import PrecedentError
from engine.evaluation.metrics import Interval
from engine.evaluation.quality import QualityReport, Scores
from engine.evaluation.rankings import ORDERS
from engine.extras import install_command
from engine.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ExampleHit", "ExampleRow", "require_matplotlib", "write_report"]

_COLOURS = dict(zip(ORDERS, ("#bbbbbb", "#88a7d0", "#c0504d", "#444444"), strict=True))
_BARS = 60  # classes in one picture; beyond, the worst
_WRONG, _RIGHT = "#d62728", "#cccccc"
_EXPLAINED = {
    "hamming_random": "Hamming distance, ties broken at random",
    "hamming": "Hamming distance, then similarity",
    "content": "similarity inside the Hamming ball",
    "exact": "similarity alone, everything compared",
}


@dataclass(frozen=True, slots=True)
class ExampleHit:
    """A hit to show. canvas: uint8 (S, S) or (S, S, 3); None = its file cannot be read any more.

    right: it has a class in common with the query.
    """

    canvas: NDArray[np.uint8] | None
    label: str
    right: bool


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """A query to show, uint8 (S, S) or (S, S, 3), with its first hits in order."""

    canvas: NDArray[np.uint8] | None
    label: str
    hits: tuple[ExampleHit, ...]


def require_matplotlib() -> None:
    """Checks that plots can be drawn.

    Raises:
        PrecedentError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise PrecedentError(
            "a report needs matplotlib, which is not installed; "
            f"run `{install_command('report')}`, or ask for the figures without a report"
        ) from None


def write_report(
    report: QualityReport,
    folder: Path,
    *,
    about: Mapping[str, str] | None = None,
    examples: Sequence[ExampleRow] = (),
) -> None:
    """Writes the report into ``folder``, which is created if necessary.

    Args:
        about: name → text to list at the top, such as the model and the folders.
        examples: queries with their first hits; hits of a wrong class are framed in red.

    Raises:
        PrecedentError: matplotlib is not installed, or the folder cannot be written to.
    """
    require_matplotlib()
    about = about or {}
    figures = {
        "map.png": _bars(report),
        "precision-recall.png": _curve(report),
        "hamming.png": _histograms(report),
        **({"examples.png": _examples(examples)} if examples else {}),
    }
    document = {"about": dict(about), **report.to_dict()}
    files = {name: _png(figure) for name, figure in figures.items()}
    files["report.json"] = (json.dumps(document, indent=2) + "\n").encode()
    # Written last, as it refers to the other files.
    files["report.md"] = _page(report, about, shows_examples=bool(examples)).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(folder / name, data)
    except OSError as error:
        raise PrecedentError(
            f"the report cannot be written to {folder} ({error.strerror}); name another folder"
        ) from None


def _page(report: QualityReport, about: Mapping[str, str], *, shows_examples: bool) -> str:
    k = report.k
    measures = (f"mAP@{k} (hits found)", f"mAP@{k} (min(k, relevant))", "P@1", "P@10")
    parts = [
        "# How well this model retrieves",
        "\n".join(f"- {_text(name)}: {_text(value)}" for name, value in about.items()),
        f"{report.queries:,} queries in a database of {report.database:,} images, "
        f"{report.codes.bits} bits, seed {report.seed}. Intervals: 95 %, bootstrap over queries.",
    ]
    if report.unanswerable:
        parts.append(
            f"**{report.unanswerable:,} queries are in no mean**: the database has nothing "
            "relevant to them."
        )
    if report.related:
        parts.append(
            f"For {report.related:,} queries the database has the image itself or others of its "
            "patient or study; those were left out for them."
        )
    parts += [
        "## By order",
        _table(
            ("order", *measures, "against random ties", "p", "overlap@10, shuffled"),
            [
                (
                    f"{order}: {_EXPLAINED[order]}",
                    *_scores(scores),
                    *_against(report, order),
                    f"{report.stability[order]:.4f}" if order in report.stability else "",
                )
                for order, scores in report.orders.items()
            ],
        ),
        "mAP by *hits found* divides by the relevant images among the first k; by *min(k, "
        "relevant)*, by the most there could have been. *Against random ties* is the difference "
        "of the latter, paired by query. *Overlap@10* is what two databases of the same images "
        "in another order give in common.",
        "## By class, order `content`",
        _table(
            (
                *("class", "queries", "not answerable", "in the database"),
                *measures,
                *(() if report.foreign is None else ("called foreign",)),
            ),
            [
                (
                    _text(name),
                    f"{found.queries:,}",
                    f"{found.unanswerable:,}",
                    f"{found.images:,}",
                    *(_scores(found.orders["content"]) if found.orders else ("",) * 4),
                    *(() if found.foreign is None else (f"{found.foreign:.4f}",)),
                )
                for name, found in report.classes.items()
            ],
        ),
    ]
    if report.foreign is not None:
        parts.append(f"The OOD gate calls {report.foreign:.4f} of all queries foreign.")
    parts += [
        "![mAP by class and order](map.png)",
        "## Codes",
        _codes(report),
        "![precision and recall by Hamming radius](precision-recall.png)",
        "![Hamming distances within and between classes](hamming.png)",
    ]
    if shows_examples:
        parts += [
            "## Examples",
            "A query of each class and its first hits; a red frame is another class.",
            "![queries and their first hits](examples.png)",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _codes(report: QualityReport) -> str:
    balance = np.array(report.codes.balance)
    within, between = np.array(report.within), np.array(report.between)
    distance = np.arange(len(within))
    lines = [
        f"- {report.codes.distinct:,} different codes among {report.codes.images:,} images",
        f"- share of ones in a bit: {balance.min():.3f} to {balance.max():.3f}; "
        f"{np.count_nonzero((balance == 0) | (balance == 1))} bits never change",
    ]
    for name, pairs in (("one class", within), ("different classes", between)):
        if pairs.sum():
            mean = float(pairs @ distance / pairs.sum())
            lines.append(
                f"- {pairs.sum():,} pairs of {name}: mean Hamming distance {mean:.2f}, "
                f"{pairs[0]:,} at 0"
            )
    return "\n".join(lines)


def _scores(scores: Scores) -> tuple[str, ...]:
    return (
        _interval(scores.map_found),
        _interval(scores.map_relevant),
        f"{scores.precision_at_1:.4f}",
        f"{scores.precision_at_10:.4f}",
    )


def _against(report: QualityReport, order: str) -> tuple[str, str]:
    found = report.against_random.get(order)
    if found is None:
        return "", ""
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})", f"{found.p:.4f}"


def _interval(found: Interval) -> str:
    return f"{found.mean:.4f} ({found.low:.4f}–{found.high:.4f})"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    aligned = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, aligned, *rows))


def _text(value: str) -> str:
    """A text escaped for Markdown, also inside the cell of a table."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in " ".join(value.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _figure(width: float, height: float) -> "Figure":
    # Without pyplot, no figure is global and no display is looked for.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(figure: "Figure") -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _bars(report: QualityReport) -> "Figure":
    classes = [(name, found.orders) for name, found in report.classes.items() if found.orders]
    if len(classes) > _BARS:
        classes = sorted(classes, key=lambda one: one[1]["content"].map_relevant.mean)[:_BARS]
    rows = [("all queries", report.orders), *classes]
    figure = _figure(8, 1.2 + 0.6 * len(rows))
    axes = figure.subplots()
    thick = 0.8 / len(ORDERS)
    for number, order in enumerate(ORDERS):
        found = [orders[order].map_relevant for _, orders in rows]
        means = np.array([one.mean for one in found])
        # A percentile interval of scores at the limit may end a rounding short of the mean.
        reach = np.maximum([means - [f.low for f in found], [f.high for f in found] - means], 0)
        axes.barh(
            np.arange(len(rows)) + (number - (len(ORDERS) - 1) / 2) * thick,
            means,
            thick,
            xerr=reach,
            color=_COLOURS[order],
            error_kw={"elinewidth": 0.8, "capsize": 1.5},
            label=order,
        )
    axes.set_yticks(np.arange(len(rows)), [name for name, _ in rows], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"mAP@{report.k} by min(k, relevant), 95 % interval")
    figure.legend(loc="outside upper center", ncols=len(ORDERS), frameon=False)
    return figure


def _curve(report: QualityReport) -> "Figure":
    figure = _figure(5, 4)
    axes = figure.subplots()
    recall = [point.recall for point in report.curve]
    precision = [point.precision for point in report.curve]
    axes.plot(recall, precision, ".-", color=_COLOURS["content"], markersize=4, linewidth=1)
    beside = (4, -14 if precision[0] > 0.5 else 4)  # points, towards the middle
    axes.annotate("radius 0", (recall[0], precision[0]), beside, textcoords="offset points")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.05))
    axes.set(xlabel="recall within the radius", ylabel="precision within the radius")
    axes.set_title("Hamming radius 0 to all bits, mean over classes", fontsize=10)
    return figure


def _histograms(report: QualityReport) -> "Figure":
    figure = _figure(6, 3.5)
    axes = figure.subplots()
    edges = np.arange(len(report.within) + 1) - 0.5
    for name, pairs, colour in (
        ("within a class", report.within, _COLOURS["hamming"]),
        ("between classes", report.between, _COLOURS["content"]),
    ):
        share = np.array(pairs) / max(sum(pairs), 1)
        axes.stairs(share, edges, fill=True, alpha=0.5, color=colour, label=name)
    axes.set(xlabel="Hamming distance of query and item", ylabel="share of pairs")
    axes.legend(frameon=False)
    return figure


def _examples(examples: Sequence[ExampleRow]) -> "Figure":
    columns = 1 + max(len(row.hits) for row in examples)
    figure = _figure(1.2 * columns, 1.4 * len(examples))
    grid = figure.subplots(len(examples), columns, squeeze=False)
    for row, line in zip(examples, grid, strict=True):
        for axes in line:
            axes.set_axis_off()
        _picture(line[0], row.canvas, f"query: {row.label}", "black", 1.5)
        for axes, hit in zip(line[1:], row.hits, strict=False):
            _picture(axes, hit.canvas, hit.label, *((_RIGHT, 1) if hit.right else (_WRONG, 3)))
    return figure


def _picture(
    axes: "Axes", canvas: NDArray[np.uint8] | None, label: str, colour: str, width: float
) -> None:
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    if canvas is None:
        axes.text(0.5, 0.5, "not readable", ha="center", va="center", fontsize=6)
    else:
        axes.imshow(canvas, cmap="gray", vmin=0, vmax=255)
    shown = label if len(label) <= 20 else label[:19] + "…"
    # A class may be named "$".
    axes.set_title(
        shown, fontsize=7, color=_WRONG if colour == _WRONG else "black", parse_math=False
    )
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=width)
