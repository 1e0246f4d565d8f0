"""What the search page is asked, by its address or by its form, and addresses of further questions.

Every option is left out of an address that has its usual value, so that an address stays short.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

from fastapi import Depends, Form, Query, Request, UploadFile
from starlette.datastructures import UploadFile as AnyUpload

from api.http.deps import Asked
from engine.errors import QueryError
from engine.search.query import parse_group
from indexer.imaging.region import Region, parse_region

__all__ = [
    "MOST_UPLOADS",
    "TILES",
    "AskedByForm",
    "AskedByLink",
    "Mark",
    "Question",
    "field_of",
    "was_added",
]

MOST_UPLOADS = 8
"""Most images that are searched for together."""
TILES = ("small", "medium", "large")
"""Sizes of the tiles in a grid."""
_NO_IMAGE: dict[str, Any] = {
    "uploads": (),
    "kept": (),
    "marks": (),
    "sop": None,
    "frame": None,
    "study": None,
}
"""The fields that say what is searched for, without anything."""
_USUAL_GROUP = "study"
_USUAL_OWN = "patient"
_USUAL_TILES = "medium"
_FROM, _TO = "year_from", "year_to"
_EDGES = ("region_x", "region_y", "region_w", "region_h")
"""Fields of the form that a region is chosen by."""
_IS = "is_"
"""Begins the names of fields that add a value to the filters, as in ``is_labels``."""


class Mark(NamedTuple):
    """An image of the archive that is an example. image: its id. liked: False = it is disliked."""

    image: str
    liked: bool

    @property
    def field(self) -> str:
        """The name of its field, in addresses and forms."""
        return "like" if self.liked else "dislike"


@dataclass(frozen=True, slots=True)
class Question:
    """A request for the search page, as yet unchecked.

    uploads: files. kept: tokens of uploads that were searched for before. marks: images of the
    archive that were liked or disliked, in the order in which they were. sop (and frame), study:
    UIDs. Without anything to be like nothing is searched for. region: what of the one image is
    searched for; None = all of it. tiles: of ``TILES``. The other options are as in
    :class:`api.http.deps.Asked`; unless it says otherwise one image of each study is shown, and
    none of the query's own patient.
    """

    uploads: tuple[UploadFile, ...] = ()
    kept: tuple[str, ...] = field(default=(), repr=False)
    marks: tuple[Mark, ...] = ()
    sop: str | None = None
    frame: int | None = None
    study: str | None = None
    region: Region | None = None
    k: int | None = None
    where: tuple[str, ...] = ()
    order: str = "content"
    exact: bool = False
    group_by: str | None = _USUAL_GROUP
    exclude: str | None = _USUAL_OWN
    page: str | None = None
    tiles: str = _USUAL_TILES

    @property
    def names_an_image(self) -> bool:
        return any(getattr(self, name) != nothing for name, nothing in _NO_IMAGE.items())

    @property
    def likes(self) -> tuple[str, ...]:
        """Ids of the images that are liked."""
        return tuple(one.image for one in self.marks if one.liked)

    @property
    def dislikes(self) -> tuple[str, ...]:
        """Ids of the images that are disliked."""
        return tuple(one.image for one in self.marks if not one.liked)

    @property
    def is_refined(self) -> bool:
        """Whether several examples are given, rather than one image."""
        return len(self.uploads) + len(self.kept) + len(self.marks) > 1

    def without_image(self) -> "Question":
        """The same options without what is searched for."""
        return replace(self, page=None, region=None, **_NO_IMAGE)

    def asked(self) -> Asked:
        """The same for the routes of the API, to which a kept upload means nothing. Of several
        images the first."""
        return Asked(
            upload=next(iter(self.uploads), None),
            image_id=next(iter(self.likes), None),
            sop=self.sop,
            frame=self.frame,
            study=self.study,
            region=self.region,
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

        changed: fields, or ``like``, the id of the one image to search for; with another image, or
        a page, what else is of that kind is left out.
        """
        if "like" in changed:
            like = changed.pop("like")
            changed["marks"] = () if like is None else (Mark(like, liked=True),)
        if not changed.keys().isdisjoint(_NO_IMAGE):
            changed = {**_NO_IMAGE, "region": None, **changed}
        query = replace(self, **{"page": None, "uploads": (), **changed})._written()
        return "./?" + urlencode(query) if query else "./"

    def marked(self, image: str, *, liked: bool) -> str:
        """The address of this question with an image liked, or disliked, last of all."""
        others = (one for one in self.marks if one.image != image)
        return self._of_examples(self.kept, (*others, Mark(image, liked)))

    def unmarked(self, image: str) -> str:
        """The address of this question without an image that was liked or disliked; where nothing
        is left to be like, without the others too."""
        return self._of_examples(self.kept, (one for one in self.marks if one.image != image))

    def unkept(self, token: str) -> str:
        """The address of this question without an upload; else as :meth:`unmarked`."""
        return self._of_examples((one for one in self.kept if one != token), self.marks)

    @property
    def undone(self) -> str | None:
        """The address of this question before the last image was liked or disliked; None = nothing
        else is searched for."""
        before = self.marks[:-1]
        if not self.marks or not (self.kept or any(one.liked for one in before)):
            return None
        return self._of_examples(self.kept, before)

    def _of_examples(self, kept: Iterable[str], marks: Iterable[Mark]) -> str:
        tokens, left = tuple(kept), tuple(marks)
        if not tokens and not any(one.liked for one in left):
            left = ()
        # By bits only one image is compared.
        order = self.order if len(tokens) + len(left) == 1 else "content"
        return self.address(kept=tokens, marks=left, order=order)

    def hidden(self, *, without: str | None = None) -> list[tuple[str, str]]:
        """Names and values of hidden fields, by which a form of the page asks the same question.

        without: terms of this field are left out of the filters.
        """
        where = tuple(term for term in self.where if field_of(term) != without)
        return replace(self, uploads=(), page=None, where=where)._written()

    def _written(self) -> list[tuple[str, str]]:
        query = [("query", token) for token in self.kept]
        query += [(one.field, one.image) for one in self.marks]
        found = {"sop": self.sop, "frame": self.frame, "study": self.study}
        query += [(name, str(value)) for name, value in found.items() if value is not None]
        if self.region is not None:
            query.append(("region", str(self.region)))
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
        if self.tiles != _USUAL_TILES:
            query.append(("tiles", self.tiles))
        if self.page is not None:
            query.append(("page", self.page))
        return query


def field_of(term: str) -> str:
    """The field that a filter term is about."""
    return term.partition("=")[0].strip().removesuffix("!").strip()


def was_added(request: Request) -> bool:
    """Whether the address has fields of a small form, which become terms of another address."""
    added = (_FROM, _TO, *_EDGES)
    return any(name in added or name.startswith(_IS) for name in request.query_params)


async def _by_link(
    request: Request,
    query: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies defaults
    sop: str | None = None,
    frame: int | None = None,
    study: str | None = None,
    region: str = "",
    k: int | None = None,
    where: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies defaults
    order: str = "content",
    exact: bool = False,
    group_by: str = _USUAL_GROUP,
    exclude_own: str = _USUAL_OWN,
    page: str | None = None,
    tiles: str = _USUAL_TILES,
) -> Question:
    asked = Question(
        kept=tuple(dict.fromkeys(token for token in query if token)),
        marks=_marks(request.query_params.multi_items()),
        sop=sop,
        frame=frame,
        study=study,
        region=_region(request, region),
        k=k,
        where=_with_added(request, tuple(term for term in where if term)),
        order=order,
        exact=exact,
        group_by=parse_group(group_by),
        exclude=parse_group(exclude_own),
        page=page or None,
        tiles=_tiles(tiles),
    )
    # For the page that shows what is wrong with it.
    request.state.question = asked
    return asked


def _region(request: Request, written: str) -> Region | None:
    """The region of an address, or of the four fields of a form."""
    edges = [request.query_params.get(name, "").strip() for name in _EDGES]
    if any(edges):
        written = ",".join(edges)
    return parse_region(written) if written.strip() else None


def _marks(fields: Iterable[tuple[str, object]]) -> tuple[Mark, ...]:
    """What is liked and disliked, in the order of the fields."""
    found = [
        Mark(value, name == "like")
        for name, value in fields
        if name in ("like", "dislike") and isinstance(value, str) and value
    ]
    return tuple(dict.fromkeys(found))


def _tiles(written: str) -> str:
    if written not in TILES:
        raise QueryError(f"tiles is {written[:40]!r}; use one of {', '.join(TILES)}")
    return written


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
    image_id: Annotated[str | None, Form(alias="id")] = None,
    query: Annotated[list[str], Form()] = [],  # noqa: B006 - FastAPI copies defaults
    sop: Annotated[str | None, Form()] = None,
    frame: Annotated[int | None, Form()] = None,
    study: Annotated[str | None, Form()] = None,
    region: Annotated[str, Form()] = "",
    k: Annotated[int | None, Form()] = None,
    where: Annotated[list[str], Form()] = [],  # noqa: B006 - FastAPI copies defaults
    order: Annotated[str, Form()] = "content",
    exact: Annotated[bool, Form()] = False,
    group_by: Annotated[str, Form()] = _USUAL_GROUP,
    exclude_own: Annotated[str, Form()] = _USUAL_OWN,
    tiles: Annotated[str, Form()] = _USUAL_TILES,
) -> Question:
    # The files, and the order of what is liked and disliked, are in the form alone. It was read for
    # the other fields, and is closed after the answer.
    form = await request.form()
    marks = _marks(form.multi_items())
    asked = Question(
        uploads=tuple(
            UploadFile(one.file, size=one.size, filename=one.filename)
            for one in form.getlist("file")
            # A form sends a file without name and content where none was chosen.
            if isinstance(one, AnyUpload) and (one.filename or one.size)
        ),
        kept=tuple(dict.fromkeys(token for token in query if token)),
        marks=(Mark(image_id, liked=True),) if image_id else marks,
        sop=sop or None,
        frame=frame,
        study=study or None,
        region=parse_region(region) if region.strip() else None,
        k=k,
        # A form sends an empty term for every filter that is not set.
        where=tuple(term for term in where if term),
        order=order,
        exact=exact,
        group_by=parse_group(group_by),
        exclude=parse_group(exclude_own),
        tiles=_tiles(tiles),
    )
    if asked.uploads:
        # The form also sends the image of the last search; files that were chosen take precedence.
        asked = replace(asked, **{**_NO_IMAGE, "region": None, "uploads": asked.uploads})
    request.state.question = asked
    return asked


AskedByForm = Annotated[Question, Depends(_by_form)]
AskedByLink = Annotated[Question, Depends(_by_link)]
