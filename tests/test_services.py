"""The services that other tests start are what they take them for."""

import os
from collections.abc import Callable, Iterator

import kombu
import pytest
from services.brokers import Broker, RabbitMQ, Redis

BROKERS: dict[str, Callable[[], Broker]] = {
    "redis": Redis,
    "redis with a password": lambda: Redis("a-password"),
    "rabbitmq": RabbitMQ,
}


# RabbitMQ takes some seconds for each start.
PARAMETERS = [
    pytest.param(name, marks=pytest.mark.slow if name == "rabbitmq" else ()) for name in BROKERS
]


@pytest.fixture(scope="module", params=PARAMETERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with BROKERS[request.param]() as running:
        yield running


def connected(broker: Broker) -> kombu.Connection:
    # Unasked, RabbitMQ does not say when it has a message on disk.
    return kombu.Connection(broker.url, transport_options={"confirm_publish": True})


def put(broker: Broker, queue: str, message: str) -> None:
    with connected(broker) as connection, connection.SimpleQueue(queue) as messages:
        messages.put(message)


def get(broker: Broker, queue: str) -> str:
    with connected(broker) as connection, connection.SimpleQueue(queue) as messages:
        message = messages.get(timeout=10)
        message.ack()
        return message.payload


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_message_goes_through(broker):
    put(broker, "through", "grüezi")
    assert get(broker, "through") == "grüezi"


def test_a_message_outlives_a_restart(broker):
    put(broker, "restarted", "still here")
    before, url = broker.pid, broker.url
    broker.restart()
    assert not runs(before)
    assert broker.url == url
    assert get(broker, "restarted") == "still here"


def test_a_message_outlives_a_kill(broker):
    put(broker, "killed", "still here")
    before = broker.pid
    broker.kill()
    assert not runs(before)
    with pytest.raises(RuntimeError, match="not running"):
        _ = broker.pid
    broker.start()
    assert get(broker, "killed") == "still here"


@pytest.mark.slow
def test_a_password_is_asked_for():
    with Redis("a-password") as broker, kombu.Connection(broker.url) as connection:
        unknown = connection.clone(password="another")
        with pytest.raises(unknown.connection_errors, match=r"(?i)password|auth"):
            unknown.connect()


def test_nothing_is_left_behind():
    with Redis() as broker:
        pid, folder = broker.pid, broker.folder
        assert folder.is_dir()
    assert not runs(pid)
    assert not folder.exists()


def test_a_missing_program_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match=r"needs redis-server.* install .*redis-s"):
        Redis()


def test_a_missing_program_fails_in_ci(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"needs redis-server.* install .*redis-s"):
        Redis()
