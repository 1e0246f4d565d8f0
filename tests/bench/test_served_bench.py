"""The benchmark of a server runs, and says what it is about; its figures are the server's."""

import sys
from pathlib import Path

import pytest

from bench.served import main, measured
from bench.vectors import Vectors, prepared
from engine.settings import StoreSettings

CONTRACT = str(Path(__file__).parents[1] / "contract")


def test_without_a_server_it_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.delenv("PRECEDENT_TEST_QDRANT_URL", raising=False)
    monkeypatch.setattr(sys, "argv", ["bench-served"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "set PRECEDENT_TEST_QDRANT_URL" in said.err


@pytest.mark.slow
def test_each_table_has_its_rows_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(CONTRACT)
    from loopback import Loopback

    vectors = Vectors.opened(prepared("synthetic", 60, 2, scratch=tmp_path))
    engine = Loopback()
    with engine.rest() as rest, engine.grpc() as grpc:
        settings = StoreSettings(
            url=f"http://127.0.0.1:{rest}", grpc_port=grpc, collection="bench-test"
        )
        found = measured(settings, vectors)
        assert engine.names().collections == []
    assert list(found) == ["building", "a search", "hits with their payload", "facets"]
    assert [row["what"] for row in found["building"]] == ["ours", "compact"]
    searches = {
        (row["search"], row["transport"]): row for row in found["a search"] if not row["delay ms"]
    }
    assert len(searches) == 10
    # Once more, as over a network.
    assert [row["delay ms"] for row in found["a search"]] == [0, 0, 0, 0, 0, 20, 20] * 2
    assert all(row["bare query ms"] >= 20 for row in found["a search"] if row["delay ms"])
    # Counts, ten facets and the query; by id, the point itself as well.
    assert 12 <= searches["all", "REST"]["requests"] < searches["by id", "REST"]["requests"] <= 16
    assert searches["all, no facets", "gRPC"]["requests"] <= 3
    for row in found["a search"]:
        assert row["ms"] > 0
        assert row["times"] == pytest.approx(row["ms"] / row["bare query ms"], rel=0.1)
    hits = found["hits with their payload"]
    assert [(row["hits"], row["transport"]) for row in hits] == [
        (count, face) for count in (10, 100, 1000) for face in ("gRPC", "REST")
    ]
    assert all(row[f"{what}, ms"] > 0 for row in hits for what in ("ours", "compact", "none"))
    assert [row["images"] for row in found["facets"]] == ["all", "a tenth"]
