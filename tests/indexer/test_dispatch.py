"""What the ledger tells brokers, while they are there, away, and back."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from services.brokers import Broker, RabbitMQ, Redis

from engine.errors import JobError
from engine.settings import JobSettings
from indexer.jobs.dispatch import Dispatcher, celery_app
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import JobOptions
from indexer.sources.opening import SourceSpec

AT = "2026-01-01T00:00:00+00:00"


@pytest.fixture(params=[Redis, pytest.param(RabbitMQ, marks=pytest.mark.slow)])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with request.param() as running:
        yield running


def waiting(broker: Broker, settings: Any) -> int:
    """Messages that nobody has taken."""
    with celery_app(settings).connection_for_read() as connection:
        return int(connection.default_channel.queue_declare("precedent", passive=True)[1])


def test_a_broker_that_was_away_is_told_at_once(
    broker: Broker, new_site: Callable[..., Any]
) -> None:
    site = new_site()
    settings = site.settings.model_copy(update={"jobs": JobSettings(broker=broker.url)})
    site.open(create=True).close()
    with site.database() as database:
        jobs = JobLedger(database.of("default"))

        def submit() -> None:
            jobs.submit(SourceSpec.asked([site.files], None), JobOptions(), at=AT)

        dispatcher = Dispatcher(settings, database, celery_app(settings))
        submit()
        assert dispatcher.dispatch() == 1
        # The connection is of no use any more, and nobody has said so.
        broker.restart()
        submit()
        assert dispatcher.dispatch() == 1
        broker.kill()
        submit()
        started = time.monotonic()
        with pytest.raises(JobError, match=r"does not answer.*stays in the ledger"):
            dispatcher.dispatch()
        assert time.monotonic() - started < 10
        broker.start()
        assert dispatcher.dispatch() == 1
        assert dispatcher.dispatch() == 0
    if isinstance(broker, RabbitMQ):
        assert waiting(broker, settings) == 3


def test_what_is_urgent_overtakes_what_waits_with_the_broker(
    broker: Broker, new_site: Callable[..., Any]
) -> None:
    site = new_site()
    settings = site.settings.model_copy(update={"jobs": JobSettings(broker=broker.url)})
    with site.database() as database:
        jobs = JobLedger(database.of("default"))
        app = celery_app(settings)
        dispatcher = Dispatcher(settings, database, app)
        spec = SourceSpec.asked([site.files], None)
        submitted = []
        for priority in (2, 2, 8):
            submitted.append(jobs.submit(spec, JobOptions(), at=AT, priority=priority))
            assert dispatcher.dispatch() == 1
    first, second, urgent = submitted
    with app.connection_for_read() as connection:
        queue = app.amqp.queues["precedent"](connection.default_channel)
        taken = [queue.get(no_ack=True).payload[0][0] for _ in submitted]
    assert taken == [urgent, first, second]
