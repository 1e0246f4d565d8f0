"""The words of the pages in the language of whoever reads them, and its numbers and dates.

The words stand in the code in English. For each other language there is a catalogue (gettext) in
the folder ``locales``, which is read as it is: nothing has to be compiled. Which language is spoken
holds for one request: :func:`speaking` sets it, and everything else here goes by it.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path

from babel.core import Locale
from babel.dates import format_date, format_datetime, format_skeleton, format_time
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal, get_decimal_symbol

from api.marking import later

__all__ = [
    "FOLDER",
    "LANGUAGES",
    "SOURCE",
    "decimal",
    "general",
    "gettext",
    "grouped",
    "language",
    "later",
    "moment",
    "ngettext",
    "npgettext",
    "period",
    "pgettext",
    "speaking",
]

LANGUAGES: Mapping[str, str] = {"en": "English", "de": "Deutsch"}
"""Those that the pages speak, and what each calls itself."""
SOURCE = "en"
"""The language of the words in the code."""
FOLDER = Path(__file__).parent / "locales"
_SPOKEN: ContextVar[str] = ContextVar("language", default=SOURCE)
_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}", re.ASCII)


@contextmanager
def speaking(spoken: str) -> Iterator[None]:
    """Within it words, numbers and dates are of this language, one of :data:`LANGUAGES`."""
    before = _SPOKEN.set(spoken)
    try:
        yield
    finally:
        _SPOKEN.reset(before)


def language() -> str:
    """The language that is spoken, as in "de"."""
    return _SPOKEN.get()


def gettext(message: str) -> str:
    """The message in the language that is spoken; in English where its catalogue lacks it."""
    return _catalogue(language()).gettext(message)


def ngettext(one: str, many: str, count: int) -> str:
    """As :func:`gettext`, in the form for so many."""
    return _catalogue(language()).ngettext(one, many, count)


def pgettext(context: str, message: str) -> str:
    """As :func:`gettext`, of a message that means something else in another context."""
    return _catalogue(language()).pgettext(context, message)


def npgettext(context: str, one: str, many: str, count: int) -> str:
    """As :func:`pgettext`, in the form for so many."""
    return _catalogue(language()).npgettext(context, one, many, count)


@cache
def _catalogue(spoken: str) -> NullTranslations:
    if spoken == SOURCE:
        return NullTranslations()
    compiled = BytesIO()
    with (FOLDER / spoken / "LC_MESSAGES" / "portal.po").open("rb") as file:
        write_mo(compiled, read_po(file, locale=spoken, abort_invalid=True))
    compiled.seek(0)
    return GNUTranslations(compiled)


@cache
def _locale(spoken: str) -> Locale:
    return Locale(spoken)


def grouped(count: int) -> str:
    """A whole number with its thousands apart, as in "1,200,000" or "1.200.000"."""
    return format_decimal(count, locale=_locale(language()))


def decimal(value: float, places: int) -> str:
    """A number with so many places, as in "0.987" or "0,987"; the digits are the same in every
    language."""
    written = f"{value:.{places}f}"
    pattern = "#,##0" + (f".{'0' * places}" if places else "")
    return format_decimal(Decimal(written), pattern, locale=_locale(language()))


def general(value: float, digits: int = 6) -> str:
    """A number with so many significant digits, as in "0.0312" or "1,2e-05"."""
    written = f"{value:.{digits}g}"
    return written.replace(".", get_decimal_symbol(_locale(language())))


def moment(written: str, *, seconds: bool = False) -> str:
    """A time of ISO 8601 for a reader, in UTC, to the minute or the second.

    In English as ISO 8601 has it: readers of English are of countries that write dates otherwise.
    """
    at = datetime.fromisoformat(written)
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    if language() == SOURCE:
        return f"{at:%Y-%m-%d %H:%M:%S}" if seconds else f"{at:%Y-%m-%d %H:%M}"
    locale = _locale(language())
    if seconds:
        return format_datetime(at, "medium", locale=locale)
    return f"{format_date(at, 'medium', locale)}, {format_time(at, 'short', locale=locale)}"


def period(written: str) -> str:
    """A day or a month of ISO 8601 for a reader, as in "30.11.2026" or "Nov. 2026"; in English as
    :func:`moment`. What is neither is left as it is."""
    if language() == SOURCE:
        return written
    locale = _locale(language())
    try:
        if _MONTH.fullmatch(written):
            return format_skeleton("yMMM", date.fromisoformat(f"{written}-01"), locale=locale)
        return format_date(date.fromisoformat(written), "medium", locale)
    except ValueError:
        return written
