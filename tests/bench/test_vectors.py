"""The vectors searches are measured on are what they say, and so are their neighbours."""

from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from bench import vectors as module
from bench.vectors import Vectors, nearest, points, prepared, real, recall, row_of, synthetic
from engine.codes import hamming
from engine.store.payload import from_payload, to_payload


@pytest.fixture(scope="module")
def archive():
    return synthetic(3000, 40)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Thirty pictures of two classes, noise in front of a slope."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    lines = ["file,split,class,subclass,group"]
    for number in range(30):
        split, name = ("train", "database", "query")[number % 3], "AB"[number % 2]
        slope = np.tile(np.linspace(0, 160, 64), (64, 1))
        grey = (slope if name == "A" else slope.T) + rng.integers(0, 95, (64, 64))
        Image.fromarray(grey.astype(np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{split},{name},{name},{number}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def are_unit_and_centred(z):
    return (
        z.dtype == np.float32
        and np.abs(np.linalg.norm(z, axis=1) - 1).max() < 1e-5
        and np.abs(z.mean(axis=1)).max() < 1e-6
    )


def same(a, b):
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Vectors))


def test_vectors_are_unit_centred_and_of_one_length(archive):
    assert are_unit_and_centred(archive.z)
    assert are_unit_and_centred(archive.query_z)
    assert (archive.codes.shape, archive.codes.dtype) == ((3000, 8), np.uint8)
    assert (len(archive), len(archive.classes), len(archive.query_codes)) == (3000, 3000, 40)


def test_vectors_come_again_with_the_seed_alone(archive):
    assert same(archive, synthetic(3000, 40))
    assert not same(archive, synthetic(3000, 40, seed=1))


def test_queries_have_relatives_in_the_archive_and_are_not_in_it(archive):
    similarity = (archive.query_z @ archive.z.T).max(axis=1)
    assert similarity.max() < 0.9999
    assert np.median(similarity) > 0.9


def test_codes_tell_the_near_from_the_far_and_are_spread(archive):
    near = nearest(archive.z, archive.query_z, 10)
    to_near = hamming(archive.codes[near], archive.query_codes[:, None])
    to_all = hamming(archive.codes, archive.query_codes[:, None])
    assert to_near.mean() < 8 < 24 < to_all.mean()
    assert len(np.unique(archive.codes, axis=0)) > len(archive) / 2


def test_nearest_is_what_sorting_all_similarities_gives(archive, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 700)
    # Whole numbers: their products are exact, and equal ones equal, in chunks of any size.
    z, asked = np.round(64 * archive.z), np.round(64 * archive.query_z)
    slow = np.argsort(-(asked @ z.T), axis=1, kind="stable")
    assert np.array_equal(nearest(z, asked, 100), slow[:, :100])
    assert nearest(z[:7], asked, 100).shape == (40, 7)


def test_recall_is_the_share_of_the_first_k_that_was_found():
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = [np.array([2, 1, 9, 3]), np.array([5])]
    assert recall(found, exact, 2) == pytest.approx((1 + 1 / 2) / 2)
    assert recall(found, exact, 4) == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert recall(found, exact, 100) == pytest.approx((3 / 4 + 1 / 4) / 2)


@pytest.mark.slow
def test_real_vectors_are_a_part_of_the_images_or_lie_beside_them(images, tmp_path):
    few = real(images, 15, 5, scratch=tmp_path)
    assert are_unit_and_centred(few.z)
    assert sorted(np.unique(few.classes)) == ["A", "B"]
    every = real(images, 20, 10, scratch=tmp_path)
    assert len(np.unique(every.z, axis=0)) == 20
    assert {row.tobytes() for row in few.z} < {row.tobytes() for row in every.z}
    assert same(few, real(images, 15, 5, scratch=tmp_path))

    for picture in images.glob("*.png"):
        picture.unlink()
    many = real(images, 500, 10, scratch=tmp_path)
    assert are_unit_and_centred(many.z)
    assert len(np.unique(many.z, axis=0)) > 450  # of so few images, some pairs come twice
    assert np.array_equal(many.query_z, every.query_z)
    assert (many.query_z @ many.z.T).max() < 0.9999

    # The head alone, on vectors of unit length, gives the codes of the whole network; where
    # that computed in bfloat16, all but a bit here and there.
    again = module._hashed(np.concatenate([every.z, many.z]), module.SHIPPED)
    assert hamming(again[:20], every.codes).mean() < 2
    assert hamming(again[20:], many.codes).mean() < 0.1


def test_points_are_images_of_their_rows(archive):
    made = points(archive, range(2995, 3000))
    assert [row_of(point.record) for point in made] == list(range(2995, 3000))
    assert len({point.id for point in [*made, *points(archive, range(2995, 3000), copy=1)]}) == 10
    assert made[0].record.labels == (archive.classes[2995],)
    assert from_payload(made[0].id, to_payload(made[0], "0" * 16)).record == made[0].record


def test_prepared_vectors_are_made_once_and_come_with_their_neighbours(tmp_path):
    folder = prepared("synthetic", 600, 8, scratch=tmp_path)
    made = (folder / "exact.npy").stat().st_mtime_ns
    assert prepared("synthetic", 600, 8, scratch=tmp_path) == folder
    assert (folder / "exact.npy").stat().st_mtime_ns == made
    opened = Vectors.opened(folder)
    assert same(opened, synthetic(600, 8))
    assert np.array_equal(np.load(folder / "exact.npy"), nearest(opened.z, opened.query_z, 100))


def test_real_vectors_need_a_folder(tmp_path):
    with pytest.raises(SystemExit, match="needs a folder"):
        prepared("real", 600, 8, scratch=tmp_path)
