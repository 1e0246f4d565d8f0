"""The encoder that an archive's settings ask for, in the precision of its index."""

import logging
from pathlib import Path

from engine.model.encoder import Encoder
from engine.settings import Settings
from engine.store.base import Collection

__all__ = ["following", "load_encoder"]

_log = logging.getLogger(__name__)


def load_encoder(directory: Path, settings: Settings) -> Encoder:
    """The encoder of a checkpoint folder, as the settings ask for it.

    Raises:
        ModelError: as ``Encoder.load``.
    """
    return Encoder.load(
        directory,
        device=settings.device,
        precision=settings.precision,
        batch_size=settings.indexing.batch_size,
    )


def following(encoder: Encoder, collection: Collection, settings: Settings) -> Encoder:
    """The encoder in the precision of an index, where the settings leave that open.

    Where they ask for another precision than that of the index, the encoder is returned as it
    is, and a warning is logged. An index that notes no precision leaves it to the encoder.
    """
    noted = collection.precision
    if noted is None or noted == encoder.precision:
        return encoder
    if settings.precision == "auto":
        return encoder.with_precision(noted)
    _log.warning(
        "the index was made in %s and the setting precision is %s: similarities between the two "
        "may be off by 0.01; set precision to auto, and it follows the index",
        noted,
        encoder.precision,
    )
    return encoder
