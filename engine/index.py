"""An index in a folder, filled with images that a program already has as arrays."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engine.errors import ImageRefused, QueryError, RefusalReason
from engine.model.colour import coloured_share
from engine.model.encoder import Encoder
from engine.model.manifest import SHIPPED
from engine.ood.calibration import OodGate
from engine.records import (
    Answer,
    EncodedImages,
    ImageRecord,
    OodVerdict,
    Point,
    content_point_id,
    dicom_point_id,
)
from engine.search.engine import SearchEngine
from engine.search.query import Query
from engine.settings import SearchSettings
from engine.store.base import Collection, Filter
from engine.store.edge import EdgeStore
from engine.tenants import DEFAULT_TENANT

__all__ = ["Index"]


class Index:
    """A model and an embedded index, in this process alone. Close it, or use it as a context
    manager.

    It takes pixels, and keeps of an image its vector, its code and the fields of a record. Files,
    thumbnails and a ledger of what was read are those of :class:`indexer.Archive`.

    Args:
        folder: of the index; made where there is none.
        model: folder of a checkpoint; None = the shipped model.
        device: "cpu", "cuda", …; "auto" = a GPU if there is one.
        settings: limits of a search, and what happens to foreign queries.

    Raises:
        ModelError: there is no model, it is damaged, or cannot run on the device.
        StoreLocked: another process has the index open.
        FingerprintMismatch: the index was made with another model.
        StoreError: the folder holds something else, or cannot be read or written.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        model: Path | str | None = None,
        device: str = "cpu",
        settings: SearchSettings | None = None,
    ) -> None:
        checkpoint = SHIPPED if model is None else Path(model)
        encoder = Encoder.load(checkpoint, device=device)
        manifest = encoder.manifest
        gate = OodGate.load(checkpoint, manifest.fingerprint, encoder.decoder_fingerprint)
        collection = Collection(
            manifest.fingerprint,
            manifest.dim,
            manifest.bits,
            encoder.precision,
            manifest.words_dim,
        )
        self._store = EdgeStore.create(Path(folder), collection)
        noted = self._store.collection.precision
        if noted is not None and noted != encoder.precision:
            encoder = encoder.with_precision(noted)
        self._encoder = encoder
        self._engine = SearchEngine(encoder, self._store, settings or SearchSettings(), gate)

    def __len__(self) -> int:
        """How many images there are."""
        return self._store.count(Filter())

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> EncodedImages:
        """The vectors and codes of N images, which are not added.

        Args:
            images: each uint8 (H, W) or (H, W, 3), as displayed (0 = black).

        Returns:
            z float32 (N, D), of unit length; codes uint8 (N, B/8), packed.

        Raises:
            ImageRefused: one has another shape or dtype, or no pixels.
        """
        return self._encoder.encode(self._canvases(images))

    def add(
        self,
        images: Sequence[NDArray[np.uint8]],
        records: Sequence[ImageRecord] | None = None,
    ) -> list[str]:
        """Adds N images; on return they are on disk, and found by searches.

        Args:
            images: each uint8 (H, W) or (H, W, 3), as displayed (0 = black).
            records: what is kept of each, and can be filtered by; None = nothing.

        Returns:
            The id of each, in order: of its SOP Instance UID and frame where the record has one,
            else of its pixels. Another image with an id replaces the one there was.

        Raises:
            ImageRefused: one has another shape or dtype, or no pixels; none is added.
            QueryError: there are more or fewer records than images, or a record is another
                tenant's.
            StoreError: they cannot be written.
        """
        kept = [ImageRecord()] * len(images) if records is None else list(records)
        if len(kept) != len(images):
            raise QueryError(
                f"{len(images)} images have {len(kept)} records; give one for each, or none"
            )
        for record in kept:
            if record.tenant != DEFAULT_TENANT:
                raise QueryError(
                    f"a record is of tenant {record.tenant!r}; an index of its own has none: leave "
                    "the field out, or use indexer.Archive"
                )
        encoded = self._encoder.encode(self._canvases(images), words=True)
        words = [None] * len(encoded) if encoded.words is None else list(encoded.words)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        points = [
            Point(_id(image, record), record, code, z, indexed_at=at, words=said)
            for image, record, code, z, said in zip(
                images, kept, encoded.codes, encoded.z, words, strict=True
            )
        ]
        self._store.upsert(points)
        self._store.flush()
        return [point.id for point in points]

    def search(self, image: NDArray[np.uint8], query: Query | None = None) -> Answer:
        """The images most like this one, with the verdict on it.

        Args:
            image: uint8 (H, W) or (H, W, 3), as displayed (0 = black).
            query: how many, with which filters; None = ten of all.

        Raises:
            ImageRefused: the image has another shape or dtype, or no pixels.
        """
        canvases = self._canvases([image])
        (answer,) = self._engine.search(
            canvases, query or Query(), colour=[coloured_share(np.asarray(image))]
        )
        return answer

    def search_like(self, image_id: str, query: Query | None = None) -> Answer:
        """The images most like an indexed one, without it.

        Raises:
            ImageNotFound: no image has this id.
        """
        return self._engine.search_like(image_id, query or Query())

    def verdict(self, image: NDArray[np.uint8]) -> OodVerdict | None:
        """Whether the hits of an image can be trusted: its ``verdict`` is "known", "unfamiliar"
        (of a source that the model does not know) or "foreign"; None = the model has no
        calibration.

        Args:
            image: uint8 (H, W) or (H, W, 3), as displayed (0 = black).

        Raises:
            ImageRefused: the image has another shape or dtype, or no pixels.
        """
        canvases = self._canvases([image])
        return self._engine.verdict(
            self._engine.observed(canvases, [coloured_share(np.asarray(image))])
        )

    def optimise(self) -> None:
        """Arranges the index for fast searches; worth it after many thousand images were added."""
        self._store.optimise()

    def close(self) -> None:
        """Closes the index, so that another process may open it."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _canvases(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        preprocess = self._encoder.manifest.preprocess
        return [preprocess.canvas(_checked(image)) for image in images]


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
    if dtype != np.uint8 or not is_image or 0 in shape:
        raise ImageRefused(
            RefusalReason.UNSUPPORTED_PIXELS,
            f"an array of {dtype}, shape {shape}; give uint8 (H, W) or (H, W, 3), as displayed",
        )
    return np.ascontiguousarray(image)


def _id(image: NDArray[np.uint8], record: ImageRecord) -> str:
    if record.sop is not None:
        return dicom_point_id(record.sop, record.frame)
    digest = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
    return content_point_id(digest.hexdigest())
