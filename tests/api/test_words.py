"""Searches by words, with a CLIP model of random weights: order means nothing, agreement does."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from services.loopback import LoopbackClient
from test_clip_tower import SPEAKING, TEXT, VISION, archive, said, saved
from typer.testing import CliRunner

from api.cli.main import app
from api.service import create_service
from engine.errors import ModelError, QueryError
from engine.model.encoder import Encoder
from engine.model.manifest import WORDS, WORDS_WEIGHTS, read_manifest
from engine.model.words import Words, add_words, read_words
from engine.settings import load_settings

__all__ = ["archive"]

WORDS_SAID = "stripes that run down a large picture, and more of them than anybody reads"
FEW = "stripes"
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return saved(tmp_path / "clip", VISION, name=WEIGHTS, text=SPEAKING)


def loaded(folder: Path) -> open_clip.CLIP:
    """The model as open_clip itself makes it."""
    made = open_clip.CLIP(24, open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**SPEAKING))
    made.load_state_dict(load_file(folder / WEIGHTS))
    return made.eval()


@torch.inference_mode()
def cosines(folder: Path, canvases: list[np.ndarray], text: str) -> np.ndarray:
    """Of open_clip's own encodings of canvases, uint8 (64, 64), and a text."""
    model = loaded(folder)
    images = torch.from_numpy(np.stack(canvases)).float()[:, None].expand(-1, 3, -1, -1) / 255
    mean, std = (
        torch.tensor(one).reshape(1, 3, 1, 1) for one in ([0.2, 0.3, 0.4], [0.3, 0.3, 0.3])
    )
    shown = model.encode_image((images - mean) / std, normalize=True)
    tokens = open_clip.SimpleTokenizer(context_length=8)(text)
    return (shown @ model.encode_text(tokens, normalize=True).T)[:, 0].numpy()


@pytest.mark.parametrize("text", [FEW, WORDS_SAID])
def test_texts_and_images_are_encoded_as_open_clip_does(clip, text) -> None:
    _, _, words = read_words(clip)
    rng = np.random.default_rng(0)
    canvases = [rng.integers(0, 256, (64, 64), np.uint8) for _ in range(5)]
    found = words.images(canvases, 2)
    told = words.text(text)
    assert found @ told.vector == pytest.approx(cosines(clip, canvases, text), abs=1e-5)
    assert np.array_equal(words.images(canvases[3:4], 4)[0], found[3])
    assert told.read == min(told.tokens, 8)
    assert (told.tokens > 8) == (text == WORDS_SAID)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (" \n", "the text is empty"),
        ("a" * 2001, "the text has 2,001 characters; give 2,000 at most"),
        ("a\x00b", r"control character U\+0000"),
        ("a\x1bb", r"control character U\+001B"),
        ("a\ud800b", r"control character U\+D800"),
    ],
)
def test_what_is_no_text_is_refused_without_repeating_it(clip, text, says) -> None:
    _, _, words = read_words(clip)
    with pytest.raises(QueryError, match=says):
        words.text(text)


def test_a_folder_without_a_usable_text_side_is_refused(tmp_path) -> None:
    small = saved(tmp_path / "small", VISION, name=WEIGHTS, text=TEXT)
    with pytest.raises(ModelError, match="knows 32 tokens, and open_clip's tokenizer has 49,408"):
        read_words(small)
    told = json.loads((small / "open_clip_config.json").read_text())
    theirs = told["model_cfg"].pop("text_cfg")
    (small / "open_clip_config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match="has no text side"):
        read_words(small)
    told["model_cfg"]["text_cfg"] = {**theirs, "hf_model_name": "somebody/their-bert"}
    (small / "open_clip_config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=r"lacks config\.json and tokenizer_config\.json"):
        read_words(small)


@pytest.mark.slow
def test_a_text_side_of_transformers_is_read_from_its_files(tmp_path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")

    def no_network(*_: object) -> None:
        raise AssertionError("nothing is fetched")

    monkeypatch.setattr("socket.socket.connect", no_network)
    folder = tmp_path / "clip"
    folder.mkdir()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "stripes", "down", "##s", "a"]
    (folder / "vocab.txt").write_text("\n".join(names))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    bert = transformers.BertConfig(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    bert.save_pretrained(folder)
    text = {
        "hf_model_name": str(folder), "hf_tokenizer_name": "somebody/their-bert",
        "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler",
        "hf_model_pretrained": False, "context_length": 6,
    }  # fmt: skip
    torch.manual_seed(5)
    theirs = open_clip.CustomTextCLIP(
        24, open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**text)
    ).eval()
    save_file({key: one.clone() for key, one in theirs.state_dict().items()}, folder / WEIGHTS)
    # The name of the text model is that of a hub, which is not asked.
    said_of_it = {**text, "hf_model_name": "somebody/their-bert", "hf_model_pretrained": True}
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": said_of_it}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    _, _, words = read_words(folder)
    told = words.text("stripes down a downs stripes stripes")
    with torch.inference_mode():
        ids = torch.tensor([[2, 5, 6, 8, 6, 3]])
        expected = theirs.encode_text(ids, normalize=True)[0].numpy()
    assert (told.tokens, told.read) == (9, 6)
    assert told.vector == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_an_archive_is_searched_by_words(indexed, archive, clip, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PRECEDENT_INDEXING__READERS", "1")
    model, data = tmp_path / "model", tmp_path / "data"
    quick = ("--size", 64, "--taps", 0, 2, "--epochs", 1, "--batch-size", 8)
    options = (*quick, "--decoder-epochs", 1, "--normalise", "fixed")
    # The tower learns, which is none of the words' business.
    trained = said("train", archive, "--out", model, "--tower", clip, "--words", *options)
    manifest = read_manifest(model)
    assert trained["model"] == manifest.fingerprint
    assert (manifest.words_dim, Encoder.load(model).decoder_fingerprint is None) == (24, False)
    plain = ("--data-dir", data, "--model", indexed.settings.model)
    assert said("index", archive, "--labels", "folder", *plain)["indexed"] == 16
    with pytest.raises(QueryError, match=r"model .* knows no words; search by an image, or train"):
        said("search", "--text", FEW, *plain)
    where = ("--data-dir", data, "--model", model)
    assert said("reencode", *where)["model"] == manifest.fingerprint

    files = sorted(archive.rglob("*.png"))
    preprocess = manifest.preprocess
    canvases = [preprocess.canvas(np.asarray(Image.open(one))) for one in files]
    truth = cosines(clip, canvases, WORDS_SAID)
    best = [files[at] for at in np.argsort(-truth)]
    answer = said("search", "--text", WORDS_SAID, "-k", 5, *where)
    assert [hit["path"] for hit in answer["hits"]] == [str(one) for one in best[:5]]
    assert [hit["similarity"] for hit in answer["hits"]] == pytest.approx(
        np.sort(truth)[::-1][:5], abs=1e-4
    )
    assert {(hit["hamming"], hit["likeness"]) for hit in answer["hits"]} == {(None, None)}
    assert (answer["ood"], answer["evidence"]["compared"]) == (None, 16)
    assert "the model read the first 8" in answer["evidence"]["note"]
    rest = said("search", "--text", WORDS_SAID, "-k", 5, "--page", answer["next_page"], *where)
    assert [hit["path"] for hit in rest["hits"]] == [str(one) for one in best[5:10]]
    down = said("search", "--text", WORDS_SAID, "--where", "labels=down", *where)
    expected = [str(one) for one in best if one.parent.name == "down"]
    assert [hit["path"] for hit in down["hits"]] == expected
    both = CliRunner().invoke(app, ["search", str(files[0]), "--text", FEW])
    assert (both.exit_code, "one of the two" in both.output) == (2, True)

    stored = said("upgrade", "--dry-run", *where)
    assert "refused" not in json.dumps(stored)
    settings = load_settings(data_dir=data, model=model)
    with LoopbackClient(create_service(settings)) as client:
        found = client.post("/v1/search", json={"text": WORDS_SAID, "k": 5}).json()
        assert [hit["id"] for hit in found["hits"]] == [hit["id"] for hit in answer["hits"]]
        for body, says in (
            ({"text": WORDS_SAID, "id": found["hits"][0]["id"]}, "id and text came"),
            ({"text": ""}, "the text is empty"),
            ({"text": FEW, "order": "hamming"}, "a text has no code"),
            ({"text": FEW, "radius": 3}, "a text has no code"),
            ({"text": FEW, "exclude_own": "study"}, "no study or patient of its own"),
            ({"text": FEW, "region": "0,0,1,1"}, "a region is one of a picture"),
            ({"text": FEW, "page": "codes-7:10"}, "is of a search by an image"),
        ):
            refused = client.post("/v1/search", json=body)
            assert (refused.status_code, says in refused.json()["detail"]) == (400, True)
    kept = [path.read_bytes() for path in data.rglob("*") if path.is_file()]
    assert not any(b"anybody reads" in content for content in kept)

    # Images are still found where the words' files are gone; back at the first model no words are.
    (model / WORDS_WEIGHTS).rename(tmp_path / "away")
    by_image = said("search", files[0], "-k", 1, *where)
    assert by_image["hits"][0]["path"] == str(files[0])
    with pytest.raises(ModelError, match=f"lacks what model .*{WORDS_WEIGHTS}"):
        said("search", "--text", FEW, *where)
    assert said("reencode", *plain)["model"] != manifest.fingerprint
    assert said("search", files[0], "-k", 1, *plain)["hits"][0]["path"] == str(files[0])


def test_other_words_than_the_manifest_describes_are_refused(indexed, clip, tmp_path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in indexed.settings.model.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    before = read_manifest(model)
    after = add_words(model, clip)
    assert (before.fingerprint != after.fingerprint, after) == (True, read_manifest(model))
    assert Words.load(model, after, "cpu").dim == 24
    assert add_words(model, clip) == after
    (model / WORDS).write_text((model / WORDS).read_text().replace("0.2", "0.25"))
    with pytest.raises(ModelError, match="are not what its manifest describes"):
        Words.load(model, after, "cpu")
