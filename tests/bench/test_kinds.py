"""The page of kinds shows queries that nobody chose, and leaves wrong hits in."""

import io
from pathlib import Path

import pytest
from PIL import Image

from bench.kinds import KINDS, Asked, drawn, in_words, with_pictures
from bench.manifests import Picture
from engine.records import Answer, Evidence, Hit, ImageRecord, OodVerdict

VIEWS = {"chest CT, lung window": "axial-lung", "chest CT, soft tissue": "axial-soft"}
CLASSES = ("HeadCT", "ChestCT", "AbdomenCT", "CXR", "Hand", "KneeXR", "CardiacMR", "BreastMRI",
           "BrainMR", "FetalUS")  # fmt: skip


def pictures(folder: Path = Path("nowhere")) -> list[Picture]:
    found = []
    for kind in CLASSES:
        for view in VIEWS.values() if kind == "ChestCT" else ("",):
            for part in ("train", "validation", "query", "database"):
                for patient in range(3):
                    for slice_ in range(2):
                        name = f"{kind}{view}{part}{patient}{slice_}.jpg"
                        who = f"{kind}{part}{patient}"
                        found.append(Picture(folder / name, kind, view, f"<{kind}>", who, part))
    return found


def test_queries_are_of_patients_that_nobody_learned_from() -> None:
    chosen = drawn(pictures(), 2)
    assert [kind for kind, _ in chosen] == [kind for kind in KINDS for _ in range(2)]
    assert {picture.part for _, picture in chosen} <= {"query", "validation"}
    for kind in KINDS:
        assert len({one.patient for name, one in chosen if name == kind}) == 2
    for kind, view in VIEWS.items():
        assert {one.view for name, one in chosen if name == kind} == {view}


def test_they_do_not_depend_on_the_order_of_the_manifest() -> None:
    assert drawn(pictures(), 3) == drawn(pictures()[::-1], 3)


def test_a_kind_without_patients_kept_back_is_told() -> None:
    some = [one for one in pictures() if one.kind != "Hand" or one.part == "train"]
    with pytest.raises(SystemExit, match="0 pictures of hand were kept back"):
        drawn(some, 1)


@pytest.fixture
def answered(tmp_path: Path) -> list[Asked]:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG")
    some = pictures(tmp_path)
    query, right, wrong = some[0], some[1], some[-1]
    for one in (query, right, wrong):
        one.path.write_bytes(stream.getvalue())
    hits = (Hit("1", 0.9, 3, ImageRecord(), likeness=0.25), Hit("2", 0.8, 4, ImageRecord()))
    ood = OodVerdict(0.02, 0.03, {}, {}, 0.5, 0.05)
    answer = Answer(hits, Evidence.__new__(Evidence), ood, {})
    return [Asked("head CT", query, answer, [right, wrong])]


def test_wrong_hits_stand_out(answered: list[Asked]) -> None:
    table = in_words("0123", answered)
    assert "Model `0123`; 1 of 1 first hits" in table
    row = table.splitlines()[-1]
    assert row == "| head CT | <HeadCT> | unfamiliar | <HeadCT> 0.25; **<FetalUS>** – |"


def test_the_page_shows_each_picture_and_escapes_what_it_is_told(answered: list[Asked]) -> None:
    page = with_pictures("0123", answered)
    assert page.count("<img ") == 3
    assert page.count("class=wrong") == 1
    assert "&lt;HeadCT&gt;" in page
    assert "<HeadCT>" not in page
