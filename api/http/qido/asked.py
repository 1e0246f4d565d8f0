"""What a search of QIDO-RS asks: keys to match, which page of the answer, and what of the question
is passed over (PS3.18 8.3.4)."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatchcase
from typing import TypeVar

from fastapi import Request
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword

from engine.errors import QueryError

__all__ = ["MOST_UIDS", "Asked", "asked_of", "is_pattern", "uid_of"]

MOST_UIDS = 100
"""Most UIDs that one key names."""
_LONGEST_UID = 64
_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)
_TAG = re.compile(r"[0-9A-Fa-f]{8}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9.]{1,64}", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,9}", re.ASCII)
_DATES = re.compile(r"([0-9]{8})?(-)?([0-9]{8})?", re.ASCII)
_SEVERAL = re.compile(r"[\\,]")
_ONCE = ("limit", "offset", "fuzzymatching")
_MOST_NAMED = 10
_T = TypeVar("_T")
_LITERALLY = (
    "The fuzzymatching parameter is not supported. Only literal matching has been performed."
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A search.

    keys: by keyword of an attribute, the values of which one has to match: UIDs, or patterns with
        ``*`` and ``?``. Keys that anything matches are left out.
    years: first and last year of the Study Date that is asked for; None = any date.
    limit: most results; None = no limit. offset: results before the first one.
    warnings: what was passed over, a sentence each.
    """

    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    years: tuple[int, int] | None = None
    limit: int | None = None
    offset: int = 0
    warnings: tuple[str, ...] = ()

    def literal(self, keyword: str) -> tuple[str, ...]:
        """The values of a key; () = it is not asked for, or one of them is a pattern."""
        values = self.keys.get(keyword, ())
        return () if any(map(is_pattern, values)) else values

    def matches(self, attributes: Mapping[str, Sequence[str | int]]) -> bool:
        """Whether an answer with these attributes matches all keys. What has no value matches
        none."""
        return all(
            any(
                _matches(str(one), value) for one in attributes.get(keyword, ()) for value in values
            )
            for keyword, values in self.keys.items()
        )

    def page(self, found: Sequence[_T]) -> Sequence[_T]:
        """Of all results those that are asked for."""
        end = None if self.limit is None else self.offset + self.limit
        return found[self.offset : end]


def asked_of(request: Request, known: Collection[str]) -> Asked:
    """What a request asks.

    Args:
        known: keywords of the attributes that answers have. Other attributes, and parameters that
            nobody knows, are passed over, with a warning.

    Raises:
        QueryError: a parameter is malformed, or given twice.
    """
    written: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        written.setdefault(_keyword(name) or name, []).append(value)
    keys: dict[str, tuple[str, ...]] = {}
    years = None
    unknown: list[str] = []
    for name, values in written.items():
        if name in (*_ONCE, "accept"):
            continue
        if name == "includefield":
            unknown += [one for one in _parts(values) if one != "all" and _keyword(one) is None]
        elif name not in known:
            unknown.append(name)
        elif name == "StudyDate":
            years = _years(_single(name, values))
        elif found := _values(name, values):
            keys[name] = found
    fuzzy = _option(written, "fuzzymatching") or "false"
    if fuzzy not in ("true", "false"):
        raise QueryError(f"fuzzymatching is {fuzzy[:40]!r}; write true or false")
    warnings = [_LITERALLY] if fuzzy == "true" else []
    if unknown:
        warnings.append(_passed_over(unknown))
    limit = _count(written, "limit")
    return Asked(keys, years, limit, _count(written, "offset") or 0, tuple(warnings))


def is_pattern(value: str) -> bool:
    """Whether a value stands for others than itself."""
    return "*" in value or "?" in value


def uid_of(name: str, written: str) -> str:
    """A UID that the request names.

    Raises:
        QueryError: it is none.
    """
    if len(written) > _LONGEST_UID or not _UID.fullmatch(written):
        raise QueryError(f"{name} is {written[:80]!r}, which is no UID; write it as in 1.2.840.1")
    return written


def _keyword(name: str) -> str | None:
    """The attribute that a parameter names, by its keyword or its tag; None = none. Of a path into
    sequences, the path."""
    parts = name.split(".")
    found = [
        keyword_for_tag(int(one, 16))
        if _TAG.fullmatch(one) and dictionary_has_tag(int(one, 16))
        else one
        if tag_for_keyword(one) is not None
        else ""
        for one in parts
    ]
    return ".".join(found) if all(found) else None


def _parts(values: Iterable[str]) -> list[str]:
    return [one.strip() for value in values for one in _SEVERAL.split(value) if one.strip()]


def _values(keyword: str, values: list[str]) -> tuple[str, ...]:
    """What a key may match; () = anything matches it."""
    kind = dictionary_VR(keyword)
    if kind == "UI":
        uids = tuple(uid_of(keyword, one) for one in dict.fromkeys(_parts(values)))
        if len(uids) > MOST_UIDS:
            raise QueryError(f"{keyword} names {len(uids)} UIDs; name up to {MOST_UIDS} at once")
        return uids
    if kind == "CS":
        found = tuple(one.upper() for one in dict.fromkeys(_parts(values)))
    else:
        found = (_single(keyword, values).strip(),)
    if keyword == "PatientID" and not is_pattern(found[0]):
        # Whoever asks for a patient never gets studies of others: nobody has an empty Patient ID.
        return found
    return () if any(not one.strip("*") for one in found) else found


def _years(written: str) -> tuple[int, int] | None:
    found = _DATES.fullmatch(written.strip())
    first, to, last = found.groups() if found else (None, None, None)
    if not written.strip():
        return None
    try:
        if found is None or not (first or last) or (last and not to):
            raise ValueError(written)
        low = date.min if first is None else date.fromisoformat(first)
        high = low if to is None else date.max if last is None else date.fromisoformat(last)
        if low > high:
            raise ValueError(written)
    except ValueError:
        raise QueryError(
            f"StudyDate is {written[:40]!r}; write a date as 20240131, or a range as "
            "20230101-20240131, 20230101- or -20240131"
        ) from None
    return low.year, high.year


def _option(written: Mapping[str, list[str]], name: str) -> str | None:
    return _single(name, written[name]).strip() if name in written else None


def _count(written: Mapping[str, list[str]], name: str) -> int | None:
    found = _option(written, name)
    if found is None:
        return None
    if not _COUNT.fullmatch(found):
        raise QueryError(f"{name} is {found[:40]!r}; write a whole number from 0 on")
    return int(found)


def _single(name: str, values: list[str]) -> str:
    if len(values) > 1:
        raise QueryError(f"{name} is given {len(values)} times; give it once")
    return values[0]


def _passed_over(names: Sequence[str]) -> str:
    # What the names of parameters say may be anything, and goes into a header.
    shown = [one for one in names if _NAME.fullmatch(one)][:_MOST_NAMED]
    others = len(names) - len(shown)
    if others:
        shown.append(f"{others} more")
    return f"Not supported here, and passed over: {', '.join(shown)}."


def _matches(value: str, wanted: str) -> bool:
    # Brackets stand for themselves.
    return fnmatchcase(value.casefold(), wanted.casefold().replace("[", "[[]"))
