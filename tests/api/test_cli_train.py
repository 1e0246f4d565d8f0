"""``precedent train`` on archives of every kind of label, and with every option."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

import engine.training.trainer
from api.cli.main import main
from engine.errors import PrecedentError
from engine.model.backbone import HUB
from engine.model.checkpoint import load_checkpoint
from engine.model.decoder import load_decoder
from engine.model.manifest import SHIPPED, WEIGHTS, read_manifest
from engine.training.data import TrainingSet
from engine.training.sch import SchConfig

QUICK = ("--tower", "timm:test_resnet", "--size", "48", "--epochs", "1", "--batch-size", "8")
KINDS = (("MR", "BREAST", None), ("CR", "HAND", "PA"))


def drawn(kind: int, seed: int) -> np.ndarray:
    """uint8 (40, 40): stripes across or down."""
    rng = np.random.default_rng([kind, seed])
    wave = 127 + 100 * np.sin(np.arange(40) * rng.uniform(0.3, 1.2) + rng.uniform(0, 6))
    rows = np.repeat(wave[:, None], 40, axis=1) + rng.normal(0, 10, (40, 40))
    return (rows if kind else rows.T).clip(0, 255).astype(np.uint8)


def save_dicom(path: Path, pixels: np.ndarray, **elements: Any) -> None:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = CTImageStorage
    made.SOPInstanceUID = f"1.2.3.{int(path.stem) + 1}"
    made.Rows, made.Columns = pixels.shape
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit = 7
    made.PixelRepresentation = 0
    made.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        if value is not None:
            setattr(made, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)


@pytest.fixture(autouse=True)
def one_reader(monkeypatch) -> None:
    """For a few images, starting one is what takes the time."""
    monkeypatch.setenv("PRECEDENT_INDEXING__READERS", "1")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """40 DICOM images of 8 patients, half of each kind; folders say which kind it is."""
    root = tmp_path_factory.mktemp("archive")
    for number in range(40):
        kind = number % 2
        modality, part, view = KINDS[kind]
        save_dicom(
            root / f"kind{kind}" / f"{number:02}.dcm",
            drawn(kind, number),
            Modality=modality,
            BodyPartExamined=part,
            ViewPosition=view,
            PatientID=f"SECRET{number // 5}",
            PatientName="Doe^Jane",
        )
    return root


@pytest.fixture
def precedent(monkeypatch, capsys) -> Callable[..., dict[str, Any]]:
    """Runs the command, which must succeed; its JSON."""

    def run(*arguments: str | Path) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["precedent", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        assert ended.value.code == 0, output.err
        return json.loads(output.out)

    return run


@pytest.mark.slow
def test_an_archive_trains_on_its_own_tags(archive, precedent, tmp_path):
    (archive / "notes.txt").write_text("no image")
    document = precedent(
        *("train", archive, "--out", tmp_path, "--labels", "dicom-tags", *QUICK),
        *("--epochs", "2", "--validation", "0.25", "--patience", "2", "--ema-decay", "0.5"),
    )
    assert document["images"] == 40
    assert document["classes"] == ["CR HAND PA", "MR BREAST"]
    measured = [entry["validation_map"] for entry in document["history"]]
    assert document["validation_map"] == max(measured) > 0.5
    manifest = read_manifest(tmp_path)
    assert manifest.fingerprint == document["model"]
    assert manifest.training["config"]["patience"] == 2
    assert manifest.training["config"]["ema_decay"] == 0.5
    text = (tmp_path / "manifest.json").read_text() + json.dumps(document)
    assert "SECRET" not in text
    assert "Doe" not in text


@pytest.mark.slow
def test_images_without_labels_train_a_network_without_classifier(archive, precedent, tmp_path):
    Image.fromarray(drawn(0, 99)).save(archive / "one.png")
    document = precedent(
        "train", archive, "--out", tmp_path / "m", "--labels", "none", *QUICK, "--seed", "4"
    )
    assert document["images"] == 41
    assert document["classes"] == []
    assert "validation_map" not in document
    network, manifest = load_checkpoint(tmp_path / "m")
    assert network.classifier is None
    assert manifest.network.classes == 0
    assert manifest.training["config"]["seed"] == 4


@pytest.mark.slow
def test_the_second_stage_leaves_a_decoder_and_neither_stage_is_repeated(
    archive, precedent, tmp_path
):
    command = ("train", archive, "--out", tmp_path / "m", "--labels", "folder", *QUICK)
    without = precedent(*command, "--decoder-epochs", "0")
    manifest = read_manifest(tmp_path / "m")
    assert load_decoder(tmp_path / "m", manifest.fingerprint) is None
    written = (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns
    assert precedent(*command, "--decoder-epochs", "1")["model"] == without["model"]
    assert load_decoder(tmp_path / "m", manifest.fingerprint) is not None
    assert (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.slow
def test_codes_are_fitted_after_a_training_that_has_ended(archive, precedent, tmp_path):
    command = ("train", archive, "--out", tmp_path / "m", "--labels", "folder", *QUICK)
    without = precedent(*command, "--decoder-epochs", "1")
    fitted = precedent(*command, "--decoder-epochs", "1", "--code-epochs", "1")
    assert fitted["model"] != without["model"]
    assert fitted["history"] == without["history"]
    manifest = read_manifest(tmp_path / "m")
    assert manifest.training["codes"]["of"] == without["model"]
    decoder = load_decoder(tmp_path / "m", manifest.fingerprint)
    assert decoder is not None
    assert decoder.made["history"][0]["epoch"] == 1
    assert precedent(*command, "--decoder-epochs", "1", "--code-epochs", "1") == fitted


@pytest.mark.slow
def test_options_reach_the_model(archive, precedent, tmp_path):
    pretrained = tmp_path / "tower.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), pretrained)
    out = tmp_path / "model"
    precedent(
        *("train", archive, "--out", out, "--labels", "folder", *QUICK),
        *("--taps", "1", "3", "--pretrained", pretrained, "--freeze-tower"),
        *("--fusion", "concat", "--head", "mlp", "--bits", "32"),
        *("--colour", "--normalise", "fixed", "--loss", "csq", "--images-per-class", "4"),
        *("--precision", "fp32", "--device", "auto", "--learning-rate", "0.002"),
    )
    network, manifest = load_checkpoint(out)
    assert manifest.network.tower.taps == (1, 3)
    assert manifest.network.darf.fusion == "concat"
    assert (manifest.network.head.kind, manifest.bits) == ("mlp", 32)
    assert manifest.preprocess.colour
    # What timm says of the tower's own training.
    assert manifest.preprocess.mean == manifest.preprocess.std == (0.5, 0.5, 0.5)
    config = manifest.training["config"]
    assert config["loss"]["method"] == "csq"
    assert config["images_per_class"] == 4
    assert config["precision"] == "fp32"
    assert config["learning_rate"] == 0.002
    given = torch.load(pretrained, weights_only=True)
    for name, value in network.tower.tower.trunk.state_dict().items():
        assert torch.equal(value, given[name].half().to(value.dtype)), name


class Stopped(PrecedentError):
    """Instead of a training that would take minutes."""


@pytest.fixture
def learned(monkeypatch) -> Callable[..., dict[str, Any]]:
    """Runs the command up to where training would start; what it would be given."""
    given: dict[str, Any] = {}

    def record(data, network_config, preprocess, config, out, **more: Any) -> None:
        given.update(
            data=data, network=network_config, preprocess=preprocess, config=config, **more
        )
        raise Stopped("enough")

    monkeypatch.setattr(engine.training.trainer, "train", record)

    def run(*arguments: str | Path) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["precedent", "train", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()
        return given

    return run


@pytest.mark.slow
def test_the_papers_network_and_its_image_size(archive, learned, tmp_path):
    given = learned(
        archive, "--out", tmp_path, "--network", "paper", "--fusion", "deep", "--bits", "16"
    )
    assert given["network"].tower.name == "timm:resnet50"
    assert given["network"].darf.dim == 3584
    assert given["network"].head.bits == 16
    assert given["network"].classes == 2
    assert given["data"].canvases.shape == (40, 224, 224)


def patients_are_kept_together(data: TrainingSet, patients: list[str]) -> bool:
    for seed in range(10):
        # Each canvas is another picture, so that it tells whose it is.
        owner = {canvas.tobytes(): who for canvas, who in zip(data.canvases, patients, strict=True)}
        kept, held_out = (
            {owner[canvas.tobytes()] for canvas in part.canvases}
            for part in data.split(share=0.25, seed=seed)
        )
        if kept & held_out:
            return False
    return True


def test_a_spread_averages_alike_and_unlike_labels_apart(archive, learned, tmp_path):
    given = learned(archive, "--spread", "0.3", "--out", tmp_path)
    assert given["config"].loss == SchConfig(spread=0.3, separate_means=True)


def test_a_labelled_folder_is_split_by_the_patients_of_its_headers(archive, learned, tmp_path):
    given = learned(archive, "--out", tmp_path, "--fingerprint", "cosine")
    numbers = [*range(0, 40, 2), *range(1, 40, 2)]  # one folder after the other
    assert patients_are_kept_together(given["data"], [f"{n // 5}" for n in numbers])
    # And with that, what the options are by default: the shipped model's.
    shipped = read_manifest(SHIPPED)
    side = shipped.preprocess.size
    assert given["network"].tower == shipped.network.tower
    assert given["data"].canvases.shape == (40, side, side)
    assert given["config"].loss.fingerprint == "cosine"
    assert given["pretrained"] == str(SHIPPED / WEIGHTS)
    assert (given["config"].tower_rate, given["config"].tower_rest_epochs) == (0.5, 0.5)


def test_where_the_shipped_tower_does_not_fit_training_starts_from_nothing(
    archive, learned, tmp_path
):
    for options in (("--pretrained", "none"), ("--normalise", "fixed"), QUICK[:2]):
        given = learned(archive, "--out", tmp_path, *options)
        assert given["pretrained"] is None
        assert (given["config"].tower_rate, given["config"].tower_rest_epochs) == (1.0, 0.0)


def test_a_table_is_split_by_its_group_column_or_else_by_patient(archive, learned, tmp_path):
    lines, owners = ["file,label,site"], []
    for number, path in enumerate(sorted(archive.rglob("*.dcm"))):
        site = f"site{number % 7}" if path.parent.name == "kind0" else ""
        lines.append(f"{path},{path.parent.name},{site}")
        owners.append(site or f"patient {int(path.stem) // 5}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines))
    given = learned(
        *(table, "--out", tmp_path / "m", "--labels", "csv", "--group-column", "site", *QUICK)
    )
    assert patients_are_kept_together(given["data"], owners)
    assert not patients_are_kept_together(given["data"], [f"{n // 5}" for n in range(40)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--labels", "xml"],
            "--labels is 'xml'; use one of 'folder', 'csv', 'dicom-tags', 'none'",
        ),
        (["--labels", "csv", "--group-column", "site"], "cannot be read"),
        (["--group-column", "site"], "--group-column"),
        (["--labels", "dicom-tags", "--min-class-size", "0"], "--min-class-size is 0"),
        (["--labels", "dicom-tags", "--min-class-size", "21"], "at least 21 images"),
        (["--network", "large"], "--network is 'large'; use one of 'small', 'paper'"),
        (["--tower", "timm:nothing"], "'nothing'"),
        (["--tower", "nothing"], "'nothing'"),
        (["--taps", "3", "9"], "(3, 9)"),
        (["--pretrained", "no/such/file.pth"], "'no/such/file.pth'"),
        (["--pretrained", "pyproject.toml"], "pyproject.toml cannot be read"),
        (["--pretrained", "shipped"], "is not of tower 'timm:test_resnet'"),
        (["--tower-rate", "2"], "tower_rate is 2.0"),
        (["--tower-rest", "1"], "the tower rests for 1.0 of 1 epochs"),
        (["--tower", "ViT-S-16", "--pretrained", HUB], "'hub'"),
        (["--fusion", "glue"], "'glue'; use one of darf"),
        (["--head", "tail"], "'tail'; use 'kan' or 'mlp'"),
        (["--bits", "12"], "bits is 12"),
        (["--size", "0"], "size is 0"),
        (["--normalise", "no"], "'no'; use 'standardise' or 'fixed'"),
        (["--loss", "mse"], "--loss is 'mse'; use one of 'sch', 'hashnet'"),
        (["--fingerprint", "hand"], "'hand'; use 'cosine', 'pearson' or 'none'"),
        (["--loss", "dch", "--fingerprint", "cosine"], "--fingerprint is of the loss 'sch'"),
        (["--loss", "dch", "--spread", "0.3"], "--spread is of the loss 'sch'"),
        (["--spread", "0.7"], "spread is 0.7; use 0 to 0.5"),
        (["--spread", "nan"], "spread is nan; use 0 to 0.5"),
        (["--spread", "0.3", "--fingerprint", "none"], "use fingerprint 'pearson', or spread 0"),
        (["--labels", "none", "--loss", "dch"], "--loss dch needs labels"),
        (["--labels", "none", "--images-per-class", "4"], "--images-per-class needs classes"),
        (["--images-per-class", "-1"], "--images-per-class is -1; use 0 or more"),
        (["--epochs", "0"], "--epochs is 0; use 1 or more"),
        (["--batch-size", "1"], "--batch-size is 1; use 2 or more"),
        (["--learning-rate", "0"], "--learning-rate is 0.0"),
        (["--learning-rate", "nan"], "--learning-rate is nan"),
        (["--ema-decay", "1"], "ema_decay is 1.0"),
        (["--validation", "-0.1"], "validation is -0.1"),
        (["--patience", "3"], "patience is 3"),
        (["--patience", "-1"], "--patience is -1; use 0 or more"),
        (["--precision", "fp8"], "--precision is 'fp8'; use one of 'auto', 'fp32', 'bf16'"),
        (["--device", "abacus"], "--device is 'abacus'"),
        (["--seed", "-1"], "--seed is -1; use 0 or more"),
        (["--out", "README.md"], "--out is 'README.md', which is a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line(archive, options, says, monkeypatch, capsys, tmp_path):
    folder = ["--out", str(tmp_path / "m")] if "--out" not in options else []
    arguments = ["train", str(archive), *folder, *QUICK, *options]
    monkeypatch.setattr(sys, "argv", ["precedent", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("precedent: ")
    assert says in line
    assert not (tmp_path / "m").exists()
