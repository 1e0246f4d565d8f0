"""The pages as a site: built strictly, whole, and with nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    # The message is about a later version of MkDocs.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_there(site: Path) -> None:
    pages = [path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")]
    assert not [page for page in pages if not (site / page).is_file()]
    assert (site / "images" / "failures.png").is_file()


@pytest.mark.slow
def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe|source|video|audio)\b[^>]*?\bsrc=[\"']?([^\"'\s>]+)"
        r"|<link\b(?![^>]*\brel=[\"']?canonical)[^>]*?\bhref=[\"']?([^\"'\s>]+)"
    )
    found = {
        address
        for page in site.rglob("*.html")
        for pair in loads.findall(page.read_text())
        for address in pair
        if address
    }
    assert len(found) > 5
    assert not [one for one in found if urlsplit(one).netloc]
    in_styles = {
        address
        for style in site.rglob("*.css")
        for address in re.findall(r"(?:@import\s+|url\()[\"']?([^\"')]+)", style.read_text())
    }
    assert not [one for one in in_styles if urlsplit(one).netloc]


def test_pages_link_to_pages_alone() -> None:
    """What the site does not have, it cannot link to: the source and the README are named."""
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not urlsplit(target).scheme:
                assert (page.parent / target).resolve().is_relative_to(DOCS), f"{page}: {target}"
                assert (page.parent / target).exists(), f"{page}: {target}"
