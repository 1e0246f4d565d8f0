"""``precedent evaluate``: measures how well a model finds images of the query's class."""

import io
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from api.cli.options import check_writable
from engine.errors import ImageRefused, QueryError
from engine.settings import load_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from api.cli.image_sets import ImageSet
    from engine.evaluation.quality import QualityReport
    from engine.evaluation.report import ExampleRow
    from indexer.archive import Archive
    from indexer.pipeline.file_reader import FileReader

__all__ = ["evaluate"]

_EXAMPLES, _EXAMPLE_HITS = 12, 8


def evaluate(
    queries: Annotated[Path, typer.Option(help="Folder with a subfolder per class.")],
    database: Annotated[
        Path | None, typer.Option(help="The same; left out, the index is the database.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Index, when no folder is named. [PRECEDENT_DATA_DIR]"),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Folder of a checkpoint. [PRECEDENT_MODEL]")
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Hits that count.")] = 100,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a report with pictures; needs matplotlib.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random ties, shuffles and intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Measure how well the images of one folder find their class in another, or in the index.

    For each query, images of its own patient or study do not count.
    """
    from api.cli.image_sets import images_of_files
    from api.cli.quality_tables import show
    from engine.evaluation.quality import evaluate as measured
    from engine.evaluation.report import require_matplotlib, write_report
    from engine.ood.calibration import OodGate
    from engine.training.data import from_folder
    from indexer.archive import Archive
    from indexer.datadir.models import model_directory
    from indexer.encoders import load_encoder
    from indexer.pipeline.file_reader import FileReader

    if k < 1:
        raise QueryError(f"k is {k}; ask for at least one")
    if database is not None and data_dir is not None:
        raise QueryError(
            f"--database {database} and --data-dir {data_dir} both name a database; give one"
        )
    # Checked first, because the rest takes minutes.
    if out is not None:
        check_writable(out, "--out")
        require_matplotlib()
    asked = from_folder(queries)
    held = [] if database is None else from_folder(database)
    settings = load_settings(data_dir=data_dir, model=model)
    directory = model_directory(settings)
    with ExitStack() as opened:
        archive = opened.enter_context(Archive(settings)) if database is None else None
        encoder = archive.encoder if archive else load_encoder(directory, settings)
        fingerprint = encoder.manifest.fingerprint
        gate = OodGate.load(directory, fingerprint, encoder.decoder_fingerprint)
        reader = opened.enter_context(
            FileReader(
                settings,
                encoder.manifest.preprocess,
                # Without an index any key will do: pseudonyms are only compared, never stored.
                archive.data_dir.pseudonym_key(settings) if archive else bytes(32),
                frames=1,
                processes=settings.indexing.readers,
            )
        )
        known = (
            _from_index(archive)
            if archive
            else images_of_files(str(database), held, reader, encoder, gate=None)
        )
        asking = images_of_files(str(queries), asked, reader, encoder, gate)
        report = measured(known.images, asking.images, k=k, seed=seed, foreign=asking.foreign)
        if out is not None:
            about = {
                "model": fingerprint,
                "database": str(database or settings.data_dir),
                "queries": str(queries),
            }
            examples = _examples(report, asking, known, reader, archive, seed)
            write_report(report, out, about=about, examples=examples)
    document = {
        "model": fingerprint,
        **report.to_dict(),
        "refused": {"queries": asking.refused, "database": known.refused},
        "unlabelled": known.unlabelled,
        "report": None if out is None else str(out),
    }
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    show(Console(), report, document)


def _from_index(archive: "Archive") -> "ImageSet":
    """The labelled images of the index.

    Raises:
        QueryError: no image has a label.
    """
    import numpy as np

    from api.cli.image_sets import ImageSet
    from engine.evaluation.quality import EvaluationSet
    from engine.store.base import Filter

    points, unlabelled = [], 0
    for point in archive.store.scroll(Filter(), with_z=True):
        if point.record.labels and point.z is not None:
            points.append(point)
        else:
            unlabelled += 1
    if not points:
        raise QueryError(
            f"none of the {unlabelled:,} images in the index in {archive.data_dir.root} has a "
            "label; index folders named for classes with --labels folder"
        )
    z = np.stack([point.z for point in points if point.z is not None])
    # A server stores them as float16, so their lengths are only close to 1.
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    records = [point.record for point in points]
    images = EvaluationSet(
        z,
        np.stack([point.code for point in points]),
        [record.labels for record in records],
        [point.id for point in points],
        [record.patient or record.study or record.sop for record in records],
    )
    return ImageSet(images, {}, {}, unlabelled, None)


def _examples(
    report: "QualityReport",
    asking: "ImageSet",
    known: "ImageSet",
    reader: "FileReader",
    archive: "Archive | None",
    seed: int,
) -> "list[ExampleRow]":
    """A random query of each class (at most 12 classes) with its first hits, for the report."""
    import numpy as np

    from engine.evaluation.report import ExampleHit, ExampleRow

    generator = np.random.default_rng(seed)
    asked, held = asking.images.classes_of, known.images.classes_of
    drawn = [
        int(generator.choice([row for row, names in enumerate(asked) if name in names]))
        for name in list(report.classes)[:_EXAMPLES]
    ]
    hits = [[int(i) for i in report.first_hits[row, :_EXAMPLE_HITS] if i >= 0] for row in drawn]
    query_ids = [asking.images.ids[row] for row in drawn]
    hit_ids = sorted({known.images.ids[i] for found in hits for i in found})
    shown = _canvases(reader, {i: asking.paths[i] for i in query_ids})
    found_shown = (
        _canvases(reader, {i: known.paths[i] for i in hit_ids})
        if archive is None
        else _thumbnails(archive, hit_ids)
    )
    return [
        ExampleRow(
            shown.get(query),
            ", ".join(asked[row]),
            tuple(
                ExampleHit(
                    found_shown.get(known.images.ids[i]),
                    ", ".join(held[i]),
                    right=not set(asked[row]).isdisjoint(held[i]),
                )
                for i in found
            ),
        )
        for row, query, found in zip(drawn, query_ids, hits, strict=True)
    ]


def _canvases(reader: "FileReader", paths: dict[str, Path]) -> "dict[str, NDArray[np.uint8]]":
    results = zip(paths, reader.read(paths.values()), strict=True)
    return {
        name: result.pictures[0].canvas
        for name, result in results
        if not isinstance(result, ImageRefused)
    }


def _thumbnails(archive: "Archive", ids: Sequence[str]) -> "dict[str, NDArray[np.uint8]]":
    """The thumbnails of these images, uint8, by id; missing ones are left out.

    They are used instead of the files because they show the frame that was indexed, and files may
    have been moved.
    """
    import numpy as np
    from PIL import Image

    found = {}
    for name in ids:
        jpeg = archive.thumbnails.read(name)
        if jpeg is not None:
            found[name] = np.asarray(Image.open(io.BytesIO(jpeg)))
    return found
