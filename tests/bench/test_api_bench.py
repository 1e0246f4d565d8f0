"""The figures by which the service is judged follow from what was measured."""

from typing import Any

import pytest

from bench.api import judged


def row(question: str, system: str, clients: int, rate: float, p50: float) -> dict[str, Any]:
    named = {"question": question, "system": system, "clients": clients}
    return {**named, "requests/s": rate, "p50 ms": p50, "p99 ms": 3 * p50}


def test_the_service_is_judged_beside_the_engine_and_the_plain_handler() -> None:
    rows = [
        row("id", "service", 1, 250, 4.0),
        row("id", "engine", 1, 1000, 1.0),
        row("id", "plain", 1, 200, 5.0),
        row("id", "service", 32, 300, 100.0),
        row("id", "engine", 32, 1200, 25.0),
        row("upload", "service", 1, 10, 90.0),
        row("upload", "engine", 1, 12, 75.0),
        row("upload", "service", 32, 18, 1700.0),
        row("upload", "engine", 32, 20, 1600.0),
    ]
    found = [one["value"] for one in judged(rows)]
    assert found == pytest.approx([3.0, 1.2, 0.25, 0.9, 3.0, 0.8])
