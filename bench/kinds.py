"""What a reader sees for each kind of image: a query, its first hits, their likeness, the verdict.

    python -m bench.kinds DATA [--model DIR] [--each 2] [--page docs/kinds.md] [--out FILE]

DATA as in ``bench.manifests``. The queries are of patients that the model has not learned from,
drawn by the digest of their file's name, so that nobody chose them; the index holds all others.
``--page`` gets the answers in words, ``--out`` (build/kinds.html) with the pictures, which are not
in this repository.
"""

import argparse
import base64
import hashlib
import html
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.manifests import Picture, read_pictures
from engine.model.manifest import SHIPPED
from engine.records import Answer
from engine.search.query import Query
from engine.settings import load_settings
from indexer.archive import Archive, QueryImage
from indexer.sources.folder import FolderSource

HITS = 5
HELD_OUT = ("query", "validation")
BEGIN, END = "<!-- answers -->", "<!-- /answers -->"


def of_kind(kind: str, view: str = "") -> Callable[[Picture], bool]:
    return lambda picture: picture.kind == kind and picture.view.endswith(view)


KINDS: dict[str, Callable[[Picture], bool]] = {
    "head CT": of_kind("HeadCT"),
    "chest CT, lung window": of_kind("ChestCT", "axial-lung"),
    "chest CT, soft tissue": of_kind("ChestCT", "axial-soft"),
    "abdomen CT": of_kind("AbdomenCT"),
    "chest film": of_kind("CXR"),
    "hand": of_kind("Hand"),
    "knee": of_kind("KneeXR"),
    "cardiac MR": of_kind("CardiacMR"),
    "breast MR": of_kind("BreastMRI"),
    "brain MR": of_kind("BrainMR"),
    "fetal ultrasound": of_kind("FetalUS"),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A query, what it was answered, and which picture each hit is, in order."""

    kind: str
    picture: Picture
    answer: Answer
    hits: list[Picture]

    @property
    def right(self) -> list[bool]:
        """Of each hit whether it is of the query's class."""
        return [hit.kind == self.picture.kind for hit in self.hits]


def drawn(pictures: Sequence[Picture], each: int) -> list[tuple[str, Picture]]:
    """So many queries of each kind, of different patients as far as there are any."""
    found = []
    for name, fits in KINDS.items():
        some = [one for one in pictures if one.part in HELD_OUT and fits(one)]
        some.sort(key=lambda one: hashlib.sha256(one.path.name.encode()).digest())
        first: dict[str, Picture] = {}
        for one in some:
            first.setdefault(one.patient, one)
        again = [one for one in some if first[one.patient] is not one]
        if len(some) < each:
            raise SystemExit(f"{len(some)} pictures of {name} were kept back, not {each}")
        found += [(name, one) for one in [*first.values(), *again][:each]]
    return found


def asked(
    pictures: Sequence[Picture], each: int, model: Path, scratch: Path
) -> tuple[str, list[Asked]]:
    """The model's fingerprint, and the answers of an archive of all patients not kept back."""
    searched = {f"{at}{one.path.suffix}": one for at, one in enumerate(pictures)}
    for name, one in searched.items():
        if one.part not in HELD_OUT:
            (scratch / "images" / one.kind).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one.path, scratch / "images" / one.kind / name)
    queries = drawn(pictures, each)
    settings = load_settings(data_dir=scratch / "archive", model=model)
    with Archive(settings, create=True) as archive:
        archive.index(FolderSource([scratch / "images"], label_from_folder=True))
        with archive.query_reader() as reader:
            read = list(reader.read([one.path for _, one in queries]))
        images = [one for one in read if isinstance(one, QueryImage)]
        if len(images) < len(queries):
            raise SystemExit("a query could not be read; DATA is not what its manifest says")
        answers = archive.engine.search(
            [one.canvas for one in images], Query(k=HITS), colour=[one.colour for one in images]
        )
        paths = archive.paths([hit.id for answer in answers for hit in answer.hits])
        fingerprint = archive.manifest.fingerprint
    return fingerprint, [
        Asked(kind, picture, answer, [searched[paths[hit.id].name] for hit in answer.hits])
        for (kind, picture), answer in zip(queries, answers, strict=True)
    ]


def in_words(fingerprint: str, found: Sequence[Asked]) -> str:
    """A table of Markdown with a row for each query; hits of another class are in bold type."""
    first = [one.right[0] for one in found]
    lines = [
        f"Model `{fingerprint}`; {sum(first)} of {len(first)} first hits are of the query's class.",
        "",
        "| query | its source | verdict | first hits, their sources, and their likeness |",
        "|---|---|---|---|",
    ]
    for one in found:
        hits = "; ".join(
            f"{name if right else f'**{name}**'} {likeness}"
            for name, likeness, right in zip(names(one), likenesses(one), one.right, strict=True)
        )
        lines.append(f"| {one.kind} | {one.picture.source} | {verdict(one)} | {hits} |")
    return "\n".join(lines)


def with_pictures(fingerprint: str, found: Sequence[Asked]) -> str:
    """A page of HTML that needs no other file, with a row for each query."""
    rows = []
    for one in found:
        cells = [_figure(one.picture, f"{one.kind}, {one.picture.source}: {verdict(one)}", True)]
        for hit, name, likeness, right in zip(
            one.hits, names(one), likenesses(one), one.right, strict=True
        ):
            cells.append(_figure(hit, f"{name} {likeness}", right))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    style = "td{vertical-align:top;padding:4px;max-width:180px}img{width:170px}.wrong{color:#b00}"
    return (
        f"<!doctype html><meta charset=utf-8><title>{fingerprint}</title><style>{style}</style>"
        f"<table>{''.join(rows)}</table>"
    )


def names(one: Asked) -> list[str]:
    """Class and source of each hit: "ChestCT of tcia-lidc-idri", "mednist-ChestCT"."""
    return [
        hit.source if hit.kind in hit.source else f"{hit.kind} of {hit.source}" for hit in one.hits
    ]


def likenesses(one: Asked) -> list[str]:
    return ["–" if hit.likeness is None else f"{hit.likeness:.2f}" for hit in one.answer.hits]


def verdict(one: Asked) -> str:
    return "none" if one.answer.ood is None else one.answer.ood.verdict


def _figure(picture: Picture, caption: str, right: bool) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    text = html.escape(caption)
    kind = "" if right else " class=wrong"
    return f'<td{kind}><img alt="{text}" src="data:image/jpeg;base64,{data}"><br>{text}</td>'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--each", type=int, default=2, help="queries of each kind")
    parser.add_argument("--page", type=Path, default=Path("docs/kinds.md"))
    parser.add_argument("--out", type=Path, default=Path("build/kinds.html"))
    arguments = parser.parse_args()
    before, begin, rest = arguments.page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{arguments.page} has no lines {BEGIN} and {END} to write between")
    with tempfile.TemporaryDirectory() as scratch:
        fingerprint, found = asked(
            read_pictures(arguments.folder), arguments.each, arguments.model, Path(scratch)
        )
    words = in_words(fingerprint, found)
    print(words)
    arguments.page.write_text(f"{before}{BEGIN}\n\n{words}\n\n{END}{after}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(with_pictures(fingerprint, found))
    print(arguments.out)


if __name__ == "__main__":
    main()
