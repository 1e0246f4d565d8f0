"""``engine.Index``: images that are arrays, in a folder."""

import numpy as np
import pytest

from engine.errors import FingerprintMismatch, ImageNotFound, ImageRefused, QueryError, StoreLocked
from engine.index import Index
from engine.model.checkpoint import save_checkpoint
from engine.records import ImageRecord
from engine.search.query import Query, parse_where


@pytest.fixture(scope="module")
def model(build, tiny_config, preprocess, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, build(), tiny_config, preprocess, ("a", "b", "c"), {})
    return folder


@pytest.fixture
def images():
    rng = np.random.default_rng(3)
    return list(rng.integers(0, 256, (5, 40, 60), dtype=np.uint8))


def test_what_was_added_is_found_and_still_there_later(model, images, tmp_path):
    with Index(tmp_path / "index", model=model) as index:
        ids = index.add(images)
        assert len(index) == len(set(ids)) == 5
        best = index.search(images[3], Query(k=2)).hits[0]
        assert (best.id, best.hamming) == (ids[3], 0)
        assert best.similarity == pytest.approx(1, abs=1e-5)
        with pytest.raises(StoreLocked):
            Index(tmp_path / "index", model=model)
    with Index(tmp_path / "index", model=model) as index:
        assert ids[3] not in [hit.id for hit in index.search_like(ids[3]).hits]
        assert index.add(images) == ids
        assert len(index) == 5
        with pytest.raises(ImageNotFound):
            index.search_like("c117ea35-bdc3-54a3-b0a7-399a24a569a2")


def test_records_are_kept_and_filtered_by(model, images, tmp_path):
    records = [ImageRecord(sop="1.2.3", frame=n, modality="CT" if n else "MR") for n in range(5)]
    with Index(tmp_path / "index", model=model) as index:
        index.add(images, records)
        answer = index.search(images[0], Query(where=parse_where(["modality=CT"])))
        assert {hit.record.frame for hit in answer.hits} == {1, 2, 3, 4}
        with pytest.raises(QueryError, match="5 images have 4 records"):
            index.add(images, records[1:])
        with pytest.raises(QueryError, match="tenant 'other'"):
            index.add(images[:1], [ImageRecord(tenant="other")])


def test_encodings_have_the_shapes_that_are_told(model, images, tmp_path):
    with Index(tmp_path / "index", model=model) as index:
        colour = np.dstack([images[0]] * 3)
        seen = index.encode([*images, colour])
        assert (seen.z.shape, seen.z.dtype) == ((6, 16), np.float32)
        assert (seen.codes.shape, seen.codes.dtype) == ((6, 8), np.uint8)
        assert len(index) == 0
        # This model was never calibrated.
        assert index.verdict(images[0]) is None


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
        [[1, 2], [3, 4]],
    ],
)
def test_what_is_no_image_is_refused(model, images, tmp_path, image):
    with Index(tmp_path / "index", model=model) as index:
        for use in (index.search, index.verdict, lambda one: index.add([*images, one])):
            with pytest.raises(ImageRefused, match=r"give uint8 \(H, W\) or \(H, W, 3\)"):
                use(image)
        assert len(index) == 0


def test_an_index_of_another_model_is_not_opened(model, build, tiny_config, preprocess, tmp_path):
    Index(tmp_path / "index", model=model).close()
    other = tmp_path / "other"
    save_checkpoint(other, build(seed=5), tiny_config, preprocess, ("a", "b", "c"), {})
    with pytest.raises(FingerprintMismatch):
        Index(tmp_path / "index", model=other)
