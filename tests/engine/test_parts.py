"""How an archive is divided into parts, and the table of that."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import event, given, settings, strategies as st

from engine.errors import TrainingDataError
from engine.training.data import Example
from engine.training.parts import divided, read_parts, write_parts

SHARES = {"calibration": 0.2, "evaluation": 0.2}


def archive(patients: list[list[str]]) -> list[Example]:
    """An image for each class of each patient."""
    return [
        Example(Path("/images") / f"{number}-{i}.dcm", label, f"patient {number}")
        for number, labels in enumerate(patients)
        for i, label in enumerate(labels)
    ]


def groups(examples: tuple[Example, ...]) -> set[str | None]:
    return {one.group for one in examples}


patients = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), max_size=30)


@settings(max_examples=25)
@given(patients, st.integers(0, 5), st.randoms(use_true_random=False))
def test_no_patient_is_in_two_parts_and_every_image_in_one(
    owned: list[list[str]], seed: int, shuffled: random.Random
) -> None:
    examples = archive(owned)
    if len([label for label in "abcd" if sum(label in one for one in owned) >= 3]) < 2:
        with pytest.raises(TrainingDataError, match="a model learns from two"):
            divided(examples, **SHARES, seed=seed, leave_out=True)
        return
    try:
        parts = divided(examples, **SHARES, seed=seed, leave_out=True)
    except TrainingDataError:
        # Each has three, but of patients with other classes as well.
        event("classes in each other's way")
        return
    sides = [parts.training, parts.calibration, parts.evaluation]
    used = [one for side in sides for one in side]
    assert len(set(used)) == len(used)
    assert sum(len(groups(side)) for side in sides) == len(groups(tuple(used)))
    # Of what is left out, the whole class is.
    left_out = Counter(one.label for one in set(examples) - set(used))
    assert dict(left_out) == dict(parts.left_out)
    assert not {one.label for one in used} & set(left_out)
    classes = {one.label for one in used}
    assert all({one.label for one in side} == classes for side in sides)
    # The order in which a folder is listed changes nothing.
    shuffled.shuffle(examples)
    assert divided(examples, **SHARES, seed=seed, leave_out=True) == parts


@given(st.integers(0, 20))
def test_parts_have_about_their_shares_and_another_seed_divides_otherwise(seed: int) -> None:
    examples = archive([["a", "a"] if n % 3 else ["b", "b"] for n in range(150)])
    parts = divided(examples, **SHARES, seed=seed)
    for label in "ab":
        of = Counter(
            name for name, some in parts.named().items() for one in some if one.label == label
        )
        total = of.total()
        assert abs(of["calibration"] - 0.2 * total) <= 4
        assert abs(of["evaluation"] - 0.2 * total) <= 4
    assert divided(examples, **SHARES, seed=seed + 1) != parts


def test_a_class_of_three_patients_is_in_every_part() -> None:
    for seed in range(20):
        parts = divided(archive([*[["a"]] * 40, *[["b", "b"]] * 3]), **SHARES, seed=seed)
        assert all("b" in {one.label for one in some} for some in parts.named().values())


def test_a_class_that_cannot_be_in_every_part_is_named_with_the_way_out() -> None:
    examples = archive([*[["a"]] * 9, *[["b"]] * 9, ["rare", "rare"], ["rare"]])
    says = re.escape("1 of 3 classes cannot be in training, calibration and evaluation")
    with pytest.raises(TrainingDataError, match=f"{says}.*'rare' has 3 image.*2 patient.*--leave-"):
        divided(examples, **SHARES, seed=0)
    parts = divided(examples, **SHARES, seed=0, leave_out=True)
    assert parts.left_out == {"rare": 3}
    with pytest.raises(TrainingDataError, match=r"1 class.*'b' has 2 image.* a model learns from"):
        divided(archive([*[["a"]] * 9, *[["b"]] * 2]), **SHARES, seed=0, leave_out=True)


@pytest.mark.parametrize(
    "shares", [(0, 0.2), (0.2, 0), (0.5, 0.4), (-0.1, 0.2), (float("nan"), 0.2)]
)
def test_shares_that_leave_too_little(shares: tuple[float, float]) -> None:
    examples = archive([["a"], ["b"]] * 20)
    with pytest.raises(TrainingDataError, match=r"leave 0\.2 or more"):
        divided(examples, calibration=shares[0], evaluation=shares[1], seed=0)


def test_the_table_gives_the_parts_again_and_names_no_patient(tmp_path: Path) -> None:
    odd = [("a, b", "x\udcff.dcm"), ('"b"', "sub/y.dcm"), ("c\nd", "/elsewhere/z.dcm")]
    examples = [
        Example(tmp_path / f"{number}" / name, label, f"group Doe^Jane {number}")
        for label, name in odd
        for number in range(4)
    ]
    parts = divided(examples, **SHARES, seed=3)
    table = tmp_path / "split.csv"
    write_parts(parts, table, tmp_path)
    content = table.read_bytes()
    assert content.startswith(b"file,label,group,part\n")
    assert b"Doe" not in content
    assert str(tmp_path).encode() not in content
    read = read_parts(table, tmp_path)
    for ours, theirs in zip(parts.named().values(), read.named().values(), strict=True):
        assert [(one.path, one.label) for one in ours] == [(one.path, one.label) for one in theirs]
        same = {(a.group, b.group) for a, b in zip(ours, theirs, strict=True)}
        assert len(same) == len(groups(ours)) == len(groups(theirs))
    table.write_bytes(content.replace(b",evaluation\n", b",nothing\n"))
    with pytest.raises(TrainingDataError, match=r"split.csv cannot be read .*--out"):
        read_parts(table, tmp_path)
