"""Searches refined by what is liked and disliked, and searches by several images, as a browser
without JavaScript would."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from test_api_page import EVERYTHING, Page

from api.portal.kept import recent_of
from api.portal.question import Mark, Question
from api.security.access import Caller
from api.security.policy import Scope

EVERY_LINK = "&group_by=none&exclude_own=none"


def opened(client: TestClient, address: str) -> Page:
    answer = client.get(address.removeprefix("."))
    assert answer.status_code == 200, answer.text
    return Page(answer.text)


def hits(page: Page) -> list[str]:
    """Ids of the hits, in order."""
    return [str(one["value"]) for one in page.all("input", type="checkbox", name="image")]


def link(page: Page, mark: str, image: str) -> str:
    """Where the button under a hit leads."""
    marked = (str(one["href"]) for one in page.all("a", **{"data-mark": mark}))
    return next(one for one in marked if image in one)


def recommended(client: TestClient, k: int = 100, **asked: Any) -> list[str]:
    answer = client.post("/v1/recommend", json={"k": k, **asked})
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["hits"]]


def walked(client: TestClient, address: str) -> Iterator[Page]:
    """The pages of an answer."""
    while address:
        page = opened(client, address)
        yield page
        following = page.all("a", rel="next")
        address = str(following[0]["href"]) if following else ""


def test_a_hit_is_liked_another_disliked_and_each_taken_away_again(client, indexed, id_of) -> None:
    own = id_of(indexed.files["rings"][0])
    before = opened(client, f"/?like={own}&k=6{EVERY_LINK}")
    first, second, *_ = hits(before)
    address = link(before, "like", first)
    assert address == f"./?like={own}&like={first}&k=6{EVERY_LINK}"
    page = opened(client, address)
    assert (
        hits(page)
        == recommended(client, like=[own, first], group_by="none", exclude_own="none")[:6]
    )
    assert not {own, first} & set(hits(page))
    disliked = link(page, "dislike", hits(page)[-1])
    unlike = hits(page)[-1]
    page = opened(client, disliked)
    wanted = {"like": [own, first], "dislike": [unlike], "group_by": "none", "exclude_own": "none"}
    assert hits(page) == recommended(client, **wanted)[:6]
    assert "2 examples and 1 disliked" in page.text
    # Chips with pictures; each leads to the search without it.
    chips = [str(one["href"]) for one in page.all("a")]
    assert f"./?like={first}&dislike={unlike}&k=6{EVERY_LINK}" in chips
    assert f"./?like={own}&dislike={unlike}&k=6{EVERY_LINK}" in chips
    assert f"./?like={own}&like={first}&k=6{EVERY_LINK}" in chips
    small = [one["src"] for one in page.all("img", width="40")]
    assert small == [f"v1/images/{one}/thumbnail" for one in (own, first, unlike)]
    # The last one is undone, whichever it was.
    (undo,) = page.all("a", **{"data-mark": "undo"})
    assert undo["href"] == address
    (undo,) = opened(client, str(undo["href"])).all("a", **{"data-mark": "undo"})
    assert undo["href"] == f"./?like={own}&k=6{EVERY_LINK}"
    assert not before.all("a", **{"data-mark": "undo"})
    assert second in hits(before)


def test_addresses_keep_the_order_in_which_images_were_marked() -> None:
    asked = Question(marks=(Mark("a", True), Mark("b", False), Mark("c", True)), k=5)
    assert asked.address() == "./?like=a&dislike=b&like=c&k=5"
    assert asked.marked("b", liked=True) == "./?like=a&like=c&like=b&k=5"
    assert asked.undone == "./?like=a&dislike=b&k=5"
    alone = Question(marks=(Mark("a", True), Mark("b", False)))
    # Without anything to be like, what is disliked says nothing.
    assert alone.unmarked("a") == "./"
    assert Question(kept=("t",), marks=alone.marks).unmarked("a") == "./?query=t&dislike=b"
    assert Question(kept=("t",), marks=alone.marks).unkept("t") == "./?like=a&dislike=b"
    by_bits = Question(marks=(Mark("a", True),), order="hamming")
    assert by_bits.marked("b", liked=True) == "./?like=a&like=b"
    assert by_bits.address(where=("x=1",)) == "./?like=a&where=x%3D1&order=hamming"


def test_pages_of_a_refined_search_are_one_list(client, indexed, id_of) -> None:
    own, other = (id_of(indexed.files[name][0]) for name in ("rings", "stripes"))
    address = f"./?like={own}&like={other}&k=9{EVERY_LINK}"
    shown = [hit for page in walked(client, address) for hit in hits(page)]
    whole = recommended(client, like=[own, other], group_by="none", exclude_own="none")
    assert shown == whole
    assert len(shown) == 33
    beyond = opened(client, f"{address}&page=90")
    assert "There are no more" in beyond.text
    assert beyond.all("a", href=address)


def test_filters_grouping_and_own_patients_hold_in_a_refined_search(client, indexed, id_of) -> None:
    own, other = (id_of(indexed.files["ct"][number]) for number in (0, 2))
    page = opened(client, f"/?like={own}&like={other}&where=modality%3DCT&k=30")
    # Of three studies two are the examples' own.
    assert hits(page) == recommended(client, like=[own, other], where=["modality=CT"])
    assert len(hits(page)) == 1
    every = f"./?like={own}&like={other}&where=modality%3DCT&k=30"
    assert page.all("a", href=f"{every}&group_by=none")
    assert page.all("a", href=f"{every}&exclude_own=none")
    assert page.all("a", href=f"./?like={own}&like={other}&k=30")
    whole = opened(client, f"{every}{EVERY_LINK}")
    assert len(hits(whole)) == 4
    assert page.all("input", type="hidden", name="like", value=other)


def token_of(page: Page) -> str:
    (holder,) = [value for _, found in page.tags if (value := found.get("data-kept"))]
    return str(holder)


def test_an_upload_is_refined_and_the_rest_goes_on_without_it(client, indexed, id_of) -> None:
    content = indexed.files["rings"][0].read_bytes()
    page = Page(client.post("/", files={"file": content}, data={"k": "5", **EVERYTHING}).text)
    token = token_of(page)
    # It is indexed, so it is found; and then it is no hit of the refined search.
    same, liked, *_ = hits(page)
    assert same == id_of(indexed.files["rings"][0])
    address = link(page, "like", liked)
    assert address == f"./?query={token}&like={liked}&k=5{EVERY_LINK}"
    page = opened(client, address)
    wanted = recommended(client, like=[same, liked], group_by="none", exclude_own="none")
    assert hits(page) == wanted[:5]
    assert "Your image" in page.text
    assert page.all("a", href=f"./?like={liked}&k=5{EVERY_LINK}")
    compared = [str(one["href"]) for one in page.all("a") if "compare" in str(one.get("href"))]
    assert compared
    assert all(re.match(rf"compare\?(query={token}|left={liked})&", one) for one in compared)
    over = client.get(f"/?query=never&like={liked}&where=modality%3DCT")
    assert over.status_code == 410
    assert Page(over.text).all("a", href=f"./?like={liked}&where=modality%3DCT")
    assert "never" not in over.text
    nothing = client.get(f"/?query=never&dislike={liked}")
    assert nothing.status_code == 410
    assert liked not in nothing.text


def test_several_files_are_one_search_and_a_bad_one_is_named(client, indexed, id_of) -> None:
    rings, ct = (indexed.files[name][0] for name in ("rings", "ct"))
    files = [
        ("file", ("one.png", rings.read_bytes())),
        ("file", ("<b>letter.txt", b"Dear colleague")),
        ("file", ("two.dcm", ct.read_bytes())),
        ("file", ("again.png", rings.read_bytes())),
    ]
    answer = client.post("/", files=files, data={"k": "6", **EVERYTHING})
    assert answer.status_code == 200
    page = Page(answer.text)
    wanted = recommended(
        client, like=[id_of(rings), id_of(ct)], group_by="none", exclude_own="none"
    )
    assert hits(page) == wanted[:6]
    assert "File 2 of 4, <b>letter.txt, was left out: the content is neither DICOM" in page.text
    assert not page.all("b")
    sent = [src for src in page.thumbnails() if src.startswith("data:image/jpeg")]
    assert len(sent) == 2
    tokens = [str(found["data-kept"]) for _, found in page.tags if found.get("data-kept")]
    assert len(tokens) == 2
    address = f"./?query={tokens[0]}&query={tokens[1]}&k=6{EVERY_LINK}"
    assert page.all("div", **{"data-address": address})
    assert hits(opened(client, address)) == hits(page)
    # Each can be taken away; then it is a search by one image.
    assert page.all("a", href=f"./?query={tokens[1]}&k=6{EVERY_LINK}")
    alone = opened(client, f"./?query={tokens[1]}&k=6{EVERY_LINK}")
    assert hits(alone)[0] == id_of(ct)
    assert alone.all("figure", **{"data-kept": tokens[1]})


def test_files_of_which_none_can_be_used_are_refused_without_their_names(client) -> None:
    files = [("file", (f"letter-{number}.txt", b"Dear colleague")) for number in range(2)]
    answer = client.post("/", files=files)
    assert answer.status_code == 422
    assert "one of 2 files can be used: file 1: the content is neither DICOM" in answer.text
    assert "letter" not in answer.text


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("dislike={a}", 400, "none is liked"),
        ("like={a}&like={b}&dislike={a}", 400, "is liked and disliked"),
        ("like={a}&like={b}&page=dense:3", 400, "is none of a search by several images"),
        ("like={a}&like={b}&page=0", 400, "is none of a search by several images"),
        ("like={a}&like={b}&k=0", 400, "ask for 1 to 1000"),
        ("like={a}&sop=1.2.3.0", 400, "Give one image"),
        ("like={a}&tiles=huge", 400, "use one of small, medium, large"),
        ("like={a}&dislike=x", 404, "is not the id of an image"),
        ("like={a}&dislike=00000000-0000-4000-8000-000000000000", 404, "no indexed image"),
        ("&".join(f"query={number}" for number in range(9)), 400, "choose up to 8"),
    ],
)
def test_mistakes_are_told_on_the_page(client, indexed, id_of, query, status, said) -> None:
    a, b = (id_of(path) for path in indexed.files["rings"][:2])
    answer = client.get("/?" + query.format(a=a, b=b))
    page = Page(answer.text)
    assert answer.status_code == status
    assert page.all("section", role="alert")
    assert said.lower() in page.text.lower()


def test_more_than_eight_files_are_refused(client) -> None:
    answer = client.post("/", files=[("file", (f"{number}", b"x")) for number in range(9)])
    assert answer.status_code == 400
    assert "9 images came; choose up to 8 at once" in answer.text


def test_a_foreign_example_is_refused_in_a_refined_search(refusing_client, indexed) -> None:
    files = [("file", (path.name, path.read_bytes())) for path in indexed.files["ct"][:2]]
    answer = refusing_client.post("/", files=files)
    page = Page(answer.text)
    assert answer.status_code == 200
    assert "Not searched" in page.text
    assert "this service refuses what is foreign" in page.text
    assert not hits(page)


def test_the_size_of_the_tiles_stays_in_the_address(client, indexed, id_of) -> None:
    own = id_of(indexed.files["rings"][0])
    page = opened(client, f"/?like={own}&k=3")
    assert page.all("ol", **{"class": "grid medium"})
    assert page.all("a", href=f"./?like={own}&k=3&tiles=small", **{"data-tiles": "small"})
    small = opened(client, f"/?like={own}&k=3&tiles=small")
    assert small.all("ol", **{"class": "grid small"})
    (chosen,) = small.all("a", **{"data-tiles": "small"})
    assert chosen["aria-current"] == "true"
    # All that leads on keeps it.
    assert "tiles=small" in link(small, "like", hits(small)[0])
    assert small.all("input", type="hidden", name="tiles", value="small")


def test_recent_searches_are_bound_to_their_session_and_say_no_name(client, indexed, id_of) -> None:
    page = opened(client, f"/?like={id_of(indexed.files['ct'][0])}&where=modality%3DCT")
    (here,) = [found for _, found in page.tags if "data-recent" in found]
    assert here["data-recent"] == "CT CHEST 2010, 1 filter"
    files = [("file", ("Doe^Jane.dcm", path.read_bytes())) for path in indexed.files["ct"][:2]]
    (here,) = [
        found
        for _, found in Page(client.post("/", files=files).text).tags
        if "data-recent" in found
    ]
    assert here["data-recent"] == "2 of yours"
    assert re.fullmatch(r"\./\?query=[\w-]{24}&query=[\w-]{24}", str(here["data-here"]))
    sessions = [
        Caller("key", "ward", frozenset([Scope.SEARCH]), session=secret)
        for secret in ("one", "two")
    ]
    mine, other = map(recent_of, sessions)
    assert mine != other
    assert "one" not in mine
