"""The map of an archive: a fixed sample of it, in the plane in which it differs most."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.records import ImageRecord, Point
from engine.search.projection import project, regions
from engine.store.base import Collection, Filter, Match
from engine.store.edge import EdgeStore
from engine.store.tenant import TenantStore

DIM = 24
COUNT = 600


def point(number: int, z: np.ndarray, tenant: str) -> Point:
    name = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{tenant}{number}"))
    modality = ("CT", "MR")[number % 2]
    record = ImageRecord(modality=modality, tenant=tenant)
    unit = (z / np.linalg.norm(z)).astype(np.float32)
    return Point(name, record, np.zeros(8, np.uint8), unit)


@pytest.fixture(scope="module")
def whole(store_root: Path) -> Iterator[EdgeStore]:
    rng = np.random.default_rng(0)
    centres = np.eye(3, DIM) * 4
    with EdgeStore.create(store_root / "store", Collection("0" * 16, DIM, 64)) as store:
        store.upsert(
            [point(n, centres[n % 3] + rng.normal(0, 0.3, DIM), "default") for n in range(COUNT)]
        )
        store.upsert([point(n, rng.normal(0, 1, DIM), "north") for n in range(7)])
        yield store


@pytest.fixture
def store(whole: EdgeStore) -> TenantStore:
    return TenantStore(whole, "default")


def test_the_plane_is_that_of_the_principal_components(store: TenantStore) -> None:
    found = project(store, COUNT)
    assert len(found.ids) == found.images == COUNT
    z = np.stack([one.z for one in store.get(found.ids, with_z=True)]).astype(np.float64)  # type: ignore[misc]
    z -= z.mean(axis=0)
    # The slow obvious version, by another decomposition.
    left, singular, _ = np.linalg.svd(z, full_matrices=False)
    naive = left[:, :2] * singular[:2]
    # The same distances between all images, but for one scale.
    apart = [
        np.linalg.norm(one[:, None] - one[None], axis=2)[np.triu_indices(COUNT, 1)]
        for one in (found.places, naive)
    ]
    scale = apart[1].max() / apart[0].max()
    assert np.allclose(scale * apart[0], apart[1], atol=1e-6)
    assert found.kept == pytest.approx(np.square(singular[:2]) / np.square(singular).sum())
    assert found.kept[0] >= found.kept[1] > 0.2
    assert found.places.min(axis=0) == pytest.approx([0, 0])
    assert found.places.max() == 1


def test_few_images_of_many_values_have_the_same_plane(store: TenantStore) -> None:
    """Fewer than values: the other matrix is taken apart."""
    found = project(store, 12)
    z = np.stack([one.z for one in store.get(found.ids, with_z=True)]).astype(np.float64)  # type: ignore[misc]
    singular = np.linalg.svd(z - z.mean(axis=0), compute_uv=False)
    assert len(found.ids) <= 12 < DIM
    assert found.kept == pytest.approx(np.square(singular[:2]) / np.square(singular).sum())


def test_no_more_vectors_are_read_than_are_shown(
    store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    scroll = TenantStore.scroll

    def counted(self: TenantStore, where: Filter, **options: bool) -> Iterator[Point]:
        for one in scroll(self, where, **options):  # type: ignore[arg-type]
            read.append(one.id)
            yield one

    monkeypatch.setattr(TenantStore, "scroll", counted)
    found = project(store, 50)
    assert 10 < len(found.ids) <= 50
    assert list(found.ids) == read == sorted(read)
    assert found.images == COUNT
    again = project(store, 50)
    assert again.ids == found.ids
    assert np.array_equal(again.places, found.places)


def test_the_sample_is_the_tenants_and_of_all_kinds(whole: EdgeStore, store: TenantStore) -> None:
    found = project(store, 100)
    records = [one.record for one in store.get(found.ids)]
    assert {one.tenant for one in records} == {"default"}
    assert {one.modality for one in records} == {"CT", "MR"}
    assert project(TenantStore(whole, "north"), 100).images == 7
    some = project(store, COUNT, Filter((Match("modality", ("CT",)),)))
    assert (some.images, {one.record.modality for one in store.get(some.ids)}) == (
        COUNT // 2,
        {"CT"},
    )


def test_where_nothing_differs_all_is_in_one_place(whole: EdgeStore, store_root: Path) -> None:
    assert project(TenantStore(whole, "nobody"), 10).ids == ()
    with EdgeStore.create(store_root / "same", Collection("0" * 16, DIM, 64)) as store:
        store.upsert([point(n, np.ones(DIM), "default") for n in range(5)])
        found = project(store, 10)
    assert found.kept == (0.0, 0.0)
    assert not found.places.any()
    assert [one.rows for one in regions(found.places, 5)] == [tuple(range(5))]


def test_every_image_is_in_one_square_and_the_most_central_one_comes_first(
    store: TenantStore,
) -> None:
    places = project(store, COUNT).places
    found = regions(places, 5)
    assert sorted(row for one in found for row in one.rows) == list(range(COUNT))
    assert [(one.row, one.column) for one in found] == sorted(
        (one.row, one.column) for one in found
    )
    for one in found:
        own = places[list(one.rows)]
        assert (np.floor(own * 5).clip(max=4) == [one.column, one.row]).all()
        away = np.linalg.norm(own - own.mean(axis=0), axis=1)
        assert away[0] == away.min()
