"""Searches by an upload go on: pages, filters, an address, by a token and without the picture."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from services.loopback import LoopbackClient
from test_api_page import EVERYTHING, Page

from api.portal.kept import KeptQueries, KeptQuery, saved_of
from api.security.access import COOKIE, Caller
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.errors import QueryExpired
from engine.records import ImageRecord, Observations
from engine.settings import Settings
from indexer.imaging.orientation import AS_STORED
from indexer.imaging.region import WholePicture
from indexer.ledger.database import Database


def kept(model: str = "m", dim: int = 8) -> KeptQuery:
    seen = Observations(np.zeros((1, dim), np.float32), np.zeros((1, 1), np.uint8))
    return KeptQuery(seen, ImageRecord(), model)


def test_an_upload_is_kept_for_ten_minutes_after_its_last_use() -> None:
    now = 0.0
    queries = KeptQueries(lambda: now)
    token, query = queries.keep("ward", kept()), kept()
    now = 599
    assert queries.of(token, "ward", "m").model == query.model
    now = 1198
    queries.of(token, "ward", "m")
    now = 1198 + 600
    with pytest.raises(QueryExpired, match="choose the file again"):
        queries.of(token, "ward", "m")
    assert len(queries) == 0


def test_an_upload_is_its_session_s_and_its_model_s_alone() -> None:
    queries = KeptQueries()
    token = queries.keep("ward", kept())
    for owner, model in (("other", "m"), ("ward", "another")):
        with pytest.raises(QueryExpired):
            queries.of(token, owner, model)
    assert len({queries.keep("ward", kept()) for _ in range(8)}) == 8
    queries.forget("ward")
    assert len(queries) == 0


def test_no_more_is_kept_than_there_is_room_for() -> None:
    queries = KeptQueries(most_of_one=3, most=5)
    mine = [queries.keep("ward", kept()) for _ in range(4)]
    with pytest.raises(QueryExpired):
        queries.of(mine[0], "ward", "m")
    queries.of(mine[1], "ward", "m")
    for other in "abc":
        queries.keep(other, kept())
    # Of all together the one that was used longest ago is gone.
    assert len(queries) == 5
    queries.of(mine[1], "ward", "m")
    with pytest.raises(QueryExpired):
        queries.of(mine[2], "ward", "m")
    small = KeptQueries(most_bytes=3 * kept(dim=4096).nbytes)
    for number in range(9):
        small.keep(str(number), kept(dim=4096))
    assert len(small) == 3


def test_saved_filters_are_one_key_s_in_every_session() -> None:
    ward = Caller("ward", "default", frozenset({Scope.SEARCH}), session="one")
    same = {saved_of(ward), saved_of(replace(ward, session="two"))}
    assert len(same) == 1
    others = {saved_of(replace(ward, key="other")), saved_of(replace(ward, tenant="b"))}
    assert len(same | others | {saved_of(None)}) == 4


def test_the_search_goes_on_when_there_is_no_room_for_its_picture() -> None:
    picture = WholePicture(b"0" * 1000, AS_STORED)
    queries = KeptQueries(most_picture_bytes=2500)
    tokens = [queries.keep("ward", replace(kept(), whole=picture)) for _ in range(2)]
    # Used lately, so that the other one's goes first.
    assert queries.of(tokens[0], "ward", "m").whole == picture
    tokens.append(queries.keep("ward", replace(kept(), whole=picture)))
    found = [queries.of(token, "ward", "m") for token in tokens]
    assert [one.whole for one in found] == [picture, None, picture]
    queries.forget("ward")
    # What is gone takes no room.
    again = [queries.keep("ward", replace(kept(), whole=picture)) for _ in range(2)]
    assert all(queries.of(token, "ward", "m").whole for token in again)


def test_after_an_upload_pages_follow_each_other_and_filters_are_links(client, indexed) -> None:
    content = indexed.files["rings"][0].read_bytes()
    data = {"k": "15", "exact": "true", **EVERYTHING}
    page = Page(client.post("/", files={"file": content}, data=data).text)
    assert page.thumbnails()[0].startswith("data:image/jpeg")
    shown, pages = page.thumbnails()[1:], 1
    while following := page.all("a", rel="next"):
        address = str(following[0]["href"])
        assert re.match(r"\./\?query=[\w-]{24}&", address)
        page = Page(client.get(address.removeprefix(".")).text)
        # The picture is not shown again: the browser has it.
        shown, pages = shown + page.thumbnails(), pages + 1
    whole = client.post("/", files={"file": content}, data={**data, "k": "35"})
    assert (shown, pages) == (Page(whole.text).thumbnails()[1:], 3)
    narrowed = next(
        str(one["href"])
        for one in page.all("a")
        if "query=" in (one.get("href") or "") and "where=modality%3DMR" in (one["href"] or "")
    )
    page = Page(client.get(narrowed.removeprefix(".")).text)
    assert len(page.all("meter")) == 4
    assert page.all("div", **{"data-here": narrowed})


def test_the_patient_of_an_upload_is_left_out_on_every_page(client, indexed) -> None:
    content = indexed.files["ct"][0].read_bytes()
    data = {"k": "1", "where": "modality=CT"}
    page = Page(client.post("/", files={"file": content}, data=data).text)
    studies = [one["href"] for one in page.all("a") if "studies/" in (one["href"] or "")]
    address = str(page.all("a", rel="next")[0]["href"])
    page = Page(client.get(address.removeprefix(".")).text)
    studies += [one["href"] for one in page.all("a") if "studies/" in (one["href"] or "")]
    assert sorted(studies) == ["studies/1.2.4.1", "studies/1.2.4.2"]
    assert not page.all("a", rel="next")


def test_a_search_that_is_over_says_how_to_go_on(client) -> None:
    answer = client.get("/", params={"query": "never", "where": "modality=CT"})
    page = Page(answer.text)
    assert answer.status_code == 410
    assert "This search is over" in page.text
    assert "choose the file again" in page.text
    assert page.all("input", type="file")
    # The filters stay.
    assert page.all("input", type="hidden", name="where", value="modality=CT")
    assert "never" not in answer.text


@pytest.fixture(scope="module")
def signed(indexed, store_root: Path) -> Iterator[tuple[TestClient, Keys, Settings]]:
    settings = indexed.copy(store_root / "data")
    with (
        Database(f"sqlite:///{store_root / 'data' / 'ledger.sqlite'}") as database,
        LoopbackClient(create_service(settings), follow_redirects=False) as client,
    ):
        yield client, Keys(database), settings


def session(client: TestClient, written: str, **form: str) -> tuple[dict[str, str], str]:
    """The headers of a new session, and where the sign-in leads."""
    answer = client.post("/login", data={"key": written, **form})
    client.cookies.clear()
    found = re.match(rf"{COOKIE}=([\w-]+);", answer.headers["set-cookie"])
    assert found is not None
    return {"Cookie": f"{COOKIE}={found[1]}"}, answer.headers["location"]


def test_a_token_opens_nothing_in_another_session(signed, indexed) -> None:
    client, keys, settings = signed
    mine, _ = session(client, keys.create("ward", [Scope.SEARCH])[1])
    _, same_key = keys.create("other", [Scope.SEARCH])
    csrf = re.search(r'name="csrf" value="(\w+)"', client.get("/", headers=mine).text)
    assert csrf is not None
    files = {"file": indexed.files["ct"][0].read_bytes()}
    page = client.post("/", headers=mine, files=files, data={"csrf": csrf[1]})
    token = re.search(r'data-kept="([\w-]+)"', page.text)
    assert token is not None
    address = f"/?query={token[1]}"
    assert client.get(address, headers=mine).status_code == 200
    for other in (session(client, same_key)[0], session(client, same_key)[0]):
        assert client.get(address, headers=other).status_code == 410
    for file in settings.data_dir.rglob("*"):
        assert not file.is_file() or token[1].encode() not in file.read_bytes()
    assert client.post("/logout", headers=mine, data={"csrf": csrf[1]}).status_code == 303
    assert len(client.app.state.kept_queries) == 0


def test_a_link_leads_to_its_page_by_way_of_the_sign_in(signed) -> None:
    client, keys, _ = signed
    _, written = keys.create("ward", [Scope.SEARCH])
    for asked, to in (
        ("/?study=1.2.4.0&where=modality%3DCT", "?study=1.2.4.0&where=modality%3DCT"),
        ("/studies/1.2.4.0", "studies/1.2.4.0"),
    ):
        sent = client.get(asked)
        root = "../" * (asked.count("/") - 1)
        assert (sent.status_code, sent.headers["location"].partition("?")[0]) == (
            303,
            f"{root}login",
        )
        form = Page(client.get("/" + sent.headers["location"].removeprefix(root)).text)
        assert form.all("input", type="hidden", name="to", value=to)
        mine, led = session(client, written, to=to)
        assert led == "./" + to
        assert client.get("/" + to, headers=mine).status_code == 200
    for elsewhere in (
        "//evil.example",
        "https://evil.example/",
        "studies/../..",
        "x\r\nSet-Cookie: a",
    ):
        assert session(client, written, to=elsewhere)[1] == "./"
