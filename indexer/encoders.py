"""The encoder that an archive's settings ask for, in the precision of its index."""

import logging
from pathlib import Path

from engine.model.encoder import Encoder
from engine.settings import Settings
from engine.store.base import Collection

__all__ = ["following", "load_encoder"]

_log = logging.getLogger(__name__)


def load_encoder(directory: Path, settings: Settings) -> Encoder:
    """The encoder of a checkpoint folder, on the device and in the precision of the settings.

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
    """The encoder switched to the precision of an index, if the setting ``precision`` is "auto".

    If the setting names another precision than the index has, the encoder is returned unchanged
    and a warning is logged. It is also returned unchanged if the index records no precision.
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
