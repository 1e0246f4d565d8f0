"""What is deleted is gone: no command, no route and no file of the index tells of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from services.loopback import LoopbackClient

from api.service import create_service
from engine.search.duplicates import duplicates
from engine.store.base import Filter
from indexer.archive import Archive

STUDY = "1.2.4.1"  # of the images ct[2] and ct[3]
OTHER = "1.2.4.2"


@pytest.fixture
def archive(indexed, tmp_path: Path) -> Iterator[Archive]:
    """One of its own, from which the study has just been deleted."""
    with Archive(indexed.copy(tmp_path / "data")) as opened:
        yield opened


@pytest.fixture
def client(archive: Archive) -> Iterator[TestClient]:
    with LoopbackClient(create_service(archive=archive), follow_redirects=False) as opened:
        yield opened


def every_answer(client: TestClient, contents: list[bytes], ids: list[str]) -> dict[str, str]:
    """The text of whatever could tell of an image, by how it was asked for."""
    told: dict[str, str] = {}
    for number, content in enumerate(contents):
        for choice in ({}, {"exact": "true"}, {"order": "hamming"}, {"group_by": "study"}):
            data: dict[str, Any] = {"k": 40, **choice}
            response = client.post("/v1/search", files={"file": content}, data=data)
            told[f"search {number} {choice}"] = response.text
        response = client.post("/v1/recommend", files={"file": content}, data={"k": 40})
        told[f"recommend {number}"] = response.text
        data = {"k": 40, "group_by": "none", "exclude_own": "none"}
        told[f"page {number}"] = client.post("/", files={"file": content}, data=data).text
    for one in ids:
        told[f"search like {one}"] = client.post("/v1/search", data={"id": one, "k": 40}).text
        told[f"recommend like {one}"] = client.post("/v1/recommend", data={"like": one}).text
    told["related"] = client.get(f"/v1/studies/{OTHER}/related", params={"k": 40}).text
    told["front page"] = client.get("/", params={"where": "modality=CT"}).text
    return told


@pytest.mark.slow
def test_a_deleted_study_is_found_nowhere(indexed, archive: Archive, client: TestClient) -> None:
    paths = indexed.files["ct"]
    contents = [path.read_bytes() for path in (paths[2], paths[4])]
    points = {point.record.sop: point.id for point in archive.store.scroll(Filter())}
    gone = [points["1.2.3.2"], points["1.2.3.3"]]
    left = [points["1.2.3.4"], points["1.2.3.0"]]
    traces = [STUDY, *gone]
    before = every_answer(client, contents, left)
    for how in ("search 0 {}", "recommend 1", "page 0", "related", "front page"):
        assert any(trace in before[how] for trace in traces), how
    assert client.get("/v1/facets").json()["facets"]["study_year"]["2012"] == 1
    assert client.get(f"/v1/studies/{STUDY}/related").status_code == 200
    data_dir = archive.data_dir
    thumbnails = {path.stem for path in data_dir.thumbnails.rglob("*.jpg")}
    assert thumbnails >= set(gone)

    locators = archive.ledger.find(study=STUDY)
    assert archive.delete(locators) == 2

    after = every_answer(client, contents, left)
    for how, text in after.items():
        for trace in traces:
            assert trace not in text, how
    assert '"hits":[{' in after["search 0 {}"]
    # By name: its images, its pictures, the study itself.
    for one in gone:
        assert client.get(f"/v1/images/{one}").status_code == 404
        assert client.get(f"/v1/images/{one}/thumbnail").status_code == 404
        assert client.get("/", params={"like": one}).status_code == 404
        assert client.post("/v1/search", data={"id": one}).status_code == 404
        assert client.post("/v1/recommend", data={"like": one}).status_code == 404
        disliked = {"like": left[0], "dislike": one}
        assert client.post("/v1/recommend", data=disliked).status_code == 404
    assert client.get(f"/v1/studies/{STUDY}/related").status_code == 404
    # By what it was of.
    facets = client.get("/v1/facets").json()
    assert facets["count"] == 33
    assert facets["facets"]["modality"]["CT"] == 4
    assert "2012" not in facets["facets"]["study_year"]
    assert client.get("/v1/facets", params={"where": f"study={STUDY}"}).json()["count"] == 0
    assert client.get("/healthz").json()["points"] == 33
    # In the index, the ledger and the folder of pictures.
    assert not {point.id for point in archive.store.scroll(Filter())} & set(gone)
    assert archive.store.get(gone, with_z=True) == []
    groups = duplicates(archive.store, similarity=0.5, max_bits=3)
    assert not {one.id for group in groups for one in group.members} & set(gone)
    assert archive.ledger.find(study=STUDY) == []
    assert archive.ledger.points_of(locators) == {}
    assert archive.paths(gone) == {}
    assert {path.stem for path in data_dir.thumbnails.rglob("*.jpg")} == thumbnails - set(gone)


def test_a_deleted_study_stays_gone_when_the_archive_is_opened_again(
    indexed, archive: Archive, tmp_path: Path
) -> None:
    archive.delete(archive.ledger.find(study=STUDY))
    settings = archive.settings
    archive.close()
    with Archive(settings) as again, LoopbackClient(create_service(archive=again)) as client:
        assert client.get(f"/v1/studies/{STUDY}/related").status_code == 404
        answers = every_answer(client, [indexed.files["ct"][2].read_bytes()], [])
    assert not [how for how, text in answers.items() if STUDY in text]
