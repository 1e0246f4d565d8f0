"""Archives that earlier versions stored open, and answer as those versions did.

``make.py`` made each of them on the last commit before something was stored in another way.
"""

import contextlib
import csv
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from formats.make import told

from api.cli.main import app

STORED = sorted(Path(__file__).parent.glob("*.tar.xz"))
THRESHOLDS = ("--similarity", "0.9999", "--max-bits", "2")
"""What those versions went by where no thresholds are given."""
TOLERANCE = 1e-3
"""Of similarities and p-values: far more than processors differ in, far less than neighbours."""


def test_there_are_archives_to_open() -> None:
    assert STORED[0].name == "0001-folder-without-version.tar.xz"


@pytest.mark.parametrize(
    "stored",
    [*(pytest.param(path, marks=pytest.mark.slow) for path in STORED[:-1]), STORED[-1]],
    ids=[path.name.partition(".")[0] for path in STORED],
)
def test_an_archive_of_an_earlier_version_answers_the_same(stored: Path, tmp_path: Path) -> None:
    with tarfile.open(stored) as packed:
        packed.extractall(tmp_path, filter="data")
    expected = json.loads((tmp_path / "answers.json").read_bytes())
    assert len(expected) > 8
    questions = [one["asked"] for one in expected]
    for asked, answered, one in zip(questions, ask(tmp_path, questions), expected, strict=True):
        before = told(one["answer"])
        assert alike(answered, before), f"{asked}: {answered} is not {before}"


@pytest.mark.slow
def test_more_can_be_indexed_into_it(tmp_path: Path) -> None:
    with tarfile.open(STORED[-1]) as packed:
        packed.extractall(tmp_path, filter="data")
    queries = [f"pictures/queries/{number}.png" for number in range(3)]
    indexed, info = ask(tmp_path, [["index", *queries], ["info"]])
    before = json.loads((tmp_path / "answers.json").read_bytes())[0]["answer"][0]
    assert indexed[0]["indexed"] == 3
    assert info[0]["points"] == before["points"] + 3
    assert json.loads((tmp_path / "data" / "folder.json").read_bytes())["format"] == 1


def ask(folder: Path, questions: list[list[str]]) -> list[Any]:
    """The answers to commands, one after the other, in ``folder``."""
    place = {"PRECEDENT_DATA_DIR": str(folder / "data"), "PRECEDENT_MODEL": str(folder / "model")}
    found = []
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PRECEDENT_")]:
            patch.delenv(name)
        for name, value in {**place, "PRECEDENT_INDEXING__READERS": "1"}.items():
            patch.setenv(name, value)
        for asked in questions:
            as_text = "report" in asked
            if asked == ["duplicates"]:
                asked = [*asked, *THRESHOLDS]
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                code = app([*asked, *([] if as_text else ["--json"])], standalone_mode=False)
            assert not code, (asked, code)
            if as_text:
                rows = csv.DictReader(io.StringIO(printed.getvalue()))
                found.append(sorted(row["fate"] for row in rows))
            else:
                lines = printed.getvalue().splitlines()
                found.append(told([json.loads(line) for line in lines]))
    return found


def alike(found: Any, expected: Any) -> bool:
    """Whether a document has all that is expected; it may have more.
    Numbers may be a little off, and hits that are as similar in another order."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(
            name in found and alike(found[name], value) for name, value in expected.items()
        )
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return False
        if all(isinstance(one, dict) and {"id", "similarity"} <= one.keys() for one in expected):
            by_id = {one["id"]: one for one in found}
            return all(one["id"] in by_id and alike(by_id[one["id"]], one) for one in expected)
        return all(map(alike, found, expected))
    if isinstance(expected, float) and not isinstance(found, str | None):
        return bool(abs(found - expected) <= TOLERANCE)
    return bool(found == expected)


def _hit(image_id: str, similarity: float) -> dict[str, Any]:
    return {"id": image_id, "similarity": similarity}


@pytest.mark.parametrize(
    ("found", "expected", "is_alike"),
    [
        ({"a": 1.0, "new": 2}, {"a": 1.0004}, True),
        ({"a": 1.0}, {"a": 1.01}, False),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ([_hit("a", 0.9), _hit("b", 0.9)], [_hit("b", 0.9004), _hit("a", 0.9)], True),
        ([_hit("a", 0.9), _hit("b", 0.8)], [_hit("b", 0.9), _hit("a", 0.8)], False),
        ({}, {"a": None}, False),
        ({"a": None}, {"a": 0.5}, False),
    ],
)
def test_what_counts_as_the_same_answer(found: Any, expected: Any, is_alike: bool) -> None:
    assert alike(found, expected) == is_alike
