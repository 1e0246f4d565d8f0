"""A request of one operation, which can be sent any number of times, and how its answer is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from .errors import UnexpectedAnswer
from .uploads import Upload, repeatable_upload

__all__ = [
    "Call",
    "Paged",
    "content",
    "get",
    "nothing",
    "page_after",
    "pairs",
    "part",
    "post",
    "upload",
]

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request of an operation, which can be sent any number of times.

    Args:
        operation: its id in the OpenAPI document. path: below the service's address.
        read: what an answer without an error says.
        options: of a query, or of a form with ``uploads`` in ``field``. json: a body instead.
        repeatable: asked twice, it does no more than asked once.
    """

    operation: str
    method: str
    path: str
    read: Callable[[httpx.Response], T]
    options: tuple[tuple[str, str], ...] = ()
    json: Mapping[str, Any] | None = None
    field: str = ""
    uploads: tuple[Upload, ...] = ()
    repeatable: bool = True


class Paged(Protocol):
    """An answer that others may follow."""

    @property
    def next_page(self) -> str | None: ...


P = TypeVar("P", bound=Paged)


def page_after(call: Call[P], answer: P) -> Call[P] | None:
    """The same question, for what follows this answer; None: nothing does."""
    if answer.next_page is None:
        return None
    if call.json is not None:
        return replace(call, json={**call.json, "page": answer.next_page})
    kept = tuple(one for one in call.options if one[0] != "page")
    return replace(call, options=(*kept, ("page", answer.next_page)))


def get(
    operation: str, path: str, answer: type[M], options: Mapping[str, Any] | None = None
) -> Call[M]:
    """A question that is all in its address."""
    return Call(operation, "GET", path, _document(answer), pairs(options or {}))


def post(
    operation: str,
    path: str,
    answer: type[M],
    fields: Mapping[str, Any] | None = None,
    *,
    repeatable: bool = True,
) -> Call[M]:
    """A request with a JSON body of these fields, without those that are None; None: without a
    body."""
    body = None if fields is None else _given(fields)
    return Call(operation, "POST", path, _document(answer), json=body, repeatable=repeatable)


def download(operation: str, path: str, fields: Mapping[str, Any]) -> Call[bytes]:
    """A request with a JSON body of these fields, without those that are None, for a file."""
    return Call(operation, "POST", path, content, json=_given(fields))


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, [])}


def upload(
    operation: str,
    path: str,
    answer: type[M],
    field: str,
    images: tuple[Upload, ...],
    options: Mapping[str, Any] | None = None,
) -> Call[M]:
    """A form with images in ``field``."""
    sent = tuple(repeatable_upload(one) for one in images)
    form = pairs(options or {})
    return Call(operation, "POST", path, _document(answer), form, field=field, uploads=sent)


def pairs(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Options as a query or a form has them, without those that are None."""
    found: list[tuple[str, str]] = []
    for name, value in options.items():
        if isinstance(value, list):
            found += [(name, str(one)) for one in value]
        elif isinstance(value, bool):
            found.append((name, "true" if value else "false"))
        elif value is not None:
            found.append((name, str(value)))
    return tuple(found)


def part(text: str) -> str:
    """A text as one part of a path."""
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} is no id and no UID; answers of a search have them")
    return quote(text, safe="")


def content(answer: httpx.Response) -> bytes:
    """Of a picture or a file."""
    return answer.content


def nothing(_: httpx.Response) -> None:
    """Of a stream, which is read as it comes."""


def _document(kind: type[M]) -> Callable[[httpx.Response], M]:
    def read(answer: httpx.Response) -> M:
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            # The first of its errors without the value, which may identify somebody.
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the document"
            raise UnexpectedAnswer(
                f"the answer is no {kind.__name__} ({place}: {first['msg']}); is this the address "
                "of the service, and is this client as old as it, or older?",
                answer.headers.get("X-Request-Id"),
            ) from None

    return read
