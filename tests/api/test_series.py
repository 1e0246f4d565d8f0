"""A series as the query: its slices in one request or on the command line, or one that is
indexed."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from api.cli import slices as slices_of_a_command
from api.cli.main import app
from engine.errors import QueryError


def slices(indexed, *numbers: int) -> list[tuple[str, tuple[str, bytes]]]:
    paths = [indexed.files["ct"][number] for number in numbers]
    return [("files", (path.name, path.read_bytes())) for path in paths]


def sent(client, files, **data: Any) -> Any:
    return client.post("/v1/recommend/series", files=files, data=data)


def test_slices_that_are_sent_lead_to_other_series(client, indexed) -> None:
    answer = sent(client, slices(indexed, 0, 1), k=40, where="modality=CT").json()
    evidence = answer["evidence"]
    assert (evidence["rule"], evidence["liked"], evidence["liked_of"]) == ("series", 2, 2)
    assert (evidence["cases"], evidence["cases_sampled"], evidence["ranked"]) == (2, 0, 4)
    assert sorted(hit["series"] for hit in answer["hits"]) == ["1.2.5.1", "1.2.5.2"]
    # The same by the UID of the indexed series, and of its study as a whole.
    by_uid = client.post("/v1/recommend", json={"series": "1.2.5.0", "where": ["modality=CT"]})
    related = client.get("/v1/studies/1.2.4.0/related?rule=study&where=modality%3DCT")
    expected = [(hit["series"], hit["similarity"]) for hit in answer["hits"]]
    for other in (by_uid.json(), related.json()):
        found = [(hit["series"], hit["similarity"]) for hit in other["hits"]]
        assert [name for name, _ in found] == [name for name, _ in expected]
        assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=2e-3)
        assert all(hit["because"] is not None for hit in other["hits"])
    assert (by_uid.json()["evidence"]["rule"], related.json()["evidence"]["rule"]) == (
        "series",
        "study",
    )
    by_image = client.get("/v1/studies/1.2.4.0/related?where=modality%3DCT").json()
    assert by_image["evidence"]["rule"] == "image"
    assert by_image["evidence"]["cases"] is None
    # By the best pair of images no case can be less alike than by the mean.
    best = {hit["study"]: hit["similarity"] for hit in by_image["hits"]}
    assert all(best[hit["study"]] >= hit["similarity"] - 2e-3 for hit in related.json()["hits"])


def test_the_similarity_is_the_mean_of_the_best_matches(client, indexed) -> None:
    answer = sent(client, slices(indexed, 0, 1), k=40, where="modality=CT").json()
    matches: dict[str, list[float]] = {}
    for number in (0, 1):
        content = indexed.files["ct"][number].read_bytes()
        data = {"k": 35, "exact": "true", "where": "modality=CT"}
        found = client.post("/v1/search", files={"file": content}, data=data).json()["hits"]
        for series in ("1.2.5.1", "1.2.5.2"):
            of_series = [hit["similarity"] for hit in found if hit["series"] == series]
            matches.setdefault(series, []).append(max(of_series))
    for hit in answer["hits"]:
        assert hit["similarity"] == pytest.approx(np.mean(matches[hit["series"]]), abs=1e-5)


@pytest.mark.parametrize(
    ("numbers", "data", "status", "said"),
    [
        ((0, 2), {}, 400, "of 2 series: 1.2.5.0, 1.2.5.1; give those of one"),
        ((0, 2), {"rule": "study"}, 400, "of 2 studies"),
        ((0, 1), {"rule": "patient"}, 400, "rule is 'patient'; use one of image, series"),
        ((0, 1), {"like": "x"}, 422, "like"),
    ],
)
def test_what_is_no_series_is_refused(client, indexed, numbers, data, status, said) -> None:
    response = sent(client, slices(indexed, *numbers), **data)
    assert response.status_code == status, response.text
    assert said in response.text


def test_so_many_slices_are_taken_in_one_request(client) -> None:
    many = sent(client, [("files", (f"{number}", b"x")) for number in range(65)])
    assert many.status_code == 422
    assert "65 files came; a request takes up to 64 files" in many.text
    none = client.post("/v1/recommend/series", files={"files": ("", b"")}, data={"k": "3"})
    assert none.status_code == 422
    assert "a file has to be sent; none came" in none.text


def test_a_slice_that_cannot_be_read_is_named(client, indexed) -> None:
    files = [*slices(indexed, 0), ("files", ("notes.txt", b"no image"))]
    response = sent(client, files)
    assert response.status_code == 422
    assert response.json()["detail"].startswith("file 2 (notes.txt): the content is neither DICOM")


def test_a_study_and_a_series_are_not_both_liked(client) -> None:
    response = client.post("/v1/recommend", json={"study": "1.2.4.0", "series": "1.2.5.0"})
    assert response.status_code == 400
    assert "name one of the two" in response.json()["detail"]
    unknown = client.post("/v1/recommend", json={"series": "1.9"})
    assert unknown.status_code == 404
    assert "no indexed image is of series '1.9'" in unknown.json()["detail"]


@pytest.fixture
def folder(indexed, tmp_path: Path) -> Path:
    """A series of ten slices as it comes on a disc, with what else lies there."""
    disc = tmp_path / "disc"
    disc.mkdir()
    made = pydicom.dcmread(indexed.files["ct"][0])
    made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID = "1.2.4.70", "1.2.5.70", "DISC"
    for number in range(10):
        made.SOPInstanceUID = f"1.2.3.70.{number}"
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        out = io.BytesIO()
        made.save_as(out, enforce_file_format=True)
        (disc / f"IM{number}").write_bytes(out.getvalue())
    (disc / "README.TXT").write_text("Viewer for Windows")
    return disc


def invoked(settings, *arguments: object) -> str:
    options = ["--data-dir", str(settings.data_dir), "--model", str(settings.model)]
    result = CliRunner().invoke(app, [*map(str, arguments), *options], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_a_command_takes_files_a_folder_or_a_uid(indexed, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(slices_of_a_command, "MOST_READ", 6)
    settings = indexed.copy(tmp_path / "data")
    first, second = indexed.files["ct"][:2]
    out = invoked(settings, "recommend", first, second, "--where", "modality=CT", "--json")
    answer = json.loads(out)
    assert answer["query"] == [str(first), str(second)]
    assert sorted(hit["series"] for hit in answer["hits"]) == ["1.2.5.1", "1.2.5.2"]
    assert answer["evidence"]["rule"] == "series"
    out = invoked(settings, "recommend", folder, "--json")
    answer = json.loads(out)
    # Six of the eleven files are read, the last of which is no slice.
    assert (answer["evidence"]["liked"], answer["evidence"]["liked_of"]) == (5, 10)
    assert "1.2.5.0" in {hit["series"] for hit in answer["hits"]}
    out = invoked(settings, "recommend", "--series", "1.2.5.0", "--rule", "series")
    assert "series 1.2.5.0" in out
    assert "2 liked" in out
    assert "compared whole" in out
    with pytest.raises(QueryError, match="of 2 series"):
        invoked(settings, "recommend", first, indexed.files["ct"][2])


def test_a_folder_without_images_is_told(indexed, tmp_path) -> None:
    settings = indexed.copy(tmp_path / "data")
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    other.mkdir()
    (other / "notes.txt").write_text("no image")
    with pytest.raises(QueryError, match="empty has no files"):
        invoked(settings, "recommend", empty)
    with pytest.raises(QueryError, match=r"none of the 1 files read can be used; .*notes\.txt"):
        invoked(settings, "recommend", other)
    shutil.copy(indexed.files["ct"][0], other)
    both = (other / "notes.txt", indexed.files["ct"][0])
    out = invoked(settings, "recommend", *both, "--json")
    assert json.loads(out)["error"]["code"] == "not-an-image"
