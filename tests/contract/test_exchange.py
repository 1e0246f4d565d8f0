"""On a server, one collection takes the place of another in one step."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback import Loopback
from PIL import Image
from qdrant_client import QdrantClient

from engine.errors import FingerprintMismatch, StoreError, StoreNotFound
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.manifest import read_manifest
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.search.query import Query
from engine.settings import IndexingSettings, Settings, StoreSettings
from engine.store.base import Collection, Filter, Profile
from engine.store.connection import Connection, connect
from engine.store.server import ServerStore
from engine.store.server_collection import beside, drop, in_force, put_in_force
from indexer.archive import Archive
from indexer.reencoding.reencode import drop_previous, go_back, reencode
from indexer.sources.folder import FolderSource

OTHER = Collection("fedcba9876543210", 16, 64)
OURS, THEIRS = "precedent-0123456789abcdef", "precedent-fedcba9876543210"


def model(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(folder, network, config, preprocess, (), {})
    return folder


@pytest.fixture(params=["rest", "grpc"])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    engine = Loopback()
    with engine.rest() as rest, engine.grpc() as grpc:
        settings = StoreSettings(
            url=f"http://127.0.0.1:{rest}", grpc_port=grpc, prefer_grpc=request.param == "grpc"
        )
        client: QdrantClient = connect(settings)
        yield Connection(client, settings, sleep=lambda _: None)
        client.close()


def test_a_collection_has_a_name_of_its_own(connection, collection):
    assert in_force(connection) is None
    store = ServerStore.create(connection, collection)
    assert (store.name, in_force(connection), beside(connection)) == (OURS, OURS, [])
    assert ServerStore.create(connection, collection).name == OURS


def test_one_is_filled_beside_and_takes_the_place_in_one_step(connection, collection, make_points):
    points = make_points(20)
    old = ServerStore.create(connection, collection)
    old.upsert(points)
    new = ServerStore.create_beside(connection, OTHER, Profile("precise"))
    new.upsert(points[:7])
    # Nobody sees it yet, and who asks for its model is told of the one in force.
    assert ServerStore.open(connection).count(Filter()) == 20
    assert beside(connection) == [THEIRS]
    with pytest.raises(FingerprintMismatch, match="reencode"):
        ServerStore.open(connection, OTHER)
    put_in_force(connection, new.name)
    found = ServerStore.open(connection, OTHER)
    assert (found.name, found.count(Filter()), found.profile) == (THEIRS, 7, Profile("precise"))
    # A store that is open stays with its own, so that its answers are all of one model.
    assert old.count(Filter()) == 20
    assert beside(connection) == [OURS]
    put_in_force(connection, OURS)
    assert ServerStore.open(connection, collection).count(Filter()) == 20


def test_whoever_asks_meanwhile_finds_one_or_the_other(connection, collection, make_points):
    ServerStore.create(connection, collection).upsert(make_points(20))
    ServerStore.create_beside(connection, OTHER, Profile()).upsert(make_points(7))
    counts, failures, stop = set(), [], threading.Event()
    client = connect(connection.settings)

    def ask() -> None:
        while not stop.is_set():
            try:
                counts.add(client.count(connection.settings.collection).count)
            except Exception as error:
                failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    for name in (THEIRS, OURS) * 10:
        put_in_force(connection, name)
    stop.set()
    asking.join()
    client.close()
    assert failures == []
    assert counts <= {20, 7}


def test_only_what_is_ours_and_not_in_force_can_be_dropped(connection, collection, make_points):
    client = connection.client
    ServerStore.create(connection, collection).upsert(make_points(3))
    ServerStore.create_beside(connection, OTHER, Profile())
    client.create_collection("precedent-0000000000000000", vectors_config={})
    client.create_collection("others", vectors_config={})
    for name in (OURS, "others", "precedent-0000000000000000", "precedent"):
        with pytest.raises(StoreError, match=name):
            drop(connection, name)
    drop(connection, THEIRS)
    assert beside(connection) == []
    assert not client.collection_exists(THEIRS)
    with pytest.raises(StoreNotFound, match=THEIRS):
        ServerStore.open(connection, name=THEIRS)
    assert ServerStore.open(connection).count(Filter()) == 3


def test_a_collection_from_before_aliases_is_used_as_it_is(connection, collection, make_points):
    """It has the name of the settings itself."""
    ServerStore.create(connection, collection).upsert(make_points(3))
    settings = connection.settings.model_copy(update={"collection": OURS})
    earlier = Connection(connection.client, settings, sleep=lambda _: None)
    assert in_force(earlier) == OURS
    assert ServerStore.create(earlier, collection).name == OURS
    assert ServerStore.open(earlier, collection).count(Filter()) == 3
    with pytest.raises(StoreError, match=r"precedent\s*snapshot FILE"):
        ServerStore.create_beside(earlier, OTHER, Profile())
    assert ServerStore.open(earlier).count(Filter()) == 3


def answers(archive: Archive) -> dict[str, list[tuple[str, float, int]]]:
    found = {}
    for point in archive.store.scroll(Filter()):
        hits = archive.engine.search_like(point.id, Query(k=20, exact=True)).hits
        found[point.id] = [(hit.id, round(hit.similarity, 5), hit.hamming) for hit in hits]
    return found


@pytest.mark.slow
def test_an_archive_on_a_server_is_encoded_anew(connection, tmp_path):
    old, new = model(tmp_path / "old", 0), model(tmp_path / "new", 1)
    (files := tmp_path / "files").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(files / f"{number}.png")
    settings = Settings(
        data_dir=tmp_path / "data",
        store=connection.settings,
        indexing=IndexingSettings(readers=1, batch_size=2),
    )
    with_old = settings.model_copy(update={"model": old})
    fresh = settings.model_copy(
        update={
            "data_dir": tmp_path / "fresh",
            "model": new,
            "store": connection.settings.model_copy(update={"collection": "fresh"}),
        }
    )
    with Archive(with_old, create=True) as archive:
        archive.index(FolderSource([files]))
        before = answers(archive)
    with Archive(fresh, create=True) as archive:
        archive.index(FolderSource([files]))
        wanted = answers(archive)
    with Archive(with_old) as serving:
        report = reencode(with_old, new)
        assert (report.encoded, report.left_out) == (6, 0)
        assert answers(serving) == before
        assert serving.is_replaced
    assert report.index == in_force(connection) == f"precedent-{read_manifest(new).fingerprint}"
    with Archive(settings) as archive:
        assert answers(archive) == wanted
        assert archive.delete(archive.ledger.find(limit=1)) == 1
    go_back(settings)
    with Archive(settings) as archive:
        assert set(answers(archive)) < set(before)
        assert archive.store.count(Filter()) == 5
    assert drop_previous(settings) == [report.index]
    assert beside(connection) == []
