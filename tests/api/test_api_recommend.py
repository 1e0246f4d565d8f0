"""POST /v1/recommend and GET /v1/studies/{uid}/related, as a portal uses them."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

UNKNOWN = "00000000-0000-0000-0000-000000000000"
HIT = {"id", "study", "series", "sop", "frame", "labels", "similarity", "hamming", "because"}


def recommended(client: TestClient, content: bytes | None = None, **data: Any) -> Any:
    files = None if content is None else {"file": ("any", content)}
    response = client.post("/v1/recommend", files=files, data=data)
    assert response.status_code == 200, response.text
    return response.json()


def related(client: TestClient, study: str, **params: Any) -> Any:
    response = client.get(f"/v1/studies/{study}/related", params=params)
    assert response.status_code == 200, response.text
    return response.json()


def test_an_upload_leads_to_the_cases_most_like_it(client, indexed, id_of) -> None:
    path = indexed.files["ct"][0]  # of study 1.2.4.0, as is ct[1]
    answer = recommended(client, path.read_bytes(), k=40, where="modality=CT")
    assert set(answer) == {"ood", "evidence", "hits", "votes"}
    assert [hit["study"] for hit in answer["hits"]] != []
    assert sorted(hit["study"] for hit in answer["hits"]) == ["1.2.4.1", "1.2.4.2"]
    assert all(set(hit) >= HIT and hit["because"] is None for hit in answer["hits"])
    similarities = [hit["similarity"] for hit in answer["hits"]]
    assert similarities == sorted(similarities, reverse=True)
    assert answer["evidence"]["liked"] == 1
    assert answer["evidence"]["model"] == client.get("/healthz").json()["model"]
    assert answer["votes"] == [{"label": "ct", "share": 1.0, "hits": 2}]
    everything = recommended(
        client, path.read_bytes(), k=40, where="modality=CT", group_by="none", exclude="none"
    )
    found = {hit["id"] for hit in everything["hits"]}
    assert found == {id_of(one) for one in indexed.files["ct"][1:]}  # not the image itself


def test_liked_images_say_which_of_them_a_hit_is_like(client, indexed, id_of) -> None:
    stripes, rings = id_of(indexed.files["stripes"][0]), id_of(indexed.files["rings"][0])
    answer = recommended(client, like=[stripes, rings.upper()], k=30)
    assert {hit["because"] for hit in answer["hits"]} == {stripes, rings}
    assert not {hit["id"] for hit in answer["hits"]} & {stripes, rings}
    assert answer["evidence"]["liked"] == 2
    for hit in answer["hits"][:3]:
        like = {"id": hit["because"], "k": 35, "exact": "true"}
        beside = client.post("/v1/search", data=like).json()["hits"]
        (same,) = [one for one in beside if one["id"] == hit["id"]]
        assert same["similarity"] == pytest.approx(hit["similarity"], abs=2e-3)
        assert same["hamming"] == hit["hamming"]
    assert sum(vote["hits"] for vote in answer["votes"]) == len(answer["hits"]) == 28
    assert sum(vote["share"] for vote in answer["votes"]) == pytest.approx(1, abs=1e-3)


def test_what_is_nearer_to_a_disliked_image_is_left_out(client, indexed, id_of) -> None:
    liked, disliked = (id_of(indexed.files[name][0]) for name in ("stripes", "rings"))
    plain = recommended(client, like=liked, k=40, group_by="none")
    kept = recommended(client, like=liked, dislike=disliked, k=40, group_by="none")
    left_out = {hit["id"] for hit in plain["hits"]} - {hit["id"] for hit in kept["hits"]}
    assert disliked in left_out
    assert kept["evidence"]["disliked"] == 1
    assert kept["evidence"]["nearer_to_disliked"] == len(left_out) - 1
    against = client.post("/v1/search", data={"id": disliked, "k": 35, "exact": "true"}).json()
    nearness = {hit["id"]: hit["similarity"] for hit in against["hits"]}
    for hit in plain["hits"]:
        if hit["id"] != disliked and abs(nearness[hit["id"]] - hit["similarity"]) > 2e-3:
            assert (hit["id"] in left_out) == (nearness[hit["id"]] > hit["similarity"])


def test_a_study_leads_to_other_studies(client) -> None:
    answer = related(client, "1.2.4.1", k=40)
    assert answer["evidence"]["liked"] == 2
    studies = [hit["study"] for hit in answer["hits"] if hit["study"] is not None]
    assert sorted(studies) == ["1.2.4.0", "1.2.4.2", "1.2.4.5", "1.2.4.6"]
    assert {hit["because"] for hit in answer["hits"]} <= {hit["id"] for hit in of_study(client)}
    same = recommended(client, study="1.2.4.1", k=40)
    assert same["hits"] == answer["hits"]
    narrow = related(client, "1.2.4.1", where=["modality=MR"], group_by="none", k=40)
    assert len(narrow["hits"]) == 4
    assert {hit["modality"] for hit in narrow["hits"]} == {"MR"}


def of_study(client: TestClient) -> list[Any]:
    response = client.get("/v1/studies/1.2.4.1/related", params={"k": 1})
    first = response.json()["hits"][0]["because"]
    found = client.post("/v1/search", data={"id": first, "where": "study=1.2.4.1"}).json()["hits"]
    return [{"id": first}, *found]


def test_a_diverse_list_begins_with_the_most_similar(client, indexed, id_of) -> None:
    liked = id_of(indexed.files["stripes"][0])
    plain = recommended(client, like=liked, k=5)
    diverse = recommended(client, like=liked, k=5, diversity=0.9)
    assert diverse["hits"][0] == plain["hits"][0]
    assert [hit["id"] for hit in diverse["hits"]] != [hit["id"] for hit in plain["hits"]]
    assert diverse["evidence"]["diversity"] == 0.9


@pytest.mark.parametrize(("served", "hits"), [("foreign_client", True), ("refusing_client", False)])
def test_a_foreign_example_is_told_or_refused(
    request: pytest.FixtureRequest, indexed, id_of, served, hits
) -> None:
    client = request.getfixturevalue(served)
    content, liked = indexed.files["ct"][0].read_bytes(), id_of(indexed.files["ct"][2])
    answers = [recommended(client, content), recommended(client, like=liked)]
    for answer in [*answers, related(client, "1.2.4.1")]:
        assert answer["ood"]["foreign"] is True
        assert bool(answer["hits"]) == hits
        assert bool(answer["evidence"]["rungs"]) == hits


@pytest.mark.parametrize(
    ("data", "status", "code", "said"),
    [
        ({}, 400, "query", "no example is liked"),
        ({"dislike": UNKNOWN}, 400, "query", "no example is liked"),
        ({"like": UNKNOWN}, 404, "image-not-found", UNKNOWN),
        ({"like": "../../etc/passwd"}, 404, "image-not-found", "not the id"),
        ({"study": "1.9.9"}, 404, "image-not-found", "'1.9.9'"),
        ({"like": UNKNOWN, "dislike": UNKNOWN}, 400, "query", "liked and disliked"),
        ({"study": "1.2.4.1", "diversity": "2"}, 400, "query", "diversity is 2.0"),
        ({"study": "1.2.4.1", "k": "0"}, 400, "query", "k is 0"),
        ({"study": "1.2.4.1", "group_by": "series"}, 400, "query", "group_by is 'series'"),
        ({"study": "1.2.4.1", "where": "nonsense"}, 400, "query", "field=value"),
        ({"study": "1.2.4.1", "k": "Doe^Jane"}, 422, "invalid-request", "k: "),
    ],
)
def test_what_cannot_be_answered_is_a_problem(client, data, status, code, said) -> None:
    response = client.post("/v1/recommend", data=data)
    assert response.status_code == response.json()["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    assert said in response.json()["detail"]
    assert "Doe" not in response.text


def test_too_many_examples_are_refused(client, indexed, id_of) -> None:
    ids = [id_of(path) for paths in indexed.files.values() for path in paths]
    response = client.post("/v1/recommend", data={"like": ids[:33]})
    assert (response.status_code, response.json()["code"]) == (400, "query")
    assert "33 images are liked; give up to 32" in response.json()["detail"]


def test_an_upload_that_is_no_image_is_a_422_with_the_reason(client) -> None:
    response = client.post("/v1/recommend", files={"file": b"Dear colleague"})
    assert (response.status_code, response.json()["code"]) == (422, "not-an-image")


@pytest.mark.parametrize("study", ["1.9.9", "..%2F..", "%00", "x" * 500])
def test_an_unknown_study_is_a_404(client, study) -> None:
    response = client.get(f"/v1/studies/{study}/related")
    assert (response.status_code, response.json()["status"]) == (404, 404)


def test_no_path_no_patient_no_tenant_leaves_the_service(client, indexed) -> None:
    path = indexed.files["ct"][0]
    texts = [
        client.post("/v1/recommend", files={"file": path.read_bytes()}).text,
        client.get("/v1/studies/1.2.4.1/related").text,
    ]
    for text in texts:
        assert '"hits":[{' in text
        for hidden in ("path", "patient", "tenant", str(path.parent.parent), "idden"):
            assert hidden not in text, hidden


# What a search has gained


def test_pages_of_a_search_make_up_the_whole_list(client, indexed) -> None:
    content = indexed.files["rings"][0].read_bytes()

    def searched(**data: Any) -> Any:
        return client.post("/v1/search", files={"file": content}, data=data).json()

    for more in ({}, {"order": "hamming"}, {"exact": "true"}, {"group_by": "study"}):
        whole = searched(k=100, **more)
        assert whole["next_page"] is None
        hits: list[Any] = []
        page: dict[str, str] = {}
        for _ in range(10):
            answer = searched(k=8, **more, **page)
            hits += answer["hits"]
            if answer["next_page"] is None:
                break
            page = {"page": answer["next_page"]}
        rest = searched(k=100, **more, page=f"{whole['evidence']['rung']}:8")
        if answer["evidence"]["rung"] == whole["evidence"]["rung"]:
            assert hits == whole["hits"]
            assert rest["hits"] == whole["hits"][8:]


def test_one_hit_of_each_study_and_none_of_the_own(client, indexed, id_of) -> None:
    path = indexed.files["ct"][0]
    files, data = {"file": path.read_bytes()}, {"k": 30, "where": "modality=CT"}

    def studies(**more: Any) -> list[str]:
        by_file = client.post("/v1/search", files=files, data=data | more).json()["hits"]
        return sorted(hit["study"] for hit in by_file)

    assert studies() == [f"1.2.4.{i // 2}" for i in range(6)]
    assert studies(group_by="study") == ["1.2.4.0", "1.2.4.1", "1.2.4.2"]
    assert studies(exclude="study") == [f"1.2.4.{i // 2}" for i in range(2, 6)]
    # Each of its images is of another patient, and so this leaves out nothing more.
    assert studies(exclude="patient") == studies(exclude="study")
    assert studies(exclude="none", group_by="") == studies()
    by_id = client.post("/v1/search", data={"id": id_of(path), "exclude": "study", **data}).json()
    assert sorted(hit["study"] for hit in by_id["hits"]) == studies(exclude="study")


def test_facets_may_be_left_out(client, indexed) -> None:
    files = {"file": indexed.files["ct"][0].read_bytes()}
    answer = client.post("/v1/search", files=files, data={"facets": "false"}).json()
    assert answer["facets"] == {}
    assert answer["hits"]
    assert "facets" not in answer["evidence"]["timings_ms"]


def test_the_evidence_says_what_was_counted_and_compared(client, indexed) -> None:
    files = {"file": indexed.files["ct"][0].read_bytes()}
    evidence = client.post("/v1/search", files=files, data={"exact": "true"}).json()["evidence"]
    told = ("estimated", "facets_estimated", "approximate", "note")
    assert [evidence[name] for name in told] == [False, False, False, None]
    assert evidence["compared"] == evidence["candidates"] == 35


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"page": "first"}, "page 'first' is none"),
        ({"page": "s9:10"}, "page 's9:10' is none"),
        ({"page": "exact:10"}, "exact"),
        ({"page": "dense:999"}, "goes on to hit 1000"),
        ({"group_by": "series"}, "group_by is 'series'"),
        ({"exclude": "all"}, "exclude is 'all'"),
    ],
)
def test_a_wrong_value_is_a_400(client, indexed, data, said) -> None:
    files = {"file": indexed.files["ct"][0].read_bytes()}
    response = client.post("/v1/search", files=files, data=data)
    assert (response.status_code, response.json()["code"]) == (400, "query")
    assert said in response.json()["detail"]
