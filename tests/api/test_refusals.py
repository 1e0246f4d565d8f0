"""Refusals by reason: the worst first, with what to do."""

import pytest
from commands import run

from api.cli.refusals import by_reason
from engine.errors import QueryError, RefusalReason


def test_every_reason_has_its_advice() -> None:
    told = by_reason(dict.fromkeys(RefusalReason, 1))
    assert {one["reason"] for one in told} == {*RefusalReason}
    assert all(len(one["what_to_do"]) > 5 for one in told)


def test_what_may_be_a_lost_image_comes_before_what_is_none() -> None:
    refused = {"no-pixels": 900, "not-an-image": 1000, "damaged": 1, "truncated": 3, "too-slow": 1}
    told = [(one["reason"], one["count"]) for one in by_reason(refused)]
    assert told == [
        ("too-slow", 1),
        ("truncated", 3),
        ("damaged", 1),
        ("not-an-image", 1000),
        ("no-pixels", 900),
    ]
    assert by_reason({"damaged": 0}) == []


@pytest.mark.parametrize("command", [("info",), ("jobs", "report", 1)])
def test_a_reason_that_is_none_is_answered_with_those_that_are(command, tmp_path) -> None:
    with pytest.raises(QueryError, match=r"'broken'.*damaged.*worker-died"):
        run(*command, "--reason", "broken", "--data-dir", tmp_path)
