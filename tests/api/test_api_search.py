"""POST /v1/search, as a portal uses it."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image


def searched(client: TestClient, content: bytes, **data: Any) -> Any:
    response = client.post("/v1/search", files={"file": ("any.png", content)}, data=data)
    assert response.status_code == 200, response.text
    return response.json()


def test_an_indexed_image_that_is_uploaded_finds_itself_first(client, indexed, id_of) -> None:
    for label in ("stripes", "ct"):
        path = indexed.files[label][3]
        answer = searched(client, path.read_bytes(), k=5)
        first = answer["hits"][0]
        assert first["id"] == id_of(path)
        assert first["similarity"] == pytest.approx(1, abs=2e-3)
        assert first["hamming"] == 0
        assert len(answer["hits"]) == 5


def test_similarities_fall_from_hit_to_hit(client, indexed) -> None:
    hits = searched(client, indexed.files["rings"][0].read_bytes(), k=35)["hits"]
    similarities = [hit["similarity"] for hit in hits]
    assert len(hits) == 35
    assert similarities == sorted(similarities, reverse=True)


def test_order_hamming_puts_fewest_differing_bits_first(client, indexed) -> None:
    content = indexed.files["rings"][0].read_bytes()
    hits = searched(client, content, k=35, order="hamming")["hits"]
    assert [hit["hamming"] for hit in hits] == sorted(hit["hamming"] for hit in hits)


def test_an_indexed_image_is_left_out_of_its_own_hits(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][0])
    response = client.post("/v1/search", data={"id": own, "k": 40})
    ids = [hit["id"] for hit in response.json()["hits"]]
    assert len(ids) == 34
    assert own not in ids


def test_an_id_may_be_written_in_capitals(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][0])
    hits = client.post("/v1/search", data={"id": own.upper(), "k": 40}).json()["hits"]
    assert own not in [hit["id"] for hit in hits]


def test_filters_hold_together_and_several_of_one_field_mean_any(client, indexed) -> None:
    content = indexed.files["ct"][0].read_bytes()
    answer = searched(client, content, k=40, where=["modality=CT", "modality=MR"])
    assert {hit["modality"] for hit in answer["hits"]} == {"CT", "MR"}
    assert answer["facets"]["modality"] == {"CT": 6, "MR": 4}
    narrow = searched(client, content, where=["modality=CT", "study_year=2012..2013"])
    assert sorted(hit["study_year"] for hit in narrow["hits"]) == [2012, 2013]
    assert searched(client, content, where=["labels=rings", "modality=CT"])["hits"] == []


def test_the_answer_says_how_it_came_about(client, indexed) -> None:
    answer = searched(client, indexed.files["ct"][0].read_bytes(), exact="true")
    assert set(answer) == {"ood", "evidence", "hits", "facets", "next_page"}
    assert answer["ood"] is None
    assert answer["evidence"]["rung"] == "exact"
    assert answer["evidence"]["candidates"] == 35
    assert answer["evidence"]["model"] == client.get("/healthz").json()["model"]
    assert len(answer["hits"]) == 10


def test_what_was_compared_is_told(client, indexed) -> None:
    content = indexed.files["ct"][0].read_bytes()
    evidence = searched(client, content, where="modality=CT")["evidence"]
    assert (evidence["rung"], evidence["matching"], evidence["candidates"]) == ("dense", 6, 6)
    # So few images are in no cells.
    assert (evidence["cells"], evidence["cells_in_all"]) == (None, None)
    assert evidence["rungs_tried"] == {"dense": 6}


def test_nothing_within_the_radius_is_missed(client, indexed, id_of) -> None:
    path: Path = indexed.files["rings"][0]
    whole = searched(client, path.read_bytes(), k=35, exact="true")["hits"]
    distances = {hit["id"]: hit["hamming"] for hit in whole}
    assert distances[id_of(path)] == 0
    for radius in (0, 1, max(distances.values())):
        answer = searched(client, path.read_bytes(), k=35, radius=radius)
        near = {one for one, bits in distances.items() if bits <= radius}
        assert near <= {hit["id"] for hit in answer["hits"]}
        assert answer["evidence"]["radius"] == radius
        assert answer["evidence"]["compared"] >= len(near)


def test_pages_of_a_search_with_a_radius_follow_each_other(client, indexed) -> None:
    content = indexed.files["rings"][0].read_bytes()
    whole = searched(client, content, k=35, radius=64)
    assert whole["next_page"] is None
    first = searched(client, content, k=20, radius=64)
    second = searched(client, content, k=20, radius=64, page=first["next_page"])
    assert first["hits"] + second["hits"] == whole["hits"]
    assert second["evidence"]["radius"] == 64
    assert second["next_page"] is None


def test_a_foreign_image_is_called_foreign(foreign_client, indexed) -> None:
    ood = searched(foreign_client, indexed.files["ct"][0].read_bytes())["ood"]
    assert ood["foreign"] is True
    assert ood["p"] == pytest.approx(0.01)
    assert ood["alpha"] == 0.03
    assert ood["p_values"] == {"knn": pytest.approx(0.01)}
    assert set(ood["scores"]) == {"knn"}


def test_a_foreign_image_has_hits_all_the_same(foreign_client, indexed) -> None:
    answer = searched(foreign_client, indexed.files["ct"][0].read_bytes(), k=3)
    assert len(answer["hits"]) == 3


def test_a_service_may_refuse_foreign_images(refusing_client, indexed, id_of) -> None:
    path: Path = indexed.files["ct"][0]
    by_id = refusing_client.post("/v1/search", data={"id": id_of(path)})
    assert by_id.status_code == 200
    for refused in (searched(refusing_client, path.read_bytes(), k=3), by_id.json()):
        assert refused["hits"] == []
        assert refused["facets"] == {}
        assert refused["ood"]["foreign"] is True
        assert refused["ood"]["p_values"] == {"knn": pytest.approx(0.01)}
        assert refused["evidence"]["rung"] == "none"
        assert refused["evidence"]["candidates"] == 0
        assert refused["evidence"]["model"] == refusing_client.get("/healthz").json()["model"]


def test_no_path_no_patient_no_tenant_leaves_the_service(client, indexed, id_of) -> None:
    path = indexed.files["ct"][0]
    own = id_of(path)
    texts = [
        client.post("/v1/search", files={"file": path.read_bytes()}, data={"k": 40}).text,
        client.get(f"/v1/images/{own}").text,
        client.get("/v1/facets").text,
        client.get("/healthz").text,
        client.get("/").text,
        client.get("/", params={"like": own, "k": 40}).text,
    ]
    # The page's own words.
    own_words = (
        ' type="hidden"',
        " hidden>",
        ' aria-hidden="true"',
        'value="patient"',
        "the patient’s own",
    )
    for text in texts:
        for words in own_words:
            text = text.replace(words, "")
        for hidden in ("path", "patient", "tenant", str(path.parent.parent), "idden"):
            assert hidden not in text, hidden


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"where": "modality"}, "field=value"),
        ({"where": "shoe_size=44"}, "no field 'shoe_size'"),
        ({"where": "tenant=other"}, "no field 'tenant'"),
        ({"where": "study_year=new"}, "not a whole number"),
        ({"k": "0"}, "k is 0"),
        ({"k": "1001"}, "k is 1001"),
        ({"order": "random"}, "order is 'random'"),
        ({"radius": "-1"}, "radius is -1; use 0 to 1024 bits"),
        ({"radius": "1025"}, "radius is 1025"),
        ({"radius": "3", "exact": "true"}, "leave out the radius"),
        ({"page": "s1:10"}, "page 's1:10' is none"),
        ({"page": "cells-0:10"}, "page 'cells-0:10' is none"),
    ],
)
def test_a_query_that_cannot_be_answered_is_a_400(client, indexed, data, said) -> None:
    files = {"file": indexed.files["ct"][0].read_bytes()}
    response = client.post("/v1/search", files=files, data=data)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "query"
    assert said in response.json()["detail"]


def test_exactly_one_image_has_to_be_given(client, indexed, id_of) -> None:
    path: Path = indexed.files["ct"][0]
    neither = client.post("/v1/search", data={"k": 3})
    empty = client.post("/v1/search", files={"file": ("", b"")}, data={"id": ""})
    both = client.post("/v1/search", files={"file": path.read_bytes()}, data={"id": id_of(path)})
    for response in (neither, empty, both):
        assert response.status_code == 400
        assert "give one image" in response.json()["detail"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty-file"), (b"just a text, no image", "not-an-image")],
)
def test_an_upload_that_is_no_image_is_a_422_with_the_reason(client, content, reason) -> None:
    response = client.post("/v1/search", files={"file": ("scan.dcm", content)})
    problem = response.json()
    assert response.status_code == problem["status"] == 422
    assert problem["type"] == "urn:precedent:problem:image-refused"
    assert problem["code"] == reason
    assert problem["instance"] == "/v1/search"


def test_a_cut_off_image_is_a_422_and_the_next_one_is_answered(client, indexed) -> None:
    content = indexed.files["ct"][0].read_bytes()
    response = client.post("/v1/search", files={"file": content[: len(content) // 2]})
    assert response.status_code == 422
    assert response.json()["code"] == "truncated"
    assert searched(client, content)["hits"]


def test_a_picture_of_too_many_pixels_is_a_413(client) -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((11_000, 11_000), np.uint8)).save(out, "PNG")
    assert len(out.getvalue()) < 200_000
    response = client.post("/v1/search", files={"file": out.getvalue()})
    assert response.status_code == response.json()["status"] == 413
    assert response.json()["code"] == "too-large"


def test_uploads_at_the_same_time_are_all_answered(client, indexed, id_of) -> None:
    paths = [*indexed.files["stripes"], *indexed.files["rings"]]

    def first(path: Path) -> str:
        return str(searched(client, path.read_bytes(), k=1)["hits"][0]["id"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(first, paths)) == [id_of(path) for path in paths]


def test_a_parameter_of_the_wrong_kind_is_a_422_that_does_not_repeat_it(client, indexed) -> None:
    files = {"file": indexed.files["ct"][0].read_bytes()}
    response = client.post("/v1/search", files=files, data={"k": "Doe^Jane"})
    assert response.status_code == 422
    assert response.json()["code"] == "invalid-request"
    assert [one["field"] for one in response.json()["errors"]] == ["k"]
    assert "Doe" not in response.text


def test_a_radius_that_is_no_number_is_a_422(client, indexed) -> None:
    files = {"file": indexed.files["ct"][0].read_bytes()}
    response = client.post("/v1/search", files=files, data={"radius": "near"})
    assert response.status_code == 422
    assert [one["field"] for one in response.json()["errors"]] == ["radius"]


@pytest.mark.parametrize("value", ["../../etc/passwd", "x" * 5000, "0", "\x00"])
def test_an_unknown_id_is_a_404(client, value) -> None:
    response = client.post("/v1/search", data={"id": value})
    assert response.status_code == 404
    assert response.json()["code"] == "image-not-found"
