"""Brings the catalogues of the portal up to what its code and templates say.

    python -m bench.catalogues [--check]

New words are added without a translation, those that are gone are taken away, and nothing is
guessed: api/portal/locales/LANGUAGE/LC_MESSAGES/portal.po is then to be completed by hand. With
``--check`` nothing is written; it fails if anything is to be done.
"""

import argparse
import io
import re
import sys
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir, extract_from_file
from babel.messages.pofile import read_po, write_po

from api.portal.catalogues import FOLDER, LANGUAGES, SOURCE

__all__ = ["catalogue", "extracted", "missing", "path_of", "renewed"]

_PORTAL = FOLDER.parent
_BESIDE = ("api/refusals.py",)
"""Words that other modules share with the portal."""
_HEADER = """\
# The words of the portal; `make catalogues` brings them up to what the code says.
msgid ""
msgstr ""
"Language: {language}\\n"
"Plural-Forms: {plurals}\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"

"""
_METHODS = [("**.py", "python"), ("templates/**.html", "jinja2")]
_OPTIONS = {"templates/**.html": {"trimmed": "true", "newstyle_gettext": "true", "silent": "false"}}
_KEYWORDS = {**DEFAULT_KEYWORDS, "later": None}
_NAMED = re.compile(r"%\((\w+)\)s|(?<!%)\{(\w+)\}")
_TAG = re.compile(r"<[^>]*>")


def extracted() -> Catalog:
    """The words of the code and the templates."""
    found = Catalog(domain="portal")
    for name, _, message, comments, context in extract_from_dir(
        _PORTAL, _METHODS, _OPTIONS, _KEYWORDS
    ):
        found.add(
            message, None, [(f"api/portal/{name}", 0)], auto_comments=comments, context=context
        )
    for path in _BESIDE:
        for _, message, _, _ in extract_from_file("python", _PORTAL.parents[1] / path, _KEYWORDS):
            found.add(message, None, [(path, 0)])
    return found


def path_of(language: str) -> Path:
    """Where the catalogue of a language lies."""
    return FOLDER / language / "LC_MESSAGES" / "portal.po"


def catalogue(language: str) -> Catalog:
    """The catalogue of a language as it is; empty if there is none."""
    path = path_of(language)
    if not path.exists():
        return Catalog(locale=language, domain="portal")
    with path.open("rb") as file:
        return read_po(file, locale=language, domain="portal", abort_invalid=True)


def renewed(language: str) -> Catalog:
    """The catalogue with the words of the code and no other ones, and the translations it had."""
    before, words = catalogue(language), extracted()
    after = Catalog(locale=language, domain="portal", project="Precedent", fuzzy=False)
    for message in words:
        if message.id:
            known = before.get(message.id, message.context)
            text = None if known is None or known.fuzzy else known.string
            places = sorted(set(message.locations))
            after.add(message.id, text, places, context=message.context)
    return after


def missing(language: str) -> list[str]:
    """What is to be done in a catalogue, a sentence each."""
    words, known = extracted(), catalogue(language)
    told = []
    for message in words:
        if not message.id:
            continue
        found = known.get(message.id, message.context)
        if found is None:
            told.append(f"{_text(message)!r} is not in it; run `make catalogues`, and translate it")
        else:
            told += _faults(found, known.num_plurals)
    there = {(message.context, _text(message)) for message in words}
    told += [
        f"{_text(one)!r} is not said any more; run `make catalogues`"
        for one in [*known, *known.obsolete.values()]
        if one.id and (one.context, _text(one)) not in there
    ]
    return told


def _faults(found: Message, plurals: int) -> list[str]:
    ids = found.id if isinstance(found.id, tuple | list) else (found.id,)
    texts = found.string if isinstance(found.string, tuple | list) else (found.string,)
    name = _text(found)
    if found.fuzzy:
        return [f"{name!r} is marked fuzzy"]
    if not all(texts) or len(texts) != (plurals if len(ids) > 1 else 1):
        return [f"{name!r} is not translated"]
    told = []
    for text in texts:
        if _parts(text) not in [_parts(one) for one in ids]:
            told.append(f"{text!r} has other placeholders or tags than {name!r}")
        elif (
            text[:1].isspace() != ids[0][:1].isspace()
            or text[-1:].isspace() != ids[0][-1:].isspace()
        ):
            told.append(f"{text!r} begins or ends with another space than {name!r}")
        elif ids[0][-1:] in ".:?" and text[-1:] != ids[0][-1:]:
            told.append(f"{text!r} does not end as {name!r}")
    return told


def _parts(text: str) -> list[str]:
    """Placeholders and tags, in any order: what has to be in a translation as well."""
    named = [found[0] for found in _NAMED.finditer(text)]
    return sorted([*named, *_TAG.findall(text), *re.findall("%%", text)])


def _text(message: Message) -> str:
    return message.id if isinstance(message.id, str) else message.id[0]


def _written(language: str) -> None:
    path = path_of(language)
    catalog, text = renewed(language), io.BytesIO()
    write_po(text, catalog, width=100, omit_header=True, include_lineno=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = _HEADER.format(language=language, plurals=catalog.plural_forms)
    path.write_text(header + text.getvalue().decode(), "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Brings the catalogues up to date.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    left = 0
    for language in LANGUAGES:
        if language == SOURCE:
            continue
        if not check:
            _written(language)
        told = missing(language)
        left += len(told)
        print(f"{language}: {'complete' if not told else f'{len(told)} to do'}")
        for one in told:
            print(f"  {one}")
    return int(bool(left) and check)


if __name__ == "__main__":
    sys.exit(main())
