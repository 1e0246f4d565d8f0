"""The state of a training run: network, loss, optimiser and history, epoch by epoch."""

import json
import logging
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.codes import pack_signs
from engine.errors import TrainingDataError
from engine.files import writing_atomically
from engine.model.config import NetworkConfig
from engine.model.encoder import autocast, canvas_tensor
from engine.model.network import HashingNetwork, NetworkOutput
from engine.model.preprocess import Preprocess
from engine.training.augment import augment
from engine.training.config import TrainConfig
from engine.training.data import TrainingSet, batch_indices
from engine.training.losses import LossTerms
from engine.training.on_cpu import keep_freed_memory, pad_before_depthwise
from engine.training.pace import Pace
from engine.training.peers import PeerLoss
from engine.training.sampling import source_batches
from engine.training.sch import SchConfig, SchLoss
from engine.training.schedule import learning_rate
from engine.training.validation import validation_map

__all__ = ["STATE", "Learner"]

STATE = "state.pt"
"""The file from which a run goes on."""

_log = logging.getLogger(__name__)
_TOLD = 50
_NAMED = 4


class Learner:
    """A network that learns from ``data``, an epoch a call.

    Attributes:
        history: one entry for each epoch that was finished.
    """

    def __init__(
        self,
        data: TrainingSet,
        network_config: NetworkConfig,
        preprocess: Preprocess,
        config: TrainConfig,
        pretrained: str | None,
        device: str,
    ) -> None:
        torch.manual_seed(config.seed)
        self.data, self.config, self.device = data, config, device
        network = HashingNetwork(network_config, preprocess, pretrained).to(device)
        _tell_missing(network.tower.missing, pretrained)
        self.network: HashingNetwork = network.to(memory_format=torch.channels_last)
        if torch.device(device).type == "cpu":
            keep_freed_memory()
            pad_before_depthwise(self.network)
        self.loss = _loss(config, data, network_config.head.bits).to(device)
        if config.freeze_tower:
            self.network.tower.requires_grad_(requires_grad=False)
        self.averaged = (
            AveragedModel(
                self.network,
                multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay),  # type: ignore[no-untyped-call]
                use_buffers=True,
            )
            if config.ema_decay
            else None
        )
        tower = [p for p in self.network.tower.parameters() if p.requires_grad]
        in_tower = {id(parameter) for parameter in tower}
        others = [
            parameter
            for parameter in chain(self.network.parameters(), self.loss.parameters())
            if parameter.requires_grad and id(parameter) not in in_tower
        ]
        self.learnable = [*tower, *others]
        groups = [{"params": tower, "tower": True}, {"params": others, "tower": False}]
        self.optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
        )
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] | None = None
        self._pace = Pace()

    @property
    def finished(self) -> bool:
        done = len(self.history)
        patience = self.config.patience
        return done >= self.config.epochs or (
            patience > 0 and done > 0 and done - self.best_epoch() >= patience
        )

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.config.steps_per_epoch or len(self.data) // self._images_of_step

    @property
    def _images_of_step(self) -> int:
        """Without labels an image is in a batch twice."""
        size = self.config.batch_size
        return size if self.data.classes else size // 2

    def best_network(self) -> HashingNetwork:
        """The network to save: with the weights of the best validated epoch, else of the last."""
        network = self._measured()
        if self.best is not None and self.config.keep == "best":
            network.load_state_dict(self.best)
        return network

    def epoch(self, held_out: TrainingSet | None) -> dict[str, Any]:
        """Trains one epoch and adds its entry to the history."""
        started = time.monotonic()
        number = len(self.history)
        # Seeded by epoch, so that a resumed run draws the same numbers as an uninterrupted one.
        generator = torch.Generator().manual_seed(self.config.seed * 100_003 + number)
        self.network.train()
        if self.config.freeze_tower:
            self.network.tower.eval()
        sums: dict[str, float] = {}
        codes: list[Tensor] = []
        for step, batch in enumerate(self._views(generator)):
            output, terms = self._step(*batch, epoch=number + step / self.steps)
            labels = batch[2]
            for name, value in self._measures(output, terms, labels):
                sums[name] = sums.get(name, 0.0) + value.item()
            codes.append(output.h.detach().float().cpu())
            self._pace.count(len(labels))
            if step % _TOLD == 0:
                self._tell(number, step, terms)
        h = torch.cat(codes)
        entry = {
            "epoch": number + 1,
            **{name: round(total / (step + 1), 5) for name, total in sums.items()},
            "distinct_codes": len({code.tobytes() for code in pack_signs(h.numpy())}),
            "bit_balance": round((h >= 0).float().mean(dim=0).sub(0.5).abs().mean().item(), 4),
        }
        if held_out is not None:
            entry["validation_map"] = validation_map(
                self._measured(), held_out, self.device, self.config.precision
            )
        self.history.append(entry)
        if held_out is not None and self.best_epoch() == len(self.history):
            state = self._measured().state_dict()
            self.best = {name: value.clone() for name, value in state.items()}
        entry["seconds"] = round(time.monotonic() - started, 1)
        return entry

    def best_epoch(self) -> int:
        """The number of the best epoch, from 1; the first of equally good ones. Without
        validation the last."""
        if "validation_map" not in self.history[-1]:
            return len(self.history)
        best = max(self.history, key=lambda entry: float(entry["validation_map"]))
        number: int = best["epoch"]
        return number

    def save(self, out: Path, run: dict[str, Any]) -> None:
        """Writes all that the run needs to go on."""
        state = {name: module.state_dict() for name, module in self._modules().items()}
        state["run"] = json.dumps(run, sort_keys=True)
        state["history"] = json.dumps(self.history)
        state["best"] = self.best
        with writing_atomically(out / STATE) as stream:
            torch.save(state, stream)

    def resume(self, out: Path, run: dict[str, Any]) -> bool:
        """Loads the state in ``out``; False = there is none.

        Raises:
            TrainingDataError: it is of another run.
        """
        path = out / STATE
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["run"] != json.dumps(run, sort_keys=True):
            raise TrainingDataError(
                f"{path} belongs to a run with another configuration or other data; "
                "choose another folder, or delete that file to start over"
            )
        for name, module in self._modules().items():
            module.load_state_dict(state[name])
        self.history, self.best = json.loads(state["history"]), state["best"]
        _log.info("going on after epoch %d", len(self.history))
        return True

    def _tell(self, number: int, step: int, terms: LossTerms) -> None:
        left = (self.config.epochs - number) * self.steps - step - 1
        _log.info(
            "epoch %d, step %d of %d: loss %.4f, %s",
            number + 1,
            step,
            self.steps,
            terms.total.item(),
            self._pace.told(left * self.config.batch_size),
        )

    def _views(
        self, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """The batches of an epoch: original images, their augmented views, labels and scenes."""
        config, data = self.config, self.data
        for chosen in self._drawn(generator):
            images = canvas_tensor(data.canvases[chosen])
            labels = torch.from_numpy(data.labels[chosen])
            if data.classes:
                scenes = None if data.scenes is None else torch.from_numpy(data.scenes[chosen])
                yield images, augment(images, config.augment, generator), labels, scenes
            else:
                pair = [augment(images, config.augment, generator) for _ in range(2)]
                yield images.repeat(2, 1, 1, 1), torch.cat(pair), labels.repeat(2), None

    def _drawn(self, generator: torch.Generator) -> Iterator[Any]:
        """The indices of the images of each batch of an epoch."""
        config, data = self.config, self.data
        if config.by_source:
            yield from source_batches(
                data,
                config.batch_size,
                self.steps,
                generator,
                per_class=config.images_per_class,
                temper=config.temper,
            )
            return
        left = config.steps_per_epoch
        while True:
            for chosen in batch_indices(
                data, self._images_of_step, generator, config.images_per_class
            ):
                yield chosen
                left -= 1
                if left == 0:
                    return
            if left <= 0:
                return

    def _step(
        self, images: Tensor, views: Tensor, labels: Tensor, scenes: Tensor | None, *, epoch: float
    ) -> tuple[NetworkOutput, LossTerms]:
        config = self.config
        self._set_rates(epoch)
        views = views.to(self.device, memory_format=torch.channels_last)
        labels = labels.to(self.device)
        with autocast(self.device, config.precision):
            output: NetworkOutput = self.network(views)
        if isinstance(self.loss, SchLoss):
            seen = images.to(self.device) if self.loss.config.of_originals else views
            known = () if scenes is None else (scenes.to(self.device),)
            terms = self.loss(output.h, output.logits, seen, labels, *known)
        else:
            terms = self.loss(output.h, labels, epoch / config.epochs)
        if not torch.isfinite(terms.total):
            raise TrainingDataError(
                f"the loss is {terms.total.item()} in epoch {int(epoch) + 1}; "
                "lower the learning rate or use precision fp32"
            )
        self.optimiser.zero_grad(set_to_none=True)
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(self.learnable, config.clip_norm)
        self.optimiser.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        return output, terms

    def _set_rates(self, epoch: float) -> None:
        """The learning rates at a time, in epochs from the start; and whether the tower rests."""
        config, rate = self.config, learning_rate(epoch, self.config)
        since = epoch - config.tower_rest_epochs
        rising = min(1.0, since / config.warmup_epochs) if config.warmup_epochs else 1.0
        share = config.tower_rate * (rising if config.tower_rest_epochs else 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * max(share, 0.0) if group["tower"] else rate
        if config.tower_rest_epochs and not config.freeze_tower:
            # A tower that rests is not differentiated either, which takes half of the time.
            self.network.tower.requires_grad_(since >= 0)

    def _measures(
        self, output: NetworkOutput, terms: LossTerms, labels: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        yield "loss", terms.total
        yield from terms.parts.items()
        if output.logits is not None and isinstance(self.loss, SchLoss):
            yield "accuracy", (output.logits.argmax(dim=1).cpu() == labels).float().mean()

    def _measured(self) -> HashingNetwork:
        if self.averaged is None:
            return self.network
        return cast(HashingNetwork, self.averaged.module)

    def _modules(self) -> dict[str, Any]:
        modules = {"network": self.network, "loss": self.loss, "optimiser": self.optimiser}
        return modules if self.averaged is None else {**modules, "averaged": self.averaged}


def _tell_missing(missing: tuple[str, ...], pretrained: str | None) -> None:
    if missing:
        some = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
        _log.warning(
            "%r lacks %d tensors that the tower uses, which start at random: %s",
            pretrained,
            len(missing),
            some,
        )


def _loss(config: TrainConfig, data: TrainingSet, bits: int) -> nn.Module:
    if isinstance(config.loss, SchConfig):
        return SchLoss(config.loss, data.counts(), data.parents)
    if not data.classes:
        raise TrainingDataError(f"loss {config.loss.method!r} needs labels; use SCH, or label")
    return PeerLoss(config.loss, len(data.classes), bits, config.seed)
