"""Which texts are searched by."""

import unicodedata

from engine.errors import QueryError

__all__ = ["MOST_CHARACTERS", "checked_text"]

MOST_CHARACTERS = 2000
"""Longest text that is taken; a text tower reads a few hundred characters of it."""


def checked_text(text: str) -> str:
    """The text of a search without space around it.

    Raises:
        QueryError: it is empty, too long, or has control characters. The message does not repeat
            it: there may be a name in it.
    """
    text = text.strip()
    if not text:
        raise QueryError("the text is empty; say in words what the images show")
    if len(text) > MOST_CHARACTERS:
        raise QueryError(f"the text has {len(text):,} characters; give {MOST_CHARACTERS:,} at most")
    for one in text:
        # Cs: a lone surrogate, which is no Unicode.
        if unicodedata.category(one) in ("Cc", "Cs") and one not in "\t\n\r":
            raise QueryError(f"the text has the control character U+{ord(one):04X}; leave it out")
    return text
