"""The configuration of a training run."""

from dataclasses import dataclass, field
from typing import Literal

from engine.errors import TrainingDataError
from engine.model.encoder import Precision
from engine.training.augment import AugmentConfig
from engine.training.peers import PeerConfig
from engine.training.sch import SchConfig

__all__ = ["TrainConfig"]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Schedule and options. The defaults suit a small model on a CPU.

    learning_rate falls along a cosine to final_learning_rate after warmup_epochs.
    half_weights: store the weights as float16.
    images_per_class: see :func:`engine.training.data.batches`; 0 = plain random order.
    freeze_tower: keep the weights of the tower; train only the layers on top of it.
    ema_decay: decay of an exponential moving average of the weights, which is validated and saved
        in place of the weights; 0 = none.
    validation: share of the images that is held out, whole groups together, to validate each
        epoch; 0 = none.
    keep: the weights of which epoch are saved, where epochs are validated: the best, or the last,
        for where few images judge and the schedule ends in small steps anyway.
    patience: stop after this many epochs without a better one; 0 = never. Needs validation.
    tower_rate: the tower's learning rate as a share of the others'. A tower that has learned
        before needs less than layers that start at random.
    tower_rest_epochs: so long at the start the tower keeps its weights, until the layers on top
        of it know what to ask for; then its rate rises within warmup_epochs.
    by_source: draw batches as :func:`engine.training.sampling.source_batches` does, with
        images_per_class images of a class. Needs ``sources`` in the data.
    temper: how much more often large classes and sources are drawn then, 0 = all as often, 1 = in
        proportion to their images.
    steps_per_epoch: batches of an epoch; 0 = as many as the images fill.
    code_epochs: after that the hash head alone is fitted to the z that have come out, see
        :mod:`engine.training.codes`, for so many epochs; 0 = it stays as it is.
    code_bits: length of the code after that; 0 = as before.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_epochs: float = 0.5
    weight_decay: float = 0.05
    clip_norm: float = 5.0
    seed: int = 0
    precision: Precision = "auto"
    half_weights: bool = True
    images_per_class: int = 0
    freeze_tower: bool = False
    ema_decay: float = 0.0
    validation: float = 0.0
    keep: Literal["best", "last"] = "best"
    patience: int = 0
    tower_rate: float = 1.0
    tower_rest_epochs: float = 0.0
    by_source: bool = False
    temper: float = 0.4
    steps_per_epoch: int = 0
    code_epochs: int = 0
    code_bits: int = 0
    loss: SchConfig | PeerConfig = field(default_factory=SchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("ema_decay", "validation"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise TrainingDataError(f"{name} is {value}; use a share from 0 up to 1")
        if self.patience and not self.validation:
            raise TrainingDataError(
                f"patience is {self.patience}, but nothing is held out to judge an epoch by; "
                "give validation a share, or patience 0"
            )
        for name in ("temper", "tower_rate"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise TrainingDataError(f"{name} is {value}; use a share from 0 to 1")
        if not 0 <= self.tower_rest_epochs < self.epochs:
            raise TrainingDataError(
                f"the tower rests for {self.tower_rest_epochs} of {self.epochs} epochs; let it "
                "learn for some, or freeze it"
            )
        if self.code_epochs < 0 or self.code_bits < 0 or self.code_bits % 8:
            raise TrainingDataError(
                f"code_epochs is {self.code_epochs}, code_bits {self.code_bits}; use 0 or more "
                "epochs, and 0 or a multiple of 8 bits"
            )
        if self.code_bits and not self.code_epochs:
            raise TrainingDataError(
                f"code_bits is {self.code_bits}, but the codes are not fitted; give code_epochs"
            )
        if self.by_source and self.images_per_class < 2:
            raise TrainingDataError(
                f"batches by source have {self.images_per_class} images of a class; use 2 or more, "
                "so that they hold pairs of several sources"
            )
