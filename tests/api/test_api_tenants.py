"""Two tenants of one service are answered as each would be by a service of its own."""

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings as examples, strategies as st
from services.loopback import LoopbackClient

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.records import Point
from engine.settings import Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.ledger.database import Database

TENANTS = ("default", "north")
UIDS = [f"1.2.3.{n}" for n in (0, 1, 2, 3, 10, 13)]
STUDIES = [f"1.2.4.{n}" for n in (0, 1, 2, 5, 6)]


@dataclass(frozen=True)
class Two:
    """Both tenants in one service, and each alone in another. ids: of the images of both, and of
    one that nobody has."""

    both: TestClient
    alone: dict[str, TestClient]
    sent: dict[TestClient, dict[str, dict[str, str]]]
    ids: list[str]


def _owned(points: list[Point]) -> list[Point]:
    """The points dealt out to the tenants: some to both, with the same UIDs and vectors."""
    found = []
    for number, point in enumerate(points):
        for which, tenant in enumerate(TENANTS):
            if (number + which) % 3:
                record = replace(point.record, tenant=tenant)
                own = point.id if which == 0 else str(uuid.uuid5(uuid.UUID(point.id), tenant))
                found.append(replace(point, id=own, record=record))
    return found


@pytest.fixture(scope="module")
def two(indexed, store_root: Path) -> Iterator[Two]:
    with Archive(indexed.copy(store_root / "first")) as archive:
        points = _owned(list(archive.store.scroll(Filter(), with_z=True)))
    clients, sent = {}, {}
    with ExitStack() as opened:
        for name in ("both", *TENANTS):
            settings: Settings = indexed.copy(store_root / name)
            with Archive(settings) as archive:
                archive.store.delete(Filter())
                for tenant in TENANTS:
                    if name in ("both", tenant):
                        own = [one for one in points if one.record.tenant == tenant]
                        archive.of(tenant).store.upsert(own)
                archive.store.flush()
            with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
                keys = Keys(database)
                made = {one: keys.create(one, list(Scope), tenant=one)[1] for one in TENANTS}
            client = opened.enter_context(LoopbackClient(create_service(settings)))
            clients[name] = client
            sent[client] = {one: {"Authorization": f"Bearer {key}"} for one, key in made.items()}
        both = clients.pop("both")
        ids = [point.id for point in points] + [str(uuid.UUID(int=7))]
        yield Two(both, clients, sent, ids)


def said(client: TestClient, headers: dict[str, str], method: str, path: str, **more: Any) -> Any:
    """Status and text of an answer, without what is another one each time."""
    headers = {**headers, "X-Request-Id": "same"}
    answer = client.request(method, path, headers=headers, **more)
    text = re.sub(r'"timings_ms":\s*\{[^}]*\}', "", answer.text)
    return answer.status_code, answer.headers.get("etag"), text


WHERE = st.sampled_from([[], ["modality=CT"], ["labels!=rings"], ["study_year=2011..2014"]])
GETS = st.one_of(
    st.sampled_from(["/v1/stats", "/v1/sources", "/v1/facets", "/v1/duplicates", "/v1/jobs/1"]),
    st.sampled_from([f"/v1/archive/{one}" for one in ("map", "growth", "refusals")]),
    st.sampled_from([f"/v1/studies/{one}/related" for one in STUDIES]),
)


@examples(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=GETS, where=WHERE, tenant=st.sampled_from(TENANTS))
def test_what_is_read_is_the_same(two: Two, path: str, where: list[str], tenant: str) -> None:
    params = {"where": where} if path in ("/v1/facets", "/v1/duplicates") else {"similarity": 0.9}
    answers = [
        said(client, two.sent[client][tenant], "GET", path, params=params)
        for client in (two.both, two.alone[tenant])
    ]
    assert answers[0] == answers[1]


@examples(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), where=WHERE, tenant=st.sampled_from(TENANTS))
def test_what_is_found_is_the_same(
    two: Two, data: st.DataObject, where: list[str], tenant: str
) -> None:
    named = data.draw(
        st.one_of(
            st.sampled_from(two.ids).map(lambda one: {"id": one}),
            st.sampled_from(UIDS).map(lambda one: {"sop": one}),
            st.sampled_from(STUDIES).map(lambda one: {"study": one}),
        )
    )
    own = data.draw(st.sampled_from([None, "study", "patient"]))
    body = {**named, "where": where, "k": 12, "exclude_own": own}
    answers = [
        said(client, two.sent[client][tenant], "POST", "/v1/search", json=body)
        for client in (two.both, two.alone[tenant])
    ]
    assert answers[0] == answers[1]


@examples(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), tenant=st.sampled_from(TENANTS), kind=st.sampled_from(["", "/thumbnail"]))
def test_an_image_of_the_other_is_none(
    two: Two, data: st.DataObject, tenant: str, kind: str
) -> None:
    image = data.draw(st.sampled_from(two.ids))
    answers = [
        said(client, two.sent[client][tenant], "GET", f"/v1/images/{image}{kind}")
        for client in (two.both, two.alone[tenant])
    ]
    assert answers[0] == answers[1]


def test_both_have_images_of_the_same_instances(two: Two) -> None:
    found = [
        json.loads(said(two.both, two.sent[two.both][one], "GET", "/v1/stats")[2])
        for one in TENANTS
    ]
    assert all(one["points"] > 15 for one in found)
    hits = [
        said(two.both, two.sent[two.both][one], "POST", "/v1/search", json={"sop": "1.2.3.1"})[0]
        for one in TENANTS
    ]
    assert 200 in hits
