"""Counts by value of fields with more values than a shard of a server names."""

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from behaviours import FacetsByShard, StrictMode
from fastapi.testclient import TestClient
from reached import Reached, reached
from services.loopback import LoopbackClient
from typer.testing import CliRunner

from api.cli.main import app
from api.service import create_service
from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.manifest import read_manifest
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.records import ImageRecord, Point
from engine.settings import Settings
from engine.store.base import Collection, Filter
from indexer.archive import Archive

ALL = Filter()
COUNT, SOURCES = 700, 350
HOSTED = StrictMode(max_query_limit=20)
"""So that a shard names 128 values, which a server does that is asked for up to 32."""
FIELD = "source"
SAID = "There are too many values to count all of them; some may be missing."


def made(collection: Collection) -> list[Point]:
    """Each shard has more than 128 of the sources, of most a point or two."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(COUNT, collection.dim)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    codes = rng.integers(0, 256, (COUNT, collection.bits // 8), dtype=np.uint8)
    sources = [*range(SOURCES), *rng.integers(0, SOURCES, COUNT - SOURCES)]
    return [
        Point(
            str(uuid.UUID(int=i + 1)),
            ImageRecord(modality=("CT", "MR")[i % 2], source=f"station {sources[i]:03}"),
            codes[i],
            z[i],
        )
        for i in range(COUNT)
    ]


def counted(points: list[Point]) -> Counter[str | None]:
    return Counter(point.record.source for point in points)


@pytest.mark.parametrize("face", ["rest", "grpc"])
def test_they_are_lower_bounds_and_said_to_be(face, collection):
    points = made(collection)
    right = counted(points)
    with reached(face, FacetsByShard(3)) as server:
        store = server.create(collection, shards=3)
        store.upsert(points)
        found = store.facets((FIELD, "modality"), ALL, 50)
        # So many were asked for that each shard has named all that it has.
        assert found.at_least == ()
        assert len(found[FIELD]) == 50
        assert all(right[value] == count for value, count in found[FIELD].items())

        server.engine.behaviours = (FacetsByShard(3), HOSTED)
        with server.open(collection) as narrow:
            found = narrow.facets((FIELD, "modality"), ALL, 50)
        assert found.at_least == (FIELD,)
        assert found["modality"] == {"CT": COUNT // 2, "MR": COUNT // 2}
        assert all(count <= right[value] for value, count in found[FIELD].items())
        # It is as it says: the stand-in names some with fewer.
        assert any(count < right[value] for value, count in found[FIELD].items())


def test_a_single_shard_names_the_most_frequent_with_all_their_points(collection):
    points = made(collection)
    right = counted(points)
    with reached("rest", FacetsByShard(1), HOSTED) as server:
        store = server.create(collection)
        store.upsert(points)
        found = store.facets((FIELD,), ALL, 50)
        assert found.at_least == ()
        assert all(right[value] == count for value, count in found[FIELD].items())
        assert sorted(found[FIELD].values()) == sorted(right.values())[-len(found[FIELD]) :]


# As it is told


@dataclass(frozen=True)
class Site:
    """An archive on a stand-in of three shards."""

    server: Reached
    settings: Settings
    client: TestClient


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root: Path = tmp_path_factory.mktemp("site")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(root / "model", network, config, preprocess, (), {})
    made_by = read_manifest(root / "model")
    collection = Collection(made_by.fingerprint, made_by.dim, made_by.bits)
    with reached("rest", FacetsByShard(3)) as server:
        with server.create(collection, shards=3) as store:
            store.upsert(made(collection))
        server.engine.behaviours = (FacetsByShard(3), HOSTED)
        settings = Settings(
            data_dir=root / "data",
            model=root / "model",
            store=server.settings.model_copy(update={"prefer_grpc": False}),
        )
        with (
            Archive(settings, create=True) as archive,
            LoopbackClient(create_service(archive=archive), follow_redirects=False) as client,
        ):
            yield Site(server, settings, client)


IMAGE = str(uuid.UUID(int=1))


def test_a_search_says_so(site):
    answer = site.client.post("/v1/search", json={"id": IMAGE}).json()
    assert answer["evidence"]["facets_at_least"] == [FIELD]
    assert answer["evidence"]["facets_estimated"] is False
    narrow = {"id": IMAGE, "where": ["source=station 000", "source=station 001"]}
    answer = site.client.post("/v1/search", json=narrow).json()
    assert answer["evidence"]["facets_at_least"] == []
    without = site.client.post("/v1/search", json={"id": IMAGE, "facets": False}).json()
    assert without["evidence"]["facets_at_least"] == []


@pytest.mark.slow
def test_counts_alone_say_so(site):
    facets, stats, sources = (
        site.client.get(f"/v1/{name}").json() for name in ("facets", "stats", "sources")
    )
    assert facets["facets_at_least"] == stats["facets_at_least"] == [FIELD]
    assert facets["facets_estimated"] is False
    assert sources["images_at_least"] is True
    few = site.client.get("/v1/facets", params={"where": "source=station 000"}).json()
    assert few["facets_at_least"] == []
    assert few["facets"][FIELD] == {"station 000": few["count"]}


@pytest.mark.slow
def test_the_page_says_so(site):
    for address in ("/", f"/?like={IMAGE}"):
        page = site.client.get(address).text
        assert page.count(SAID) == 1
        assert '<span class="count">at least ' in page
        # That of another field is right.
        assert f'<span class="count">{COUNT // 2}</span>' in page
    # The filter's own field is counted without it, so that another value can be taken as well.
    narrowed = site.client.get("/", params={"where": "source=station 000"}).text
    assert narrowed.count(SAID) == 1


def test_the_commands_say_so(site, monkeypatch):
    store = site.settings.store
    monkeypatch.setenv("PRECEDENT_STORE__URL", store.url)
    monkeypatch.setenv("PRECEDENT_STORE__PREFER_GRPC", "false")
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(site.settings.data_dir))
    asked = ["info", "--model", str(site.settings.model)]
    told = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert told["facets_at_least"] == [FIELD]
    lines = CliRunner().invoke(app, asked).stdout.splitlines()
    (line,) = (line for line in lines if line.lstrip().startswith("source "))
    assert line.endswith(" (at least so many; values may be missing)")
    assert not any("at least" in other for other in lines if other is not line)
