"""What the search page is asked, by its address or by its form, and addresses of further questions.

Every option is left out of an address that has its usual value, so that an address stays short.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, File, Form, Query, Request, UploadFile

from api.http.deps import Asked
from engine.search.query import parse_group

__all__ = ["AskedByForm", "AskedByLink", "Question", "field_of", "was_added"]

_OF_AN_IMAGE = ("upload", "kept", "like", "sop", "frame", "study")
_USUAL_GROUP = "study"
_USUAL_OWN = "patient"
_FROM, _TO = "year_from", "year_to"
_IS = "is_"
"""Begins the names of fields that add a value to the filters, as in ``is_labels``."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request for the search page, as yet unchecked.

    upload: a file. kept: token of an upload that was searched for before. like: id of an image.
    sop (and frame), study: UIDs. Without any of them nothing is searched for. The other options are
    as in :class:`api.http.deps.Asked`; unless it says otherwise one image of each study is shown,
    and none of the query's own patient.
    """

    upload: UploadFile | None = None
    kept: str | None = field(default=None, repr=False)
    like: str | None = None
    sop: str | None = None
    frame: int | None = None
    study: str | None = None
    k: int | None = None
    where: tuple[str, ...] = ()
    order: str = "content"
    exact: bool = False
    group_by: str | None = _USUAL_GROUP
    exclude: str | None = _USUAL_OWN
    page: str | None = None

    @property
    def names_an_image(self) -> bool:
        return any(getattr(self, name) is not None for name in _OF_AN_IMAGE)

    def asked(self) -> Asked:
        """The same for the routes of the API, to which a kept upload means nothing."""
        return Asked(
            upload=self.upload,
            image_id=self.like,
            sop=self.sop,
            frame=self.frame,
            study=self.study,
            k=self.k,
            where=self.where,
            order=self.order,
            exact=self.exact,
            group_by=self.group_by,
            exclude=self.exclude,
            page=self.page,
            facets=False,
        )

    def address(self, **changed: Any) -> str:
        """The address of this question with some of it replaced, relative to the search page.

        changed: fields; with another image, or a page, the others of that kind are left out.
        """
        if not changed.keys().isdisjoint(_OF_AN_IMAGE):
            changed = {**dict.fromkeys(_OF_AN_IMAGE), **changed}
        query = replace(self, **{"page": None, "upload": None, **changed})._written()
        return "./?" + urlencode(query) if query else "./"

    def hidden(self, *, without: str | None = None) -> list[tuple[str, str]]:
        """Names and values of hidden fields, by which a form of the page asks the same question.

        without: terms of this field are left out of the filters.
        """
        where = tuple(term for term in self.where if field_of(term) != without)
        return replace(self, upload=None, page=None, where=where)._written()

    def _written(self) -> list[tuple[str, str]]:
        found = {
            "query": self.kept,
            "like": self.like,
            "sop": self.sop,
            "frame": self.frame,
            "study": self.study,
        }
        query = [(name, str(value)) for name, value in found.items() if value is not None]
        query += [("where", term) for term in self.where]
        if self.k is not None:
            query.append(("k", str(self.k)))
        if self.order != "content":
            query.append(("order", self.order))
        if self.exact:
            query.append(("exact", "true"))
        if self.group_by != _USUAL_GROUP:
            query.append(("group_by", self.group_by or "none"))
        if self.exclude != _USUAL_OWN:
            query.append(("exclude_own", self.exclude or "none"))
        if self.page is not None:
            query.append(("page", self.page))
        return query


def field_of(term: str) -> str:
    """The field that a filter term is about."""
    return term.partition("=")[0].strip().removesuffix("!").strip()


def was_added(request: Request) -> bool:
    """Whether the address has fields of a small form, which become terms of another address."""
    return any(name in (_FROM, _TO) or name.startswith(_IS) for name in request.query_params)


async def _by_link(
    request: Request,
    like: str | None = None,
    query: str | None = None,
    sop: str | None = None,
    frame: int | None = None,
    study: str | None = None,
    k: int | None = None,
    where: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies defaults
    order: str = "content",
    exact: bool = False,
    group_by: str = _USUAL_GROUP,
    exclude_own: str = _USUAL_OWN,
    page: str | None = None,
) -> Question:
    asked = Question(
        kept=query,
        like=like,
        sop=sop,
        frame=frame,
        study=study,
        k=k,
        where=_with_added(request, tuple(term for term in where if term)),
        order=order,
        exact=exact,
        group_by=parse_group(group_by),
        exclude=parse_group(exclude_own),
        page=page or None,
    )
    # For the page that shows what is wrong with it.
    request.state.question = asked
    return asked


def _with_added(request: Request, where: tuple[str, ...]) -> tuple[str, ...]:
    """The filter terms with those of small forms: a range of years, a value that was typed."""
    given = request.query_params
    if _FROM in given or _TO in given:
        where = tuple(term for term in where if field_of(term) != "study_year")
        low, high = given.get(_FROM, "").strip(), given.get(_TO, "").strip()
        if low or high:
            where = (*where, f"study_year={low}..{high}")
    typed = [
        f"{name.removeprefix(_IS)}={value.strip()}"
        for name, value in given.multi_items()
        if name.startswith(_IS) and value.strip()
    ]
    return tuple(dict.fromkeys((*where, *typed)))


async def _by_form(
    request: Request,
    file: Annotated[UploadFile | None, File()] = None,
    image_id: Annotated[str | None, Form(alias="id")] = None,
    like: Annotated[str | None, Form()] = None,
    query: Annotated[str | None, Form()] = None,
    sop: Annotated[str | None, Form()] = None,
    frame: Annotated[int | None, Form()] = None,
    study: Annotated[str | None, Form()] = None,
    k: Annotated[int | None, Form()] = None,
    where: Annotated[list[str], Form()] = [],  # noqa: B006 - FastAPI copies defaults
    order: Annotated[str, Form()] = "content",
    exact: Annotated[bool, Form()] = False,
    group_by: Annotated[str, Form()] = _USUAL_GROUP,
    exclude_own: Annotated[str, Form()] = _USUAL_OWN,
) -> Question:
    asked = Question(
        upload=file,
        kept=query or None,
        like=image_id or like or None,
        sop=sop or None,
        frame=frame,
        study=study or None,
        k=k,
        # A form sends an empty term for every filter that is not set.
        where=tuple(term for term in where if term),
        order=order,
        exact=exact,
        group_by=parse_group(group_by),
        exclude=parse_group(exclude_own),
    )
    if file is not None:
        # The form also sends the image of the last search; a file that was chosen takes precedence.
        asked = replace(asked, kept=None, like=None, sop=None, frame=None, study=None)
    request.state.question = asked
    return asked


AskedByForm = Annotated[Question, Depends(_by_form)]
AskedByLink = Annotated[Question, Depends(_by_link)]
