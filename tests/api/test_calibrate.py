"""`precedent calibrate`, and how it draws and divides known images."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image
from safetensors import safe_open

from api.cli.known_images import Known, drawn, observe
from api.cli.main import app
from engine.errors import ModelError, PrecedentError, QueryError, TrainingDataError
from engine.model.checkpoint import load_checkpoint
from engine.model.decoder import Decoder, DecoderSize, save_decoder
from engine.model.encoder import Encoder
from engine.model.manifest import SHIPPED
from engine.ood.calibration import CALIBRATION, OodGate
from engine.ood.detectors import ExposureDetector
from engine.records import Observations
from engine.search.query import Query
from indexer.archive import Archive
from indexer.sample.foreign import document_images, noise_images


def draw(folder: Path, seeds: range) -> Path:
    """Stripes across and stripes down, as PNG files in a folder each; a text among them."""
    for name in ("across", "down"):
        (folder / name).mkdir(parents=True)
        for seed in seeds:
            rng = np.random.default_rng([seed, len(name)])
            wave = 127 + 100 * np.sin(np.arange(48) * rng.uniform(0.3, 1.2) + rng.uniform(0, 6))
            rows = np.repeat(wave[:, None], 48, axis=1) + rng.normal(0, 10, (48, 48))
            pixels = (rows if name == "across" else rows.T).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{seed}.png")
    (folder / "README.txt").write_text("Not an image.")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("known"), range(70))


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("held-out"), range(100, 135))


@pytest.fixture
def model(indexed, tmp_path: Path) -> Path:
    """A checkpoint of its own, never calibrated."""
    return Path(shutil.copytree(indexed.settings.model, tmp_path / "model"))


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PRECEDENT_MODEL", raising=False)
    monkeypatch.setenv("PRECEDENT_INDEXING__READERS", "1")
    monkeypatch.chdir(tmp_path)


def calibrate(*arguments: object) -> None:
    # The model of these tests has learned nothing, and its gate catches little.
    if "--catch" not in arguments:
        arguments = (*arguments, "--catch", 0)
    app(["calibrate", *map(str, arguments)], standalone_mode=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_one_folder_is_split_into_reference_and_calibration(pictures, model, capsys) -> None:
    calibrate(pictures, "--model", model, "--json", "--catch", 0.01)
    document = json.loads(capsys.readouterr().out)
    encoder = Encoder.load(model)
    assert document == {
        "model": encoder.manifest.fingerprint,
        "out": str(model),
        "detectors": ["knn", "appearance"],
        "references": 70,
        "calibration": 70,
        "alpha": 0.03,
        "left_out": 0,
        "refused": {"not-an-image": 1},
        "caught": document["caught"],
        "caught_before": dict.fromkeys(("documents", "noise", "scenes")),
        "flagged": document["flagged"],
    }
    assert set(document["caught"]) == {"documents", "noise", "scenes"}
    assert all(0 <= share <= 1 for share in document["caught"].values())
    assert document["flagged"] <= 0.1
    gate = OodGate.load(model, encoder.manifest.fingerprint)
    assert gate is not None
    assert gate.images == 70
    calibrate(pictures, "--model", model, "--alpha", "0.1", "--catch", 0.01)
    said = " ".join(capsys.readouterr().out.split())
    assert f"calibrated {model} (knn, appearance) on 70 images" in said
    assert re.search(r"catches \d+% of drawn documents, \d+% before", said)
    assert re.search(r"would call \d+\.\d% of the archive's own images foreign", said)


@pytest.mark.slow
def test_a_new_gate_has_the_detectors_of_the_one_before_and_what_they_were_shown(
    pictures, model, capsys
) -> None:
    encoder = Encoder.load(model)
    canvas = encoder.manifest.preprocess.canvas
    pages = encoder.observe([canvas(page) for page in document_images(40, 5)])
    known = encoder.observe([canvas(image) for image in noise_images(40, 5)])
    exposure = ExposureDetector(pages).fit(known)
    OodGate.calibrated([exposure], known).save(model, encoder.manifest.fingerprint)
    calibrate(pictures, "--model", model, "--json")
    assert json.loads(capsys.readouterr().out)["detectors"] == ["exposure"]
    gate = OodGate.load(model, encoder.manifest.fingerprint)
    (again,) = gate.detectors
    assert np.array_equal(again.state()["foreign"], exposure.state()["foreign"])
    # It was fitted anew: stripes are known to it, and pages are not.
    more = encoder.observe([canvas(page) for page in document_images(40, 6)])
    assert np.mean([verdict.foreign for verdict in gate.verdicts(more)]) > 0.9


@pytest.mark.slow
def test_a_gate_that_catches_little_is_written_by_force_alone(model, tmp_path, capsys) -> None:
    """An archive of pages: documents are what it knows."""
    pages = tmp_path / "pages"
    pages.mkdir()
    for number, page in enumerate(document_images(80, 1)):
        Image.fromarray(page).save(pages / f"{number}.png")
    before = contents(model)
    with pytest.raises(TrainingDataError, match=r"of drawn documents, less than --catch 0.5"):
        calibrate(pages, "--model", model, "--catch", 0.5)
    assert contents(model) == before
    calibrate(pages, "--model", model, "--catch", 0.5, "--force", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["caught"]["documents"] < 0.5
    assert contents(model) != before


@pytest.mark.slow
def test_the_same_again_is_the_same_and_another_seed_is_not(pictures, model) -> None:
    made = []
    for seed in (0, 0, 1):
        calibrate(pictures, "--model", model, "--seed", seed)
        with safe_open(model / CALIBRATION, framework="numpy") as file:
            made.append(file.metadata()["sha256"])
    assert made[0] == made[1] != made[2]


@pytest.mark.slow
def test_two_folders_are_reference_and_calibration(pictures, others, model, capsys) -> None:
    options = ("--references", 30, "--detectors", "knn, mahalanobis", "--alpha", 0.1)
    calibrate(pictures, others, "--model", model, *options, "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["detectors"] == ["knn", "mahalanobis"]
    # Of the thirty that were drawn, one is the text.
    assert (document["references"], document["calibration"]) == (29, 70)
    assert document["refused"] == {"not-an-image": 2}
    assert document["alpha"] == 0.1
    fingerprint = Encoder.load(model).manifest.fingerprint
    gate = OodGate.load(model, fingerprint)
    assert [detector.name for detector in gate.detectors] == ["knn", "mahalanobis"]


def with_decoder(model: Path) -> None:
    """Gives the model a decoder with random weights."""
    network, manifest = load_checkpoint(model)
    decoder = Decoder(network.tower.shapes[1], DecoderSize(resolution=16))
    save_decoder(model, decoder, manifest.fingerprint, {})


@pytest.mark.slow
def test_a_model_with_a_decoder_can_be_calibrated_on_what_it_rebuilds(
    pictures, indexed, model, tmp_path, capsys
) -> None:
    with_decoder(model)
    names = ["knn", "reconstruction", "appearance"]
    calibrate(pictures, "--model", model, "--alpha", "0.1", "--detectors", ",".join(names))
    assert ", ".join(names) in " ".join(capsys.readouterr().out.split())
    settings = indexed.copy(tmp_path / "data").model_copy(update={"model": model})
    with Archive(settings) as archive, archive.query_reader() as reader:
        (image,) = reader.read([indexed.files["ct"][0]])
        (answer,) = archive.engine.search([image.canvas], Query(1))
        again = archive.engine.search_like(answer.hits[0].id, Query(1))
    assert list(answer.ood.p_values) == names
    # Of an indexed image there is no picture to look at.
    assert set(again.ood.p_values) == {"knn"}
    # Another decoder makes other scores.
    with_decoder(model)
    with pytest.raises(ModelError, match=r"decoder .* calibrate again"):
        Archive(settings)


@pytest.mark.slow
def test_a_picture_in_colour_is_foreign_to_grey_ones_and_hits_get_their_likeness(
    pictures, indexed, model, tmp_path
) -> None:
    calibrate(pictures, "--model", model)
    settings = indexed.copy(tmp_path / "data").model_copy(update={"model": model})
    grey = sorted((pictures / "across").glob("*.png"))[0]
    red = tmp_path / "red.png"
    with Image.open(grey) as shown:
        Image.merge("RGB", [shown, *[Image.new("L", shown.size)] * 2]).save(red)
    with Archive(settings) as archive, archive.query_reader() as reader:
        found = {}
        for path in (grey, red):
            (image,) = reader.read([path])
            asked = ([image.canvas], Query(5), [image.record], [image.colour])
            (found[path],) = archive.engine.search(*asked)
    assert "colour" not in found[grey].ood.p_values
    assert found[red].ood.verdict == "foreign"
    assert found[red].ood.p_values["colour"] == found[red].ood.p == 1 / 71
    for answer in found.values():
        likeness = [hit.likeness for hit in answer.hits]
        assert likeness == sorted(likeness, reverse=True)
        assert 0 <= likeness[-1] <= likeness[0] <= 1


@pytest.mark.slow
def test_what_the_reference_has_takes_no_part_in_calibration(
    pictures, others, model, tmp_path, capsys
) -> None:
    both = Path(shutil.copytree(others, tmp_path / "both"))
    for number in range(7):
        shutil.copy(pictures / "down" / f"{number}.png", both / "across" / f"again-{number}.png")
    calibrate(pictures, both, "--model", model, "--json")
    document = json.loads(capsys.readouterr().out)
    assert (document["references"], document["calibration"]) == (140, 70)
    assert document["left_out"] == 7


@pytest.mark.slow
def test_a_copy_is_made_when_another_folder_is_named(pictures, model, tmp_path, capsys) -> None:
    before = contents(model)
    out = tmp_path / "own" / "model"
    for alpha in (0.03, 0.1):  # the second time into what is there
        calibrate(pictures, "--model", model, "--out", out, "--alpha", alpha, "--json")
        assert json.loads(capsys.readouterr().out)["out"] == str(out)
        assert contents(model) == before
        copied = contents(out)
        assert copied.pop(CALIBRATION)
        assert copied == before
        fingerprint = Encoder.load(out).manifest.fingerprint
        assert OodGate.load(out, fingerprint).alpha == alpha


def test_the_shipped_model_is_not_changed_by_the_way(pictures) -> None:
    before = (SHIPPED / CALIBRATION).read_bytes()
    for model in ((), ("--model", SHIPPED)):
        with pytest.raises(ModelError, match="--out"):
            calibrate(pictures, *model)
    assert (SHIPPED / CALIBRATION).read_bytes() == before


def test_another_model_s_folder_is_not_written_to(pictures, model) -> None:
    shipped = contents(SHIPPED)
    with pytest.raises(ModelError, match=r"holds model .*--out"):
        calibrate(pictures, "--model", model, "--out", SHIPPED)
    assert contents(SHIPPED) == shipped


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("KNOWN", "--alpha", "0.01"), TrainingDataError, "KNOWN gives 70 images .* at least 99"),
        (
            ("KNOWN", "OTHERS", "--alpha", "0.005"),
            TrainingDataError,
            "OTHERS gives .* alpha 0.005 takes at least 199",
        ),
        (("KNOWN", "--references", "20"), TrainingDataError, "images .* at least 33"),
        pytest.param(
            ("KNOWN", "KNOWN"),
            TrainingDataError,
            "gives 0 images .*140 of patients in the ref",
            marks=pytest.mark.slow,
        ),
        (("KNOWN", "--detectors", "knn,gnn"), ModelError, "'gnn'.*mahalanobis"),
        (("KNOWN", "--detectors", "knn,knn"), ModelError, "each once"),
        (("KNOWN", "--alpha", "0"), ModelError, "alpha is 0"),
        (
            ("KNOWN", "--detectors", "reconstruction"),
            ModelError,
            "'reconstruction' .*model has none; train a decoder",
        ),
        (("TEXTS",), TrainingDataError, "none of 132 files is an image"),
        (("nowhere",), QueryError, "nowhere does not exist"),
        (("KNOWN", "nowhere"), QueryError, "nowhere does not exist"),
        (("KNOWN", "--out", "TEXTS/0/x"), QueryError, "cannot be written: .* is no folder"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    pictures, others, model, tmp_path, arguments, error, said
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(132):
        (texts / str(number)).write_text("Not an image.")
    folders = {"KNOWN": str(pictures), "OTHERS": str(others), "TEXTS": str(texts)}
    for name, folder in folders.items():
        arguments = [str(argument).replace(name, folder) for argument in arguments]
        said = said.replace(name, folder)
    before = contents(model)
    with pytest.raises(error, match=f"(?s){said}") as caught:
        calibrate(*arguments, "--model", model)
    assert isinstance(caught.value, PrecedentError)
    assert contents(model) == before


# Drawing and dividing


def test_files_are_drawn_evenly_from_their_folders() -> None:
    sizes = {"large": 500, "middle": 40, "small": 10}
    paths = [Path(name, str(i)) for name, size in sizes.items() for i in range(size)]
    chosen = drawn(paths, 90, seed=0)
    counts = Counter(path.parent.name for path in chosen)
    assert counts == {"large": 40, "middle": 40, "small": 10}
    assert drawn(paths[::-1], 90, seed=0) == chosen == sorted(set(chosen))
    assert drawn(paths, 90, seed=1) != chosen
    assert drawn(paths, 1000, seed=0) == sorted(paths)
    # One from each folder at most: not always from the first ones.
    single = {drawn(paths, 1, seed=seed)[0].parent.name for seed in range(20)}
    assert single == set(sizes)


def of(owners: list[str], kinds: list[str] | None = None) -> Known:
    count = len(owners)
    z = np.arange(count, dtype=np.float32)[:, None]
    kept = tuple(kinds or [""] * count)
    return Known(Observations(z, np.zeros((count, 1), np.uint8)), tuple(owners), kept)


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=60), st.integers(0, 50))
def test_halves_share_no_owner_and_are_about_equal(owners, seed) -> None:
    first, second = of(owners).split(seed)
    assert not set(first.owners) & set(second.owners)
    assert len(first) + len(second) == len(owners)
    assert abs(len(first) - len(second)) <= max(Counter(owners).values())
    for half in (first, second):
        assert [owners[int(z)] for z in half.observations.z[:, 0]] == list(half.owners)
    shuffled, _ = of(sorted(owners)).split(seed)
    assert set(shuffled.owners) == set(first.owners)


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=60), st.integers(0, 50))
def test_halves_are_about_equal_in_every_kind(owners, seed) -> None:
    """Of patients with one kind of study each, as of all images where nothing says a kind."""
    kinds = [str("abcdefghijkl".index(owner) % 3) for owner in owners]
    first, second = of(owners, kinds).split(seed)
    counts = Counter(owners)
    for kind in set(kinds):
        largest = max(counts[o] for o, k in zip(owners, kinds, strict=True) if k == kind)
        assert abs(first.kinds.count(kind) - second.kinds.count(kind)) <= largest
        assert kind in first.kinds


def test_a_kind_of_two_patients_is_on_both_sides_whatever_the_seed() -> None:
    """Drawn without regard to kinds, every other seed had both on one side."""
    owners = [f"many {i}" for i in range(40)] + ["one", "other"] * 5
    kinds = ["CT CHEST"] * 40 + ["CR HAND"] * 10
    for seed in range(20):
        first, second = of(owners, kinds).split(seed)
        assert first.kinds.count("CR HAND") == second.kinds.count("CR HAND") == 5


def test_the_owner_of_a_dicom_image_is_its_patient(indexed) -> None:
    encoder = Encoder.load(indexed.settings.model, batch_size=4)
    refused: Counter[str] = Counter()
    paths = indexed.files["ct"] * 2 + indexed.files["rings"][:1]
    known = observe(encoder, indexed.settings, paths, refused)
    assert len(known) == 13
    assert refused == {}
    assert known.owners[:6] == known.owners[6:12]
    assert len(set(known.owners)) == 7  # two images of a study are of two patients here
    assert not any("HIDDEN" in owner for owner in known.owners)
    assert len(set(known.kinds[:12])) == 1
    assert known.kinds[0].startswith("CT ")
    assert known.kinds[12] == " "  # of a PNG nothing is known
    alone = encoder.encode([indexed_canvas(indexed, encoder, paths[0])])
    assert np.allclose(known.observations.z[0], alone.z[0], atol=1e-6)


def indexed_canvas(indexed, encoder, path: Path) -> np.ndarray:
    from indexer.imaging.read import read_image

    limits = indexed.settings.limits
    instance = read_image(path, limits, frames_per_instance=1, pseudonym_key=b"any")
    return encoder.manifest.preprocess.canvas(instance.frames[0].pixels)
