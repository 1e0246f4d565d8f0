"""A model made of an archive, step by step, in a folder that knows which steps are done."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from api.cli.gate_fitting import DEFAULT, check_enough, fitted_gate
from api.cli.image_sets import ImageSet, images_of_files
from api.cli.known_images import drawn, observe
from api.cli.training_choices import network_named, preprocess_for, side_of, start_of
from api.cli.training_data import read_training_set
from engine import __version__
from engine.errors import QueryError, TrainingDataError
from engine.evaluation.comparison import compare
from engine.evaluation.quality import evaluate
from engine.files import write_atomically
from engine.model.manifest import MANIFEST, read_manifest
from engine.ood.calibration import OodGate, fewest_calibration_images
from engine.ood.detectors import detector_kind
from engine.settings import Settings
from engine.training.data import Example, TrainingSet
from engine.training.parts import Parts, divided, read_parts, write_parts
from engine.training.trainer import TrainConfig, train
from indexer.encoders import load_encoder
from indexer.pipeline.file_reader import FileReader
from indexer.training_examples import grouped_by_content

__all__ = ["Adaptation", "AdaptationOptions"]

_REFERENCES = 4096
_BITS = 64
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class AdaptationOptions:
    """What makes an adaptation this one; with others it is another, in another folder.

    data: the folder or table, absolute. source: where labels and patients are from, by option.
    calibration, evaluation: shares of the images. leave_out: do without classes that cannot be in
        every part. config: of the training.
    """

    data: Path
    source: Mapping[str, str | int | None]
    calibration: float
    evaluation: float
    leave_out: bool
    config: TrainConfig

    def by_option(self) -> dict[str, Any]:
        """The values by the names of the options."""
        config = self.config
        return {
            "DATA": str(self.data),
            **{f"--{name.replace('_', '-')}": value for name, value in self.source.items()},
            "--calibration": self.calibration,
            "--evaluation": self.evaluation,
            "--leave-out-rare": self.leave_out,
            "--epochs": config.epochs,
            "--batch-size": config.batch_size,
            "--learning-rate": config.learning_rate,
            "--validation": config.validation,
            "--patience": config.patience,
            "--precision": config.precision,
            "--seed": config.seed,
        }


class Adaptation:
    """The folder of an adaptation. Each step is done once; a step that was cut short goes on.

    Args:
        out: the folder; made when something is first written to it.
        options: what the adaptation is to be.
        settings: limits of images, reading processes and the device.

    Raises:
        QueryError: the folder has another adaptation.
        TrainingDataError: its plan cannot be read.
    """

    def __init__(self, out: Path, options: AdaptationOptions, settings: Settings) -> None:
        self.model = out / "model"
        self.table = out / "split.csv"
        self._out = out
        self._options = options
        self._settings = settings
        data = options.data
        self._root = data if data.is_dir() else data.parent
        plan = self._noted("plan")
        if plan is not None:
            self._check_same(plan)

    def divide(self, list_examples: Callable[[], list[Example]], alpha: float) -> Parts:
        """The parts of the archive: as the table has them, else divided now, and written there.

        Args:
            list_examples: lists the archive.
            alpha: of the gate; says how many images its calibration takes.

        Raises:
            TrainingDataError: there are too few images, patients or classes for three parts.
        """
        if self._noted("plan") is not None:
            return read_parts(self.table, self._root)
        listed = [
            replace(one, path=Path(os.path.abspath(one.path)))  # noqa: PTH100 - keeps links
            for one in list_examples()
        ]
        options = self._options
        parts = divided(
            grouped_by_content(listed),
            calibration=options.calibration,
            evaluation=options.evaluation,
            seed=options.config.seed,
            leave_out=options.leave_out,
        )
        self._check_sizes(parts, alpha)
        groups = {one.group or "" for examples in parts.named().values() for one in examples}
        kinds = Counter(group.partition(" ")[0] for group in groups)
        self._out.mkdir(parents=True, exist_ok=True)
        write_parts(parts, self.table, self._root)
        self._note(
            "plan",
            {
                "format": _FORMAT,
                "precedent": __version__,
                "options": options.by_option(),
                "grouped_by": dict(sorted(kinds.items())),
                "left_out": dict(parts.left_out),
            },
        )
        return parts

    @property
    def plan(self) -> dict[str, Any]:
        """What was noted when the archive was divided: grouped_by, the number of groups by what
        tells them apart, and left_out, images by class."""
        return self._noted("plan") or {}

    @property
    def is_trained(self) -> bool:
        """Whether the model is there, rather than parts of a training."""
        return (self.model / MANIFEST).is_file()

    def train(self, parts: Parts, device: str) -> None:
        """Trains on the training part, from the shipped weights; a training that was stopped goes
        on.

        Raises:
            TrainingDataError: the images that judge the epochs cannot, or as ``train``.
        """
        if self.is_trained:
            return
        network = network_named("small", None, None, "darf", "kan", _BITS)
        pretrained = start_of(None, network.tower, "standardise")
        side = side_of("small", None)
        preprocess = preprocess_for(side, False, "standardise", network.tower, pretrained)
        data = read_training_set(parts.training, preprocess, self._settings)
        config = self._options.config
        _check_judged(data, config)
        train(
            data,
            replace(network, classes=len(data.classes)),
            preprocess,
            config,
            self.model,
            pretrained=pretrained,
            device=device,
        )

    def calibrate(
        self, parts: Parts, *, alpha: float, catch: float, force: bool, in_force: bool
    ) -> tuple[dict[str, Any], list[str]]:
        """Calibrates the model's gate, with training images as reference; what is known of it as
        JSON values, and in words. With another alpha than before it is calibrated anew.

        Args:
            alpha, catch, force: as :func:`fitted_gate` takes them.
            in_force: the archive has the model with its gate, which then stays as it is.

        Raises:
            TrainingDataError: there are too few images, or the gate catches too little.
            QueryError: another alpha is asked for, and the model is in force.
        """
        done = self._noted("calibration")
        if done is not None and done["alpha"] == alpha:
            return done, done["said"]
        if in_force:
            raise QueryError(
                f"the model in {self.model} is in force, and its gate was not calibrated with "
                f"--alpha {alpha:g}; `precedent calibrate` and then `precedent reencode` give it "
                "another gate"
            )
        encoder = load_encoder(self.model, self._settings)
        refused: Counter[str] = Counter()
        seed = self._options.config.seed
        chosen = drawn([one.path for one in parts.training], _REFERENCES, seed)
        reference = observe(encoder, self._settings, chosen, refused)
        given = observe(encoder, self._settings, [one.path for one in parts.calibration], refused)
        known = given.without_owners_of(reference)
        check_enough("the calibration part", len(known), alpha, len(given) - len(known))
        fitted = fitted_gate(
            encoder,
            [detector_kind(name) for name in DEFAULT.split(",")],
            None,
            reference,
            known,
            named=str(self._options.data),
            alpha=alpha,
            catch=catch,
            force=force,
            seed=seed,
        )
        fitted.gate.save(self.model, encoder.manifest.fingerprint)
        document = {
            **fitted.to_dict(),
            "refused": dict(sorted(refused.items())),
            "said": list(fitted.lines()),
        }
        # The shares of images called foreign are of the gate before.
        (self._out / "evaluation.json").unlink(missing_ok=True)
        self._note("calibration", document)
        return document, document["said"]

    def evaluated(self, before: str | None) -> dict[str, Any] | None:
        """What :meth:`evaluate` found; None = nothing yet.

        before: fingerprint of the model beside which that was; None = of any.
        """
        found = self._noted("evaluation")
        return found if found is None or before in (None, found["model_before"]) else None

    def evaluate(self, parts: Parts, before: Path, *, k: int) -> dict[str, Any]:
        """The model beside the one in the folder ``before``, on the evaluation part: a
        :class:`ModelComparison` as JSON values, with the two models and what was refused.

        The queries are the images of the evaluation part, the database is they and those of the
        calibration part: the new model has learned from none of them. Images of the query's own
        patient do not count.

        Raises:
            QueryError, ModelError: as ``evaluate`` and ``Encoder.load``.
        """
        asked = {one.path for one in parts.evaluation}
        files = [*parts.calibration, *parts.evaluation]
        (theirs, _), (ours, refused) = (self._encoded(one, files) for one in (before, self.model))
        both = [name for name in ours.images.ids if name in theirs.paths]
        queries = [name for name in both if ours.paths[name] in asked]
        seed = self._options.config.seed
        held = {"before": theirs.of(both), "after": ours.of(both)}
        asking = {"before": theirs.of(queries), "after": ours.of(queries)}
        reports = {
            name: evaluate(
                held[name].images,
                asking[name].images,
                k=k,
                seed=seed,
                shuffles=0,
                foreign=asking[name].foreign,
            )
            for name in held
        }
        found = compare(
            reports["before"], reports["after"], held["after"].images, asking["after"].images
        )
        document = {
            "model": read_manifest(self.model).fingerprint,
            "model_before": read_manifest(before).fingerprint,
            **found.to_dict(),
            "refused": refused,
        }
        self._note("evaluation", document)
        return document

    def _encoded(self, directory: Path, files: list[Example]) -> tuple[ImageSet, dict[str, int]]:
        encoder = load_encoder(directory, self._settings)
        fingerprint = encoder.manifest.fingerprint
        gate = OodGate.load(directory, fingerprint, encoder.decoder_fingerprint)
        with FileReader(
            self._settings,
            encoder.manifest.preprocess,
            bytes(32),  # any key will do: pseudonyms are only compared, never stored
            frames=1,
            processes=self._settings.indexing.readers,
        ) as reader:
            found = images_of_files(
                f"images to compare by, model {fingerprint}", files, reader, encoder, gate
            )
        return found, found.refused

    def _check_sizes(self, parts: Parts, alpha: float) -> None:
        sizes = {name: len(examples) for name, examples in parts.named().items()}
        images = sum(sizes.values())
        patients = len({one.group for some in parts.named().values() for one in some})
        least = fewest_calibration_images(alpha)
        of = f"{images:,} images of {patients:,} patients"
        if len(parts.calibration) < least:
            raise TrainingDataError(
                f"{of} leave {len(parts.calibration)} for calibration, and alpha {alpha:g} takes "
                f"{least}; give more images, a larger share by --calibration, or a larger --alpha"
            )
        config = self._options.config
        learned = round(len(parts.training) * (1 - config.validation))
        if learned < config.batch_size:
            raise TrainingDataError(
                f"{of} leave about {learned} to learn from, which do not fill one batch of "
                f"{config.batch_size}; give more images, or a smaller --batch-size"
            )

    def _check_same(self, plan: Mapping[str, Any]) -> None:
        if plan.get("format") != _FORMAT:
            raise TrainingDataError(
                f"{self._out / 'plan.json'} has format {plan.get('format')}, and this version "
                f"knows {_FORMAT}; name another folder with --out"
            )
        noted = plan["options"]
        for name, given in self._options.by_option().items():
            if noted.get(name) != given:
                raise QueryError(
                    f"{self._out} has an adaptation with {name} {noted.get(name)}, not {given}; "
                    "give the same to go on with it, or name another folder with --out"
                )

    def _noted(self, name: str) -> dict[str, Any] | None:
        path = self._out / f"{name}.json"
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise TrainingDataError(
                f"{path} cannot be read ({type(error).__name__}); restore it, or name another "
                "folder with --out"
            ) from None
        if not isinstance(found, dict):
            raise TrainingDataError(f"{path} is no object; name another folder with --out")
        return found

    def _note(self, name: str, document: Mapping[str, Any]) -> None:
        path = self._out / f"{name}.json"
        write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())


def _check_judged(data: TrainingSet, config: TrainConfig) -> None:
    """Checks, before the first epoch rather than after it, that the images held out can judge it.

    Raises:
        TrainingDataError: no class has two images there, or they cannot be held out at all.
    """
    if not config.validation:
        return
    _, held_out = data.split(config.validation, config.seed)
    if int(held_out.counts().max()) < 2:
        raise TrainingDataError(
            f"of the {len(held_out)} images held out of training none has another of its class "
            f"among them; hold out a larger share than --validation {config.validation:g}"
        )
