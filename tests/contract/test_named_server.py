"""How variables name the real server or cluster that the contract is run against."""

from pathlib import Path

import pytest
from backends import named_server


def variables(**named: str) -> dict[str, str]:
    return {f"PRECEDENT_TEST_QDRANT_{name}": value for name, value in named.items()}


def test_without_a_server_none_is_named():
    assert named_server({}) is None
    assert named_server(variables(SHARDS="3", REPLICAS="2", GRPC_PORT="7334")) is None


def test_one_server_is_named_by_its_address():
    found = named_server(variables(URL="http://a:6333", GRPC_PORT="7334", API_KEY="none"))
    assert (found.settings.url, found.settings.urls) == ("http://a:6333", ())
    assert found.settings.grpc_port == 7334
    assert found.settings.api_key.get_secret_value() == "none"
    assert (found.settings.shards, found.settings.replication_factor) == (1, 1)


def test_a_cluster_is_named_by_its_nodes():
    urls = "http://a:6333, http://b:6333,http://c:6333"
    found = named_server(variables(URLS=urls, SHARDS="3", REPLICAS="2"))
    assert found.settings.urls == ("http://a:6333", "http://b:6333", "http://c:6333")
    assert (found.settings.shards, found.settings.replication_factor) == (3, 2)
    connection = found.connection(Path("/some/where"))
    assert connection.settings.collection.endswith("-some-where")
    assert len(connection.client.each()) == 3
    connection.client.close()


@pytest.mark.parametrize("named", [{"SHARDS": "many"}, {"REPLICAS": "0"}, {"GRPC_PORT": "x"}])
def test_what_is_no_number_is_refused(named):
    with pytest.raises(ValueError, match=r"shards|replication_factor|grpc_port"):
        named_server(variables(URL="http://a:6333", **named))
