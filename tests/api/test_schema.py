"""Thousands of requests made from the OpenAPI document: each is answered as it says."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings as hypothesis_settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from services.running import served

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from indexer.ledger.database import Database

CASES = 5000


@schemathesis.serializer("multipart/related")
def related(_: object, value: Any) -> bytes:
    """A body of one part, which is anything."""
    return b"--b\r\n\r\n" + str(value).encode() + b"\r\n--b--\r\n"


_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def site(indexed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a service with keys, and a key that may do everything."""
    root: Path = tmp_path_factory.mktemp("schema")
    settings = indexed.copy(root / "data")
    with Database(f"sqlite:///{root / 'data' / 'ledger.sqlite'}") as database:
        _, key = Keys(database).create("every", list(Scope))
    server = settings.server.model_copy(update={"requests_per_second": None})
    with served(create_service(settings.model_copy(update={"server": server})), server) as address:
        yield address, key


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_answer_is_as_the_document_says(site: tuple[str, str], capfd) -> None:
    address, key = site
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 8
    asked = int(os.environ.get("PRECEDENT_SCHEMA_CASES", CASES))
    statuses: Counter[int] = Counter()
    for operation in operations:
        # Some operations have few inputs that differ, so there is room for less than wanted.
        _check(operation, asked // len(operations) + 1, key, statuses)
    forms = [operation for operation in operations if operation.body]
    for start in range(1, 20):
        for operation in forms:
            if (left := asked - statuses.total()) <= 0:
                break
            _check(operation, left // len(forms) + 1, key, statuses, start)
    assert statuses.total() >= asked
    with capfd.disabled():
        print(f"\n{dict(sorted(statuses.items()))}")
    assert statuses[200] > asked / 50
    assert max(statuses) < 500, statuses


def _check(operation, count: int, key: str, statuses: Counter[int], start: int = 0) -> None:
    @seed(start)
    @given(case=operation.as_strategy())
    @hypothesis_settings(
        max_examples=count,
        deadline=None,
        derandomize=False,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case) -> None:
        answer = case.call(headers={"Authorization": f"Bearer {key}"}, timeout=60)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=_CHECKS)

    ask()
