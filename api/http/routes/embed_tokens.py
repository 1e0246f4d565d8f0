"""Tokens with which another site shows the cases related to a study in its own pages."""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from api.http.problems import problem_responses
from api.security.access import Access
from api.security.embedding import MOST_MINUTES, Embed, site_origin
from api.security.seen import Seen, tell, tell_about
from engine.errors import NotAllowed

__all__ = ["EmbedRequest", "EmbedTokenDocument", "router"]

router = APIRouter(tags=["embedding"])

_Printable = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class EmbedRequest(BaseModel):
    """What a token is to be for.

    - `study`: Study Instance UID. `origin`: of the site in whose pages it is shown, and no other.
    - `acting_user`: the person at that site, as its server knows them; for the audit log.
    - `minutes`: how long the token lasts.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "study": "1.2.826.0.1.3680043.8.498.1",
                    "origin": "https://portal.example",
                    "acting_user": "dr.weber",
                    "minutes": 5,
                }
            ]
        },
    )

    study: Annotated[str, Field(pattern=r"^[0-9.]{1,64}$")]
    origin: _Printable
    acting_user: _Printable
    minutes: Annotated[int, Field(ge=1, le=MOST_MINUTES)] = MOST_MINUTES


class EmbedTokenDocument(BaseModel):
    """A token.

    - `token`: to be sent as the field `token` of a form, by POST, to `/embed`, into a frame of a
      page of the site.
    - `expires_at`: when it ends, UTC.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [{"token": "eyJhbGciOi…", "expires_at": "2026-03-01T09:05:00+00:00"}]
        },
    )

    token: str
    expires_at: str


@router.post(
    "/v1/embed-tokens",
    operation_id="createEmbedToken",
    summary="Let another site show the cases related to a study",
    status_code=201,
    responses=problem_responses(400, 422, 503),
)
def create_embed_token(asked: EmbedRequest, request: Request) -> EmbedTokenDocument:
    """The token is for the server of that site, which authenticates by an API key: it ends with
    the key, or when its time is over. It is read by `/embed` alone and opens nothing else.
    """
    caller = request.state.caller
    if caller.key is None:
        raise NotAllowed(
            "such tokens end with the API key that asks for them, so only an API key may ask; "
            "make one with `precedent keys create NAME --scope search`"
        )
    tell(request, Seen((asked.study,)))
    tell_about(request, acting=asked.acting_user)
    access: Access = request.state.access
    embed = Embed(
        caller.key, caller.tenant, asked.study, site_origin(asked.origin), asked.acting_user
    )
    token, until = access.embed_tokens().make(embed, asked.minutes)
    return EmbedTokenDocument(token=token, expires_at=until.isoformat())
