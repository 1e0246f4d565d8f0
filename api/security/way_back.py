"""Where somebody who signs in wanted to go: a page of ours and nothing else."""

import re

__all__ = ["known_page"]

_PAGE = re.compile(
    r"(?:studies/[0-9.]{1,64}|images/[0-9a-fA-F-]{36}|compare|region|collection|jobs"
    r"|archive(?:/duplicates)?|model|keys|audit)?(?:\?[!-~]{1,1500})?",
    re.ASCII,
)


def known_page(written: str) -> str:
    """The address of a page with its query, relative to the search page; empty for the search page
    itself, and in place of anything that is no page of ours."""
    return written if _PAGE.fullmatch(written) else ""
