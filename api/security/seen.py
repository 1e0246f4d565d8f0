"""What an answer shows of the archive: routes tell it, and the audit log records it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from starlette.requests import Request

from engine.records import Hit, OodVerdict, Point

__all__ = ["Seen", "tell", "tell_about", "verdict_of"]

_VERDICTS = ("known", "unfamiliar", "foreign")


@dataclass(frozen=True, slots=True)
class Seen:
    """What an answer shows: identifiers alone, nothing of a patient and nothing of the question.

    studies: Study Instance UIDs. images: ids of images. Both with those that were asked about.
    results: how many results there are; None = the answer is no list.
    verdict: "known", "unfamiliar" or "foreign"; None = no query was judged.
    """

    studies: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    results: int | None = None
    verdict: str | None = None

    @classmethod
    def of(
        cls,
        shown: Iterable[Hit | Point],
        *,
        asked: Iterable[str] = (),
        studies: Iterable[str] = (),
        ood: OodVerdict | None = None,
        listed: bool = True,
    ) -> Self:
        """Of an answer that shows these images.

        Args:
            asked: ids of images that the question named, and studies: UIDs that it named.
            ood: the verdict on the question's image.
            listed: they are a list of results, rather than the one image that was asked for.
        """
        found = list(shown)
        named = [one.record.study for one in found if one.record.study is not None]
        return cls(
            tuple(dict.fromkeys([*studies, *named])),
            tuple(dict.fromkeys([*asked, *(one.id for one in found)])),
            len(found) if listed else None,
            verdict_of(ood),
        )

    @classmethod
    def joined(cls, parts: Iterable["Seen"]) -> Self:
        """All of them together. The verdict is the least familiar one."""
        studies: dict[str, None] = {}
        images: dict[str, None] = {}
        results: int | None = None
        verdict: str | None = None
        for one in parts:
            studies |= dict.fromkeys(one.studies)
            images |= dict.fromkeys(one.images)
            if one.results is not None:
                results = one.results + (results or 0)
            verdict = max(verdict, one.verdict, key=_rank)
        return cls(tuple(studies), tuple(images), results, verdict)


def tell(request: Request, seen: Seen) -> None:
    """Notes what the answer to this request shows. A route calls it before it answers; what is told
    in several calls is shown together."""
    before: Seen | None = getattr(request.state, "seen", None)
    request.state.seen = seen if before is None else Seen.joined((before, seen))


def tell_about(request: Request, **about: str | int | list[str]) -> None:
    """Notes what else this request concerns, such as the job that it made: identifiers alone."""
    request.state.about = {**getattr(request.state, "about", {}), **about}


def verdict_of(ood: OodVerdict | None) -> str | None:
    """The word for a verdict; None = there is none."""
    return None if ood is None else ood.verdict


def _rank(verdict: str | None) -> int:
    return _VERDICTS.index(verdict) if verdict in _VERDICTS else -1
