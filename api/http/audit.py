"""Holds every answer back until the audit log has a row of it; without one, nothing is answered."""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope as AsgiScope, Send

from api.audit.rows import BEGUN, Entry, Who, outcome_of
from api.audit.writer import PATIENCE_S, Writer, too_slow
from api.http.addresses import Address, Addresses, path_of
from api.http.head import is_head
from api.http.problems import log_problem, problem_of, problem_response
from api.http.request_ids import request_id_of
from api.security.access import Caller
from api.security.keys import public_id
from api.security.policy import PUBLIC
from api.security.seen import Seen
from engine.errors import AuditError, NotAllowed

__all__ = ["ALWAYS", "Audited", "is_recorded", "named_by", "record_before", "who_is"]

ALWAYS = frozenset(
    {
        ("POST", "/login"),
        ("POST", "/logout"),
        ("GET", "/login/oidc/callback"),
        ("GET", "/smart/callback"),
        ("POST", "/embed"),
        ("GET", "/v1/whoami"),
    }
)
"""Public routes whose accesses are recorded all the same: they begin and end a session, or ask for
a credential of their own."""
_REFUSED = (401, 403, 429)
_JOBS = "/v1/jobs/"
_KEYS = "/v1/keys/"
_SENDINGS = "/v1/sendings/"
_MOST_DIGITS = 10
_KEY = re.compile(r"[0-9a-f]{16}", re.ASCII)
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)


class Audited:
    """ASGI middleware: writes a row before the first byte of an answer leaves.

    It stands around everything that may refuse a request, so that refusals have rows too. If a
    row cannot be committed, the answer is 503, and nothing of the other one is sent. The row of an
    answer that is streamed is written when that begins. What is not in the policy is not served,
    shows nothing, and has no row; nor have public routes, unless they refuse.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._addresses = Addresses()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = withheld = False
        # Set before anything inside adds to it, so that all of it is seen here.
        state = scope.setdefault("state", {})
        state["record_before"] = lambda: self._record_before(scope, state)

        async def recorded(message: Message) -> None:
            nonlocal begun, withheld
            if not begun and message["type"] == "http.response.start":
                begun = True
                try:
                    await self._record(scope, state, message["status"])
                except AuditError as error:
                    withheld = True
                    problem = problem_of(error, scope["path"], request_id_of(scope))
                    log_problem(problem, error)
                    answer = problem_response(problem, {"Retry-After": "5"})
                    await answer(scope, receive, send)
            if not withheld:
                await send(message)

        await self._app(scope, receive, recorded)

    async def _record(self, scope: AsgiScope, state: Mapping[str, Any], status: int) -> None:
        """Returns when the row of this access is committed, or none is needed.

        Raises:
            AuditError: it cannot be committed, or was not within some seconds.
        """
        found = self._addresses.find(path_of(scope))
        if found is None or not is_recorded(scope["method"], found, status):
            return
        writer: Writer | None = state.get("audit")
        if writer is None:
            raise AuditError("the service has no audit log yet; start it before it is asked")
        written = asyncio.wrap_future(writer.write(_entry(scope, state, found, status)))
        try:
            await asyncio.wait_for(asyncio.shield(written), PATIENCE_S)
        except TimeoutError:
            # What becomes of it is of no interest any more.
            written.add_done_callback(lambda future: future.cancelled() or future.exception())
            raise too_slow() from None

    def _record_before(self, scope: AsgiScope, state: Mapping[str, Any]) -> None:
        """See :func:`record_before`."""
        found, writer = self._addresses.find(path_of(scope)), state.get("audit")
        if found is None or writer is None:
            raise AuditError("the service has no audit log yet; start it before it is asked")
        writer.commit(_entry(scope, state, found, BEGUN))


def record_before(request: Request) -> None:
    """Records what the request is about to do and cannot undo: for the case that the service is
    killed, or the log fails, before the answer. A route calls it in its own thread.

    Raises:
        AuditError: the row cannot be committed; nothing must be done then.
    """
    record: Callable[[], None] | None = getattr(request.state, "record_before", None)
    if record is not None:
        record()


def is_recorded(method: str, address: Address, status: int) -> bool:
    """Whether an access to this route gets a row."""
    method = "GET" if method == "HEAD" else method
    if method not in address.methods:
        return False
    public = address.methods[method] is PUBLIC
    return not public or (method, address.template) in ALWAYS or status in _REFUSED


def who_is(caller: Caller | None, claimed: str | None, refused: Exception | None = None) -> Who:
    """Who the row names.

    Args:
        caller: None = it is not known who asked, or the identity provider knows, and the settings
            let them do nothing.
        claimed: the public id of the key that somebody unknown sent; None = there was none.
        refused: why they may do nothing.
    """
    if caller is None:
        if isinstance(refused, NotAllowed) and refused.subject is not None:
            # Of no tenant: that is what is lacking.
            return Who("token", refused.subject, refused.name)
        return Who("unknown", claimed)
    if caller.subject is not None:
        kind = "token" if caller.session is None else "session"
        return Who(kind, caller.subject, caller.name, caller.tenant)
    if caller.key is None:
        return Who("open", tenant=caller.tenant)
    kind = "key" if caller.session is None else "session"
    return Who(kind, caller.key, caller.name, caller.tenant)


def _entry(scope: AsgiScope, state: Mapping[str, Any], address: Address, status: int) -> Entry:
    seen: Seen = state.get("seen") or Seen()
    client = scope.get("client")
    caller = state.get("caller")
    about = {**_job_named_by(address), **_key_named_by(address), **state.get("about", {})}
    if caller is not None and caller.acting is not None:
        about["acting"] = caller.acting
    return Entry(
        who_is(caller, state.get("claimed") or _claimed(scope), state.get("refused")),
        f"{'HEAD' if is_head(scope) else scope['method']} {address.template}",
        status,
        outcome_of(status),
        Seen.joined((named_by(address), seen)),
        None if client is None else str(client[0]),
        state.get("request_id"),
        about,
    )


def named_by(address: Address) -> Seen:
    """The image or study that the path names, if it is well-formed: else it may be any text."""
    image, study = address.named.get("id", ""), address.named.get("uid", "")
    images: tuple[str, ...] = ()
    if image and not address.template.startswith((_SENDINGS, _KEYS)):
        try:
            images = (str(UUID(image)),)
        except ValueError:
            images = ()
    named = len(study) <= 64 and _UID.fullmatch(study) is not None
    return Seen((study,) if named else (), images)


def _job_named_by(address: Address) -> dict[str, Any]:
    number = address.named.get("id", "") if address.template.startswith(_JOBS) else ""
    known = number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS
    return {"job": int(number)} if known else {}


def _key_named_by(address: Address) -> dict[str, Any]:
    key = address.named.get("id", "") if address.template.startswith(_KEYS) else ""
    return {"key": key} if _KEY.fullmatch(key) else {}


def _claimed(scope: AsgiScope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return public_id(value.decode("latin-1").partition(" ")[2].strip())
    return None
