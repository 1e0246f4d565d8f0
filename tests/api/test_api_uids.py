"""Searches for images that are named by DICOM UIDs, in JSON; and by many files at once."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

NOWHERE = "00000000-0000-4000-8000-000000000000"


def asked(client: TestClient, **body: Any) -> Any:
    response = client.post("/v1/search", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_uid_of_an_instance_leads_to_its_image(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][3])  # SOP Instance UID 1.2.3.3
    by_id = client.post("/v1/search", data={"id": own, "k": 5}).json()
    for body in ({"sop": "1.2.3.3"}, {"sop": "1.2.3.3", "frame": 0}, {"id": own}):
        found = asked(client, k=5, **body)
        assert found["hits"] == by_id["hits"]
        assert found["evidence"]["query_id"] == own


def test_a_series_and_a_study_are_represented_by_the_image_in_the_middle(
    client, indexed, id_of
) -> None:
    # Of two images the first is the middle one.
    middle = id_of(indexed.files["ct"][2])
    for body in ({"series": "1.2.5.1"}, {"study": "1.2.4.1"}):
        found = asked(client, k=5, **body)
        assert found["evidence"]["query_id"] == middle
        assert middle not in [hit["id"] for hit in found["hits"]]


def test_an_upload_was_no_indexed_image(client, indexed) -> None:
    content = indexed.files["ct"][0].read_bytes()
    found = client.post("/v1/search", files={"file": content}).json()
    assert found["evidence"]["query_id"] is None
    assert {hit["likeness"] for hit in found["hits"]} == {None}
    assert {hit["name"] for hit in found["hits"]} == {None}


def test_options_are_the_same_in_json_and_in_a_form(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][0])
    body = {"id": own, "where": ["modality=CT", "study_year=2011..2014"], "exact": True, "k": 3}
    by_form = client.post("/v1/search", data={**body, "exact": "true", "facets": "false"}).json()
    by_json = asked(client, **body, facets=False)
    assert by_json["hits"] == by_form["hits"]
    assert by_json["facets"] == {}
    first = asked(client, id=own, k=10)
    assert len(asked(client, id=own, k=10, page=first["next_page"])["hits"]) == 10


def test_a_verdict_has_a_name(foreign_client) -> None:
    ood = asked(foreign_client, sop="1.2.3.0")["ood"]
    assert (ood["verdict"], ood["foreign"]) == ("foreign", True)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "none of them came"),
        ({"sop": "1.2.3.0", "study": "1.2.4.0"}, 400, "sop and study came"),
        ({"study": "1.2.4.0", "frame": 0}, 400, "give its sop"),
        ({"frame": 0}, 400, "none of them came"),
        ({"sop": "1.2.3.0", "exclude": "study", "exclude_own": "patient"}, 400, "another name"),
        ({"sop": "9.9"}, 404, "no indexed image is of instance '9.9'"),
        ({"series": "9.9"}, 404, "no indexed image is of series '9.9'"),
        ({"study": ""}, 404, "no indexed image is of study ''"),
        ({"sop": "1.2.3.0", "frame": 7}, 404, "frame 7 of instance '1.2.3.0' is not indexed"),
        ({"sop": "1.2.3.0", "frame": -1}, 404, "frame -1"),
        ({"sop": "1.2.3.0", "size": 3}, 422, "size: "),
        ({"sop": ["1.2.3.0"]}, 422, "sop: "),
        ({"sop": "1.2.3.0", "k": "3"}, 422, "k: "),
        ({"sop": "1.2.3.0", "where": "modality=CT"}, 422, "where: "),
    ],
)
def test_what_json_cannot_ask(client, body, status, said) -> None:
    response = client.post("/v1/search", json=body)
    assert (response.status_code, response.json()["status"]) == (status, status)
    assert said in response.json()["detail"]


@pytest.mark.parametrize("text", [b"{", b"[1", b"\xff", b'{"sop": "\\ud800"}', b"[" * 5000])
def test_a_body_that_is_no_json_is_a_400(client, text) -> None:
    sent = {"Content-Type": "application/json"}
    response = client.post("/v1/search", content=text, headers=sent)
    assert (response.status_code, response.json()["code"]) == (400, "bad-request")


@pytest.mark.parametrize("text", [b"[]", b"3", b"null", b'"x"'])
def test_json_of_another_kind_is_a_422(client, text) -> None:
    sent = {"Content-Type": "application/json"}
    assert client.post("/v1/search", content=text, headers=sent).status_code == 422


def test_long_json_is_a_413(client) -> None:
    response = client.post("/v1/search", json={"id": "x" * 2**18, "where": ["y"] * 2**15})
    assert response.status_code == 413 or response.json()["status"] == 413


@pytest.mark.parametrize("path", ["/v1/search", "/v1/search/batch", "/v1/recommend"])
def test_a_field_that_nobody_knows_is_refused_in_forms_too(client, indexed, path) -> None:
    content = indexed.files["ct"][0].read_bytes()
    name = "files" if path.endswith("batch") else "file"
    response = client.post(path, files={name: content}, data={"exclude-own": "study"})
    assert (response.status_code, response.json()["code"]) == (422, "invalid-request")
    assert [one["field"] for one in response.json()["errors"]] == ["exclude-own"]
    empty = client.post(path, files={name: content}, data={"sise": ""})
    assert [one["field"] for one in empty.json()["errors"]] == ["sise"]
    twice = client.post(path, files={name: content}, data={"k": ["1", "2"]})
    assert [one["field"] for one in twice.json()["errors"]] == ["k"]
    as_text = client.post(path, data={name: "x"})
    assert [one["field"] for one in as_text.json()["errors"]] == [name]
    two = client.post("/v1/search", files=[("file", content), ("file", content)])
    assert two.status_code == 422
    assert "a request takes 1 file" in two.json()["detail"]


def test_what_is_the_images_own_is_left_out_by_the_name_of_the_command_line(
    client, indexed, id_of
) -> None:
    own = id_of(indexed.files["ct"][0])
    asked_for = {"id": own, "k": 30, "where": ["modality=CT"]}
    studies = {hit["study"] for hit in asked(client, **asked_for, exclude_own="study")["hits"]}
    assert studies == {"1.2.4.1", "1.2.4.2"}
    earlier = {hit["study"] for hit in asked(client, **asked_for, exclude="study")["hits"]}
    assert earlier == studies
    related = client.get("/v1/studies/1.2.4.0/related", params={"exclude_own": "none", "k": 40})
    assert related.status_code == 200


def test_recommendations_are_asked_for_in_json(client, indexed, id_of) -> None:
    liked = [id_of(indexed.files["stripes"][n]) for n in (0, 1)]
    form = client.post("/v1/recommend", data={"like": liked, "k": 4}).json()
    answer = client.post("/v1/recommend", json={"like": liked, "k": 4})
    assert answer.json()["hits"] == form["hits"]
    study = client.post("/v1/recommend", json={"study": "1.2.4.1", "exclude_own": "none"})
    assert study.json()["evidence"]["liked"] == 2
    unknown = client.post("/v1/recommend", json={"likes": liked})
    assert [one["field"] for one in unknown.json()["errors"]] == ["likes"]


# Many at once


def test_each_image_of_a_batch_has_its_answer_or_its_problem(client, indexed, id_of) -> None:
    paths: list[Path] = [indexed.files[label][2] for label in ("stripes", "ct", "mr")]
    files = [("files", (f"{n}.png", path.read_bytes())) for n, path in enumerate(paths)]
    files.insert(1, ("files", ("letter.txt", b"Dear colleague")))
    files.append(("files", ("large", b"x" * 200_001)))
    response = client.post("/v1/search/batch", files=files, data={"k": 3, "where": "labels!=rings"})
    results = response.json()["results"]
    assert [one["query"] for one in results] == ["0.png", "letter.txt", "1.png", "2.png", "large"]
    assert [one["number"] for one in results] == [0, 1, 2, 3, 4]
    problems = [one["problem"] and one["problem"]["code"] for one in results]
    assert problems == [None, "not-an-image", None, None, "too-large"]
    assert all((one["answer"] is None) == (one["problem"] is not None) for one in results)
    for path, one in zip(paths, (results[0], results[2], results[3]), strict=True):
        alone = {"k": 3, "where": "labels!=rings"}
        single = client.post("/v1/search", files={"file": path.read_bytes()}, data=alone).json()
        assert one["answer"]["hits"][0]["id"] == id_of(path)
        assert [hit["id"] for hit in one["answer"]["hits"]] == [h["id"] for h in single["hits"]]
        assert one["answer"]["facets"] == single["facets"]


def test_a_batch_has_up_to_64_images(client) -> None:
    few = [("files", (f"{n}", b"none")) for n in range(64)]
    answer = client.post("/v1/search/batch", files=few)
    assert len(answer.json()["results"]) == 64
    for count in (65, 1001):
        many = [("files", (f"{n}", b"x")) for n in range(count)]
        refused = client.post("/v1/search/batch", files=many)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request")
        assert "takes up to 64 files" in refused.json()["detail"]
    assert client.post("/v1/search/batch").status_code == 400
    as_json = client.post("/v1/search/batch", json={"k": 3})
    assert as_json.status_code == 400


def test_an_option_of_a_batch_that_is_wrong_is_a_400(client, indexed) -> None:
    files = [("files", ("a", indexed.files["ct"][0].read_bytes()))]
    response = client.post("/v1/search/batch", files=files, data={"k": 0})
    assert (response.status_code, response.json()["code"]) == (400, "query")
