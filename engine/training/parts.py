"""Divides an archive into parts for training, calibration and evaluation that share no patient."""

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import TrainingDataError
from engine.files import write_atomically
from engine.training.data import Example

__all__ = ["CALIBRATION", "EVALUATION", "TRAINING", "Parts", "divided", "read_parts", "write_parts"]

TRAINING, CALIBRATION, EVALUATION = "training", "calibration", "evaluation"
_COLUMNS = ("file", "label", "group", "part")
_FEWEST = 3
"""Groups of a class: one for each part."""
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Parts:
    """Examples by part; every one has a label and a group, and no group is in two parts.

    left_out: images of classes that were left out, by class.
    """

    training: tuple[Example, ...]
    calibration: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    left_out: Mapping[str, int]

    def named(self) -> dict[str, tuple[Example, ...]]:
        """The parts by their names."""
        return {
            TRAINING: self.training,
            CALIBRATION: self.calibration,
            EVALUATION: self.evaluation,
        }


def divided(
    examples: Sequence[Example],
    *,
    calibration: float,
    evaluation: float,
    seed: int,
    leave_out: bool = False,
) -> Parts:
    """Divides examples by whole groups, so that every class is in every part.

    Groups are taken in the order of their hashes, those of the rarest class first; each goes to
    the part that has the least of its classes so far, measured by its share. The result depends
    only on paths, labels, groups and the seed, not on the order of the examples.

    Args:
        examples: each with a label and a group.
        calibration, evaluation: shares of the images, as nearly as whole groups allow.
        leave_out: do without classes that cannot be in every part, rather than refuse.

    Raises:
        TrainingDataError: a share is none, a class cannot be in every part, or fewer than two
            classes can.
    """
    shares = {TRAINING: 1 - calibration - evaluation}
    shares |= {EVALUATION: evaluation, CALIBRATION: calibration}
    if min(calibration, evaluation) <= 0 or not shares[TRAINING] >= 0.2:
        raise TrainingDataError(
            f"shares of {calibration:g} for calibration and {evaluation:g} for evaluation leave "
            f"{shares[TRAINING]:g} for training; give both more than 0 and leave 0.2 or more"
        )
    kept = sorted(examples, key=lambda one: (str(one.path), str(one.label)))
    left_out: Counter[str] = Counter()
    while True:
        part_of = _assigned(kept, shares, seed)
        lacking = _lacking(kept, part_of)
        if not lacking:
            break
        classes = {one.label for one in kept}
        if not leave_out:
            raise TrainingDataError(_not_in_every_part(kept, lacking, len(classes)))
        left_out.update(str(one.label) for one in kept if one.label in lacking)
        kept = [one for one in kept if one.label not in lacking]
    classes = {one.label for one in kept}
    if len(classes) < 2:
        raise TrainingDataError(
            f"{len(classes)} class(es) of {_FEWEST} patients or more are there, one for each of "
            f"training, calibration and evaluation ({_listed(examples, None)}), and a model learns "
            "from two; give images of more patients, or labels of another kind"
        )
    parts = {name: [one for one in kept if part_of[one.group or ""] == name] for name in shares}
    return Parts(
        tuple(parts[TRAINING]),
        tuple(parts[CALIBRATION]),
        tuple(parts[EVALUATION]),
        dict(sorted(left_out.items())),
    )


def _assigned(
    examples: Sequence[Example], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """The part of each group."""
    content: dict[str, Counter[str]] = defaultdict(Counter)
    for one in examples:
        content[one.group or ""][str(one.label)] += 1
    images = Counter(str(one.label) for one in examples)
    groups = Counter(label for counts in content.values() for label in counts)

    def turn(group: str) -> tuple[int, bytes]:
        rarest = min(groups[label] for label in content[group])
        return rarest, hashlib.sha256(f"{seed}:{group}".encode(errors="surrogateescape")).digest()

    filled: dict[str, Counter[str]] = {name: Counter() for name in shares}
    part_of: dict[str, str] = {}
    for group in sorted(content, key=turn):
        rarest_first = sorted(content[group].items(), key=lambda one: (groups[one[0]], one[0]))
        weight = {label: count / images[label] for label, count in rarest_first}

        def fullness(name: str, weight: Mapping[str, float] = weight) -> float:
            of_classes = sum(w * filled[name][label] / images[label] for label, w in weight.items())
            return of_classes / shares[name]

        chosen = min(shares, key=fullness)  # of equal ones the first: training
        part_of[group] = chosen
        filled[chosen].update(content[group])
    return part_of


def _lacking(examples: Sequence[Example], part_of: Mapping[str, str]) -> set[str | None]:
    """The classes that are not in every part."""
    found: dict[str | None, set[str]] = defaultdict(set)
    for one in examples:
        found[one.label].add(part_of[one.group or ""])
    return {label for label, parts in found.items() if len(parts) < _FEWEST}


def _not_in_every_part(examples: Sequence[Example], lacking: set[str | None], classes: int) -> str:
    return (
        f"{len(lacking)} of {classes} classes cannot be in training, calibration and evaluation at "
        f"once, which takes {_FEWEST} patients of each (of images without patient or study, "
        f"{_FEWEST} files): {_listed(examples, lacking)}; give images of more patients, do without "
        "these classes by --leave-out-rare, or try another --seed"
    )


def _listed(examples: Sequence[Example], only: set[str | None] | None) -> str:
    images: Counter[str | None] = Counter()
    groups: dict[str | None, set[str | None]] = defaultdict(set)
    for one in examples:
        if only is None or one.label in only:
            images[one.label] += 1
            groups[one.label].add(one.group)
    fewest = sorted(images, key=lambda label: (len(groups[label]), images[label], str(label)))
    named = ", ".join(
        f"{label!r} has {images[label]} image(s) of {len(groups[label])} patient(s)"
        for label in fewest[:_NAMED]
    )
    return named + (f" and {len(fewest) - _NAMED} more" if len(fewest) > _NAMED else "")


def write_parts(parts: Parts, path: Path, root: Path) -> None:
    """Writes the table of the parts as CSV: file, label, group, part.

    Files are named relative to ``root`` where they lie below it. Groups are numbers, so that no
    patient can be told from the table.
    """
    numbers: dict[str | None, int] = {}
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for name, examples in parts.named().items():
        for one in examples:
            file = one.path.relative_to(root) if one.path.is_relative_to(root) else one.path
            rows.writerow((file, one.label, numbers.setdefault(one.group, len(numbers) + 1), name))
    write_atomically(path, out.getvalue().encode(errors="surrogateescape"))


def read_parts(path: Path, root: Path) -> Parts:
    """The parts of a table that :func:`write_parts` wrote; groups are its numbers, and classes
    that were left out are not in it.

    Raises:
        TrainingDataError: it cannot be read.
    """
    found: dict[str, list[Example]] = {TRAINING: [], CALIBRATION: [], EVALUATION: []}
    try:
        text = path.read_bytes().decode(errors="surrogateescape")
        for row in csv.DictReader(io.StringIO(text, newline="")):
            file, label, group, part = (row[name] for name in _COLUMNS)
            found[part].append(Example(root / file, label, group))
    except (OSError, KeyError, TypeError, csv.Error) as error:
        raise TrainingDataError(
            f"{path} cannot be read ({type(error).__name__}); restore it, or name another --out"
        ) from None
    training, calibration, evaluation = map(tuple, found.values())
    return Parts(training, calibration, evaluation, {})
