"""Reads request bodies, JSON or forms, into models that refuse unknown fields."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar, get_origin

from fastapi import HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import FormData, UploadFile as AnyUpload
from starlette.exceptions import HTTPException as AnyHTTPException

__all__ = ["EXAMPLE_BYTES", "FORM", "Body", "Fields", "body_content", "body_schemas", "read_body"]

JSON, FORM, LINKED = "application/json", "multipart/form-data", "application/x-www-form-urlencoded"
_MOST_JSON = 1024**2
_MOST_FIELDS = 1000
_JSON_TYPE = re.compile(r"application/([a-z0-9.+-]+\+)?json")
_BINARY = {"type": "string", "format": "binary"}
EXAMPLE_BYTES = "(the bytes of the file)"
"""What stands for a file in examples."""
_TOO_MANY = re.compile(r"Too many files")


class Fields(BaseModel):
    """The fields of a body. A name that is not among them is refused: it may be misspelt, and the
    answer would be to another question."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_M = TypeVar("_M", bound=Fields)


@dataclass(frozen=True, slots=True)
class Body(Generic[_M]):
    """A body that was read. uploads: its files, in order."""

    fields: _M
    uploads: tuple[UploadFile, ...] = ()


@asynccontextmanager
async def read_body(
    request: Request,
    model: type[_M],
    *,
    files: str | None = None,
    most: int = 1,
    only_forms: bool = False,
) -> AsyncIterator[Body[_M]]:
    """The body of a request; its uploads are closed at the end.

    Args:
        files: name of the form's field that has files; None = only JSON is taken.
        most: how many files may come. only_forms: no JSON is taken, and a file has to come.

    Raises:
        HTTPException: 400, the body cannot be parsed. 413: its JSON is too long. 415: it is of
            another type.
        RequestValidationError: a field is unknown, or of the wrong type, or there are too many
            files, or none where one has to come.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not only_forms and _JSON_TYPE.fullmatch(kind):
        yield Body(_of_json(await _json_text(request), model))
    elif files is not None and kind in (FORM, LINKED):
        try:
            form = await request.form(max_files=_MOST_FIELDS, max_fields=_MOST_FIELDS)
        except AnyHTTPException as error:
            if error.status_code == 400 and _TOO_MANY.match(str(error.detail)):
                _too_many(files, f"more than {_MOST_FIELDS}", most)
            raise
        try:
            body = _of_form(form, model, files, most)
            if only_forms and not body.uploads:
                raise RequestValidationError([_error(files, "a file has to be sent; none came")])
            yield body
        finally:
            await form.close()
    elif not only_forms and not kind and not await request.body():
        yield Body(_checked(model, {}, strict=False))
    else:
        taken = JSON if files is None else FORM if only_forms else f"{FORM} or {JSON}"
        raise HTTPException(415, f"the Content-Type is {kind[:80] or 'not given'}; send {taken}")


async def _json_text(request: Request) -> bytes:
    text = b""
    async for piece in request.stream():
        text += piece
        if len(text) > _MOST_JSON:
            raise HTTPException(413, f"the JSON has more than {_MOST_JSON} bytes; send less")
    return text


def _of_json(text: bytes, model: type[_M]) -> _M:
    if not text.strip():
        return _checked(model, {}, strict=True)
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise HTTPException(400, "the body is no JSON, as its Content-Type says") from None
        _refuse(error)


def _of_form(form: FormData, model: type[_M], files: str, most: int) -> Body[_M]:
    values: dict[str, Any] = {}
    uploads: list[UploadFile] = []
    wrong: list[dict[str, Any]] = []
    lists = {
        field.alias or name
        for name, field in model.model_fields.items()
        if get_origin(field.annotation) is list
    }
    for name in form:
        found = form.getlist(name)
        texts = [one for one in found if isinstance(one, str)]
        sent = [one for one in found if isinstance(one, AnyUpload) and (one.filename or one.size)]
        if name == files:
            uploads = [_upload(one) for one in sent]
            if any(texts):
                wrong.append(_error(name, "a file is expected, not a text"))
        elif sent:
            wrong.append(_error(name, "a text is expected, not a file"))
        elif name in lists:
            values[name] = texts
        elif len(texts) > 1:
            wrong.append(_error(name, "it is given more than once"))
        elif any(texts):
            # A form sends an empty text for what was not filled in.
            values[name] = texts[0]
        elif name not in {field.alias or name for name, field in model.model_fields.items()}:
            values[name] = ""
    if wrong:
        raise RequestValidationError(wrong)
    if len(uploads) > most:
        _too_many(files, str(len(uploads)), most)
    return Body(_checked(model, values, strict=False), tuple(uploads))


def _upload(upload: AnyUpload) -> UploadFile:
    return UploadFile(upload.file, size=upload.size, filename=upload.filename)


def _too_many(name: str, count: str, most: int) -> NoReturn:
    takes = "1 file" if most == 1 else f"up to {most} files"
    raise RequestValidationError([_error(name, f"{count} files came; a request takes {takes}")])


def _checked(model: type[_M], values: Mapping[str, Any], *, strict: bool) -> _M:
    try:
        return model.model_validate(values, strict=strict)
    except ValidationError as error:
        _refuse(error)


def _refuse(error: ValidationError) -> NoReturn:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from None


def _error(name: str, message: str) -> dict[str, Any]:
    return {"type": "value_error", "loc": ("body", name[:80]), "msg": message}


def body_content(
    model: type[Fields],
    *,
    example: Mapping[str, Any],
    name: str,
    files: str | None = None,
    most: int = 1,
    about_files: str = "",
    without: tuple[str, ...] = (),
    only_forms: bool = False,
) -> dict[str, Any]:
    """The ``requestBody`` of a route's entry in the OpenAPI document.

    A form has to have a file there, so that clients that are made of the document can send one;
    what needs none is sent as JSON. Where both are taken, JSON comes first: many makers of clients
    know the first one alone, and for the form there is an operation of its own.

    Args:
        name: of the schemas: ``NameRequest`` of JSON, ``NameUpload`` of a form.
        files, only_forms: as of :func:`read_body`. most: how many files; more than one = a list.
        without: fields that stand in place of a file, and are not in the form.
    """
    plain = model.model_json_schema(by_alias=True)
    content: dict[str, Any] = {}
    if most == 1 and not only_forms:
        content[JSON] = {"schema": {**plain, "title": f"{name}Request"}, "example": dict(example)}
    if files is not None:
        kept = {one: part for one, part in plain["properties"].items() if one not in without}
        binary: dict[str, Any] = dict(_BINARY) if most == 1 else {"type": "array", "items": _BINARY}
        if most > 1:
            binary |= {"minItems": 1, "maxItems": most}
        upload = {**plain, "title": f"{name}Upload"}
        upload["properties"] = {files: {**binary, "description": about_files}, **kept}
        upload["required"] = [files]
        bytes_of = EXAMPLE_BYTES if most == 1 else [EXAMPLE_BYTES]
        form_example = {files: bytes_of, **{n: v for n, v in example.items() if n in kept}}
        content[FORM] = {"schema": upload, "example": form_example}
    return {"required": True, "content": content}


def body_schemas(document: dict[str, Any]) -> None:
    """Moves the schemas of bodies in an OpenAPI document to its components, under their titles."""
    for methods in document["paths"].values():
        for operation in methods.values():
            for media in operation.get("requestBody", {}).get("content", {}).values():
                schema = media.get("schema", {})
                if "title" in schema:
                    document["components"]["schemas"][schema["title"]] = schema
                    media["schema"] = {"$ref": f"#/components/schemas/{schema['title']}"}
