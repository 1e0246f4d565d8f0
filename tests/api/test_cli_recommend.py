"""``precedent recommend``, ``precedent duplicates``, and what ``precedent search`` has gained."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from api.cli.main import app
from engine.errors import ImageNotFound, QueryError
from engine.search import duplicates as module
from engine.settings import Settings
from indexer.archive import Archive
from indexer.sources.folder import FolderSource

Command = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def settings(indexed, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Those of a copy of the archive that nobody has open."""
    return indexed.copy(tmp_path_factory.mktemp("cli") / "data")


def invoked(settings: Settings, *arguments: object) -> tuple[int, str]:
    options = ["--data-dir", str(settings.data_dir), "--model", str(settings.model)]
    result = CliRunner().invoke(app, [*map(str, arguments), *options], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    # What a command returns is its exit code only in `main`.
    return result.exit_code, result.output


@pytest.fixture
def run(settings: Settings) -> Command:
    def ran(*arguments: object) -> list[dict[str, Any]]:
        _, out = invoked(settings, *arguments, "--json")
        return [json.loads(line) for line in out.splitlines()]

    return ran


def test_an_image_leads_to_other_studies(run: Command, indexed) -> None:
    (answer,) = run("recommend", indexed.files["ct"][0], "-k", 40, "--where", "modality=CT")
    assert set(answer) == {"ood", "evidence", "hits", "votes", "query"}
    assert answer["query"] == str(indexed.files["ct"][0])
    assert sorted(hit["study"] for hit in answer["hits"]) == ["1.2.4.1", "1.2.4.2"]
    assert all(Path(hit["path"]).is_file() for hit in answer["hits"])
    assert not {"patient", "tenant"} & set(answer["hits"][0])


def test_examples_are_named_by_id_or_by_study(run: Command, indexed, settings) -> None:
    (found,) = run("search", indexed.files["stripes"][0], "-k", 1, "--exact")
    liked = found["hits"][0]["id"]
    (found,) = run("search", indexed.files["rings"][0], "-k", 1, "--exact")
    disliked = found["hits"][0]["id"]
    (answer,) = run("recommend", "--like", liked, "--dislike", disliked, "--diversity", 0.3)
    assert {hit["because"] for hit in answer["hits"]} == {liked}
    assert (answer["evidence"]["liked"], answer["evidence"]["disliked"]) == (1, 1)
    assert answer["evidence"]["nearer_to_disliked"] > 0
    assert answer["evidence"]["diversity"] == 0.3
    (study,) = run("recommend", "--study", "1.2.4.1", "--group-by", "none", "--exclude-own", "none")
    assert study["evidence"]["liked"] == 2
    _, out = invoked(settings, "recommend", "--study", "1.2.4.1", "--like", liked)
    assert "study 1.2.4.1" in out
    assert "3 liked" in out
    assert "labels, by similarity" in out
    assert liked[:8] in out


def test_an_image_that_cannot_be_read_is_told(run: Command, tmp_path: Path) -> None:
    bad = tmp_path / "bad.dcm"
    bad.write_text("no image")
    assert run("recommend", bad) == [
        {
            "error": {
                "code": "not-an-image",
                "detail": "the content is neither DICOM nor NIfTI, PNG, JPEG, JPEG 2000, TIFF, "
                "WebP or BMP",
            },
            "query": str(bad),
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["recommend"], QueryError, "--like ID or --study UID"),
        (["recommend", "--dislike", "x"], QueryError, "say what the cases should be like"),
        (["recommend", "--like", "x", "-k", "0"], QueryError, "k is 0"),
        (["recommend", "--like", "x", "--diversity", "3"], QueryError, "diversity is 3.0"),
        (["recommend", "--like", "x"], ImageNotFound, "'x'"),
        (["recommend", "--study", "1.9"], ImageNotFound, "'1.9'"),
        (["search", "x", "--page", "second"], QueryError, "page 'second' is none"),
        (["search", "x", "--page", "s1:10"], QueryError, "page 's1:10' is none"),
        (["search", "x", "--group-by", "series"], QueryError, "group_by is 'series'"),
        (["search", "x", "--radius", "-1"], QueryError, "radius is -1; use 0 to 1024 bits"),
        (["search", "x", "--radius", "1025"], QueryError, "radius is 1025"),
        (["search", "x", "--radius", "3", "--exact"], QueryError, "leave out the radius"),
        (["search", "x", "--exclude-own", "all"], QueryError, "exclude is 'all'"),
        (["duplicates", "--max-bits", "4"], QueryError, "max_bits is 4"),
        (["duplicates", "--similarity", "2"], QueryError, "similarity is 2.0"),
        (["duplicates", "--limit", "0"], QueryError, "--limit is 0"),
    ],
)
def test_what_cannot_be_answered_says_why(settings, arguments, kind, said) -> None:
    with pytest.raises(kind) as caught:
        invoked(settings, *arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_search_misses_nothing_within_the_radius(run: Command, indexed) -> None:
    image = indexed.files["ct"][0]
    (whole,) = run("search", image, "-k", 35, "--exact")
    distances = {hit["id"]: hit["hamming"] for hit in whole["hits"]}
    assert len(distances) == 35
    radius = sorted(distances.values())[20]
    (answer,) = run("search", image, "-k", 35, "--radius", radius)
    assert answer["evidence"]["radius"] == radius
    near = {one for one, bits in distances.items() if bits <= radius}
    assert near <= {hit["id"] for hit in answer["hits"]}
    assert answer["evidence"]["candidates"] >= len(near) > 20


@pytest.mark.slow
def test_a_search_has_pages_groups_and_leaves_out_its_own(run: Command, indexed, settings) -> None:
    image = indexed.files["ct"][0]
    options = ("--where", "modality=CT", "--exact", "--no-facets")
    (whole,) = run("search", image, *options)
    (first,) = run("search", image, *options, "-k", 4)
    (second,) = run("search", image, *options, "-k", 4, "--page", first["next_page"])
    assert [*first["hits"], *second["hits"]] == whole["hits"]
    assert second["next_page"] is None
    assert whole["facets"] == {}
    (grouped,) = run("search", image, *options, "--group-by", "study")
    assert len(grouped["hits"]) == 3
    (others,) = run("search", image, *options, "--exclude-own", "patient")
    assert {hit["study"] for hit in others["hits"]} == {"1.2.4.1", "1.2.4.2"}
    _, out = invoked(settings, "search", image, "--exact", "-k", "3")
    assert "there are more: --page exact:3" in out
    _, out = invoked(settings, "search", image, "--exact", "-k", "3", "--page", "exact:3")
    assert "│ 4 │" in out  # the place in the whole list


# Duplicates


@pytest.fixture(scope="module")
def copies(indexed, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """Pictures: a, saved anew; b, saved as JPEG too; c, alone; d, twice in a study; e, in two."""
    root = tmp_path_factory.mktemp("copies")
    files = root / "files[1]"
    files.mkdir()
    for name, number in (("a", 3), ("b", 5), ("c", 7)):
        source = indexed.files["rings"][number]
        shutil.copyfile(source, files / f"{name}.png")
        with Image.open(source) as picture:
            if name == "a":
                picture.save(files / "a-again.png", compress_level=1)
            if name == "b":
                out = io.BytesIO()
                picture.save(out, "JPEG", quality=90)
                (files / "b-again.jpg").write_bytes(out.getvalue())
    for name, number, uid in (("d", 0, "1.2.4.0"), ("e", 4, "1.2.4.9")):
        shutil.copyfile(indexed.files["ct"][number], files / f"{name}.dcm")
        again = pydicom.dcmread(files / f"{name}.dcm")
        again.SOPInstanceUID, again.StudyInstanceUID = f"1.2.3.9{number}", uid
        again.save_as(files / f"{name}-again.dcm")
    settings = indexed.settings.model_copy(update={"data_dir": root / "data"})
    with Archive(settings, create=True) as archive:
        assert archive.index(FolderSource([files])).indexed == 9
    return settings, files


def test_duplicates_are_listed_with_their_files(copies: tuple[Settings, Path]) -> None:
    settings, _ = copies
    groups = found(settings, "--similarity", "0.999")
    assert list(groups) == ["a", "b", "d", "e"]
    # Images of no study are each one by itself.
    assert [group["studies"] for group in groups.values()] == [2, 2, 1, 2]
    for group in groups.values():
        first, other = group["images"]
        assert (first["similarity"], first["identical"]) == (1.0, True)
        if Path(first["path"]).name.startswith("b"):
            assert 0.999 <= other["similarity"] < 1
        else:
            assert (other["similarity"], other["identical"]) == (1.0, True)
    _, table = invoked(settings, "duplicates", "--similarity", "0.999", "--limit", "1")
    assert "1 group of 2 images" in table
    assert "raise --limit" in table
    assert "files[1]/" in table


def found(settings: Settings, *options: str) -> dict[str, dict[str, Any]]:
    """The groups by the letter of their files, which each has of one picture."""
    _, out = invoked(settings, "duplicates", "--json", *options)
    groups = {}
    for group in map(json.loads, out.splitlines()):
        (letter,) = {Path(one["path"]).name[0] for one in group["images"]}
        groups[letter] = group
    return dict(sorted(groups.items()))


def test_duplicates_of_one_study_may_be_left_out(copies: tuple[Settings, Path]) -> None:
    settings, _ = copies
    assert list(found(settings, "--similarity", "0.999", "--across-studies")) == ["a", "b", "e"]
    assert list(found(settings, "--where", "modality=CT")) == ["d", "e"]
    assert list(found(settings, "--where", "study=1.2.4.0", "--across-studies")) == []


def test_the_help_names_the_defaults() -> None:
    text = CliRunner().invoke(app, ["duplicates", "--help"], env={"COLUMNS": "200"}).output
    assert f"{module.SIMILARITY} if left out" in text
    assert f"{module.MAX_BITS} if left out" in text
