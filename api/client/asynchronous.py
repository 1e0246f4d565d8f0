"""The client for programs that do other things meanwhile (asyncio)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from datetime import datetime
from functools import wraps
from itertools import count
from typing import IO, Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from . import administering, calls
from .answers import Job
from .asking import Asking, Key, lost, signed
from .call import Call, Paged, page_after
from .events import BETWEEN_STREAMS, NOTHING_MORE, Following, JobEvent
from .retries import Retries

__all__ = ["AsyncClient"]

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A", bound=Paged)


def _asks(ask: Callable[P, Call[T]]) -> Callable[Concatenate["AsyncClient", P], Awaitable[T]]:
    """The method that asks this and gives the answer."""

    @wraps(ask)
    async def method(client: "AsyncClient", /, *args: P.args, **options: P.kwargs) -> T:
        return await client.send(ask(*args, **options))

    return signed(method, ask)


def _asks_on(
    ask: Callable[P, Call[A]],
) -> Callable[Concatenate["AsyncClient", P], AsyncIterator[A]]:
    """The method that asks this and gives one page of answers after another."""

    @wraps(ask)
    async def method(
        client: "AsyncClient", /, *args: P.args, **options: P.kwargs
    ) -> AsyncIterator[A]:
        call: Call[A] | None = ask(*args, **options)
        while call is not None:
            answer = await client.send(call)
            yield answer
            call = page_after(call, answer)

    return signed(method, ask)


class AsyncClient:
    """A client of the service; close it, or use it in an ``async with`` statement.

    Every method may raise what ``errors`` describes; OSError, where a file cannot be read.

    Args:
        address: of the service, as in "https://precedent.example".
        key: an API key or access token, or what gives one; None = the service is open.
        timeout: seconds for connecting, and for every wait for more of an answer; or an
            httpx.Timeout.
        retries: when requests are repeated.
        verify: True, or the TLS context that knows the hospital's certificate authority.
        plain_http: send the key to another host without TLS all the same.
        transport: of httpx, in place of the network.

    Raises:
        ValueError: the address is none, or would send the key over a network without TLS.
    """

    def __init__(
        self,
        address: str,
        key: Key | None = None,
        *,
        timeout: float | httpx.Timeout = 60.0,
        retries: Retries | None = None,
        verify: Any = True,
        plain_http: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._asking = Asking(address, key, retries or Retries(), plain_http=plain_http)
        self._http = httpx.AsyncClient(
            base_url=self._asking.address, timeout=timeout, verify=verify, transport=transport
        )

    search = _asks(calls.search)
    search_pages = _asks_on(calls.search)
    search_batch = _asks(calls.search_batch)
    recommend = _asks(calls.recommend)
    recommend_series = _asks(calls.recommend_series)
    related = _asks(calls.related)
    image = _asks(calls.image)
    thumbnail = _asks(calls.thumbnail)
    preview = _asks(calls.preview)
    facets = _asks(calls.facets)
    duplicates = _asks(calls.duplicates)
    model = _asks(calls.model)
    stats = _asks(calls.stats)
    archive_map = _asks(calls.archive_map)
    archive_growth = _asks(calls.archive_growth)
    archive_refusals = _asks(calls.archive_refusals)
    calibration = _asks(calls.calibration)
    drift = _asks(calls.drift)
    sources = _asks(calls.sources)
    whoami = _asks(calls.whoami)
    jobs = _asks(calls.jobs)
    job_pages = _asks_on(calls.jobs)
    job = _asks(calls.job)
    create_job = _asks(calls.create_job)
    pause_job = _asks(calls.pause_job)
    resume_job = _asks(calls.resume_job)
    cancel_job = _asks(calls.cancel_job)
    retry_job = _asks(calls.retry_job)
    add_instance = _asks(calls.add_instance)
    delete_instances = _asks(calls.delete_instances)
    create_embed_token = _asks(calls.create_embed_token)
    make_report = _asks(calls.make_report)
    select_earlier_images = _asks(calls.select_earlier_images)
    select_for_teaching = _asks(calls.select_for_teaching)
    destinations = _asks(calls.destinations)
    send_documents = _asks(calls.send_documents)
    sendings = _asks(calls.sendings)
    sending = _asks(calls.sending)
    retry_sending = _asks(calls.retry_sending)
    cancel_sending = _asks(calls.cancel_sending)
    keys = _asks(administering.keys)
    create_key = _asks(administering.create_key)
    revoke_key = _asks(administering.revoke_key)
    audit = _asks(administering.audit)
    audit_pages = _asks_on(administering.audit)
    verify_audit = _asks(administering.verify_audit)
    health = _asks(calls.health)
    ready = _asks(calls.ready)

    async def send(self, call: Call[T]) -> T:
        """The answer to a call, which is sent as often as ``retries`` allow."""
        for attempt in count(1):
            failed: httpx.Response | httpx.RequestError
            with ExitStack() as until:
                try:
                    failed = await self._http.request(**self._asking.request(call, until))
                except httpx.RequestError as error:
                    failed = error
                else:
                    if failed.is_success:
                        return call.read(failed)
            await asyncio.sleep(self._asking.wait_after(call, attempt, failed))
        raise AssertionError  # pragma: no cover

    async def job_report(self, number: int, into: IO[bytes]) -> None:
        """Writes the CSV of every instance of a job and its fate, as it comes."""
        await self._write(calls.job_report(number), into)

    async def audit_export(
        self,
        into: IO[bytes],
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
    ) -> None:
        """Writes the accesses of the tenant as FHIR AuditEvents, one a line, as they come."""
        await self._write(administering.audit_export(since=since, until=until), into)

    async def _write(self, call: Call[None], into: IO[bytes]) -> None:
        for attempt in count(1):
            failed: httpx.Response | httpx.RequestError
            begun = False
            try:
                async with self._http.stream(**self._asking.request(call, ExitStack())) as failed:
                    if failed.is_success:
                        async for piece in failed.aiter_bytes():
                            begun = True
                            into.write(piece)
                        return
                    await failed.aread()
            except httpx.RequestError as error:
                if begun:
                    raise lost(call, error) from error
                failed = error
            await asyncio.sleep(self._asking.wait_after(call, attempt, failed))

    async def follow(self, number: int, *, after: str = "") -> AsyncIterator[JobEvent]:
        """The progress of a job as it changes, until it ends; over as many connections as that
        takes.

        Args:
            after: id of the last event that is known already; "" = none.
        """
        call, following, attempt = calls.job_events(number), Following(after), 0
        while not following.ended:
            attempt += 1
            following.begin()
            # Streams end after a while, and when the service is being ended.
            wait = BETWEEN_STREAMS
            asked = self._asking.streamed(call, self._http.timeout, following.last_id)
            try:
                async with self._http.stream(**asked) as answer:
                    if answer.status_code == NOTHING_MORE:
                        return
                    if answer.is_success:
                        attempt = 0
                        async for line in answer.aiter_lines():
                            event = following.take(line)
                            if event is not None:
                                yield event
                    else:
                        await answer.aread()
                        wait = self._asking.wait_after(call, attempt, answer)
            except httpx.RequestError as error:
                wait = self._asking.wait_after(call, max(1, attempt), error)
            if not following.ended:
                await asyncio.sleep(wait)

    async def wait_for_job(self, number: int) -> Job:
        """The job, once it has ended."""
        async for _ in self.follow(number):
            pass
        return await self.job(number)

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
