"""Where two images look alike, on the page that compares them; and that its marks are right."""

import io
from base64 import b64decode
from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Indexed
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image
from services.loopback import LoopbackClient
from test_api_page import Page

from api.portal.alike import with_marks
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.errors import ImageRefused
from engine.model.checkpoint import load_checkpoint
from engine.model.encoder import canvas_tensor, centre_and_normalise
from engine.model.preprocess import Preprocess
from engine.search.alike import CELLS, AlikeMap, alike_map
from engine.settings import ImageLimits, ZipLimits
from indexer.archive import Archive
from indexer.imaging.prepare import ReadTask, prepare
from indexer.sample import write_sample

WEIGHTS = Path(__file__).parents[2] / "engine" / "weights"
PAIRS = 100


def marked_pictures(page: Page) -> list[str]:
    return [one for one in page.thumbnails() if one.startswith("data:image/jpeg")]


def pixels_of(source: str) -> NDArray[np.int16]:
    content = b64decode(source.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.int16)


def coloured(pixels: NDArray[np.int16]) -> NDArray[np.bool_]:
    return np.abs(pixels[..., 0] - pixels[..., 2]) > 60


def test_what_is_marked_is_outlined_and_tinted_where_it_is() -> None:
    weights = np.full((CELLS, CELLS), -1, np.float32)
    weights[2:4, 5] = (0.1, 0.2)
    found = AlikeMap(0.5, weights)
    assert found.marked.sum() == 2
    for canvas in (np.full((96, 96), 250, np.uint8), np.zeros((50, 50, 3), np.uint8)):
        marks = coloured(with_marks(canvas, found).astype(np.int16))
        cell = marks.shape[0] // CELLS
        outside = marks.copy()
        outside[2 * cell : 4 * cell, 5 * cell : 6 * cell] = False
        assert not outside.any()
        # Between two marked cells there is no line, and on their edge there is one all around.
        assert marks[2 * cell : 4 * cell, 5 * cell].all()
        assert marks[2 * cell, 5 * cell : 6 * cell].all()


def test_a_link_marks_where_two_images_look_alike(
    client: TestClient, indexed: Indexed, id_of: Callable[[Path], str]
) -> None:
    left, right = (id_of(path) for path in indexed.files["ct"][:2])
    pair = {"left": left, "right": right, "window": "400", "level": "40"}
    plain = Page(client.get("/compare", params=pair).text)
    assert not marked_pictures(plain)
    (link,) = [one["href"] or "" for one in plain.all("a") if "alike=true" in (one["href"] or "")]
    answer = client.get("/compare" + link.partition("#")[0])
    page = Page(answer.text)
    assert answer.status_code == 200
    pictures = marked_pictures(page)
    assert len(pictures) == 2
    # The archive's pictures are grey: what is coloured are marks.
    shares = [coloured(one).mean() for one in map(pixels_of, pictures)]
    assert max(shares) < 0.4
    assert (min(shares) == 0) == ("nothing is marked" in page.text)
    for said in ("measurement by occlusion", "49 in all", "it is no finding"):
        assert said in page.text
    # The window is kept, the marks as well where another window is chosen.
    assert page.all("input", name="alike", value="true")
    assert page.all("a", href=link.partition("#")[0].replace("&alike=true", ""))
    german = client.get("/compare" + link.partition("#")[0], headers={"Accept-Language": "de"})
    assert "durch Verdecken gemessen" in german.text
    assert marked_pictures(Page(german.text)) == pictures


def test_an_upload_is_marked_as_long_as_its_picture_is_kept(
    client: TestClient, indexed: Indexed, id_of: Callable[[Path], str]
) -> None:
    path = indexed.files["rings"][0]
    data = {"k": "3", "group_by": "none"}
    hits = Page(client.post("/", files={"file": path.read_bytes()}, data=data).text)
    beside = next(one["href"] or "" for one in hits.all("a") if "compare" in (one["href"] or ""))
    page = Page(client.get(f"/{beside}&alike=true").text)
    assert len(marked_pictures(page)) == 2
    own = {"right": id_of(indexed.files["ct"][0]), "query": "never", "alike": "true"}
    gone = client.get("/compare", params=own)
    assert gone.status_code == 200
    assert "not kept any more. Search with the file again" in Page(gone.text).text
    assert not marked_pictures(Page(gone.text))


def test_what_cannot_be_marked_is_said(
    tmp_path: Path, indexed: Indexed, id_of: Callable[[Path], str]
) -> None:
    settings = indexed.copy(tmp_path / "data")
    left, right = (id_of(path) for path in indexed.files["stripes"][:2])
    pair = {"left": left, "right": right, "alike": "true"}
    with Archive(settings) as archive, LoopbackClient(create_service(archive=archive)) as client:
        path = indexed.files["stripes"][1]
        away = path.rename(tmp_path / "away")
        try:
            answer = client.get("/compare", params=pair)
        finally:
            away.rename(path)
        assert answer.status_code == 200
        assert "one cannot be read: it is gone" in Page(answer.text).text
        assert len(marked_pictures(Page(client.get("/compare", params=pair).text))) == 2
        assert client.get("/compare", params={**pair, "alike": "perhaps"}).status_code == 400
        for wrong in ("none", "00000000-0000-5000-8000-000000000000"):
            assert client.get("/compare", params={**pair, "right": wrong}).status_code == 404


def test_another_tenant_s_image_does_not_exist(
    tmp_path: Path, indexed: Indexed, id_of: Callable[[Path], str]
) -> None:
    left, right = (id_of(path) for path in indexed.files["ct"][:2])
    pair = {"left": left, "right": right, "alike": "true"}
    shown = {}
    with Archive(indexed.copy(tmp_path / "data")) as archive:
        for tenant in ("default", "north"):
            _, key = Keys(archive.database).create("t", [Scope.SEARCH], tenant=tenant)
            with LoopbackClient(create_service(archive=archive)) as client:
                bearer = {"Authorization": f"Bearer {key}"}
                answer = client.get("/compare", params=pair, headers=bearer)
            shown[tenant] = (answer.status_code, len(marked_pictures(Page(answer.text))))
    assert shown == {"default": (200, 2), "north": (404, 0)}


@pytest.mark.slow
def test_on_pairs_of_the_sample_what_is_marked_counts_for_more_than_what_is_not(
    tmp_path: Path,
) -> None:
    """What is masked is the marked region as a whole, by the canvas's mean and not by the blur that
    found it, beside regions of the same shape elsewhere."""
    network, manifest = load_checkpoint(WEIGHTS)

    # Without what makes an encoding the same to the bit in every batch, which takes far longer.
    @torch.inference_mode()
    def encode(canvases: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        maps = network.maps(canvas_tensor(np.stack(canvases)))
        return centre_and_normalise(network.fuse(*maps).z.numpy())

    canvases = drawn(tmp_path, manifest.preprocess)
    pairs = pairs_of(encode(canvases))
    rng = np.random.default_rng(0)
    marked, elsewhere = [], []
    for one, other in pairs:
        found = alike_map(encode, canvases[one], canvases[other])
        moves = rng.integers(1, CELLS, (4, 2))
        regions = [found.marked, *(np.roll(found.marked, tuple(by), (0, 1)) for by in moves)]
        z = encode([canvases[other], *(masked(canvases[one], some) for some in regions)])
        drops = found.similarity - z[1:] @ z[0]
        marked.append(float(drops[0]))
        elsewhere.append(float(drops[1:].mean()))
    wins = sum(a > b for a, b in zip(marked, elsewhere, strict=True))
    print(f"{np.mean(marked):.3f} where marked, {np.mean(elsewhere):.3f} elsewhere; {wins} wins")
    assert len(marked) == PAIRS
    assert np.mean(marked) > 1.2 * np.mean(elsewhere)
    # A sign test of one side: how likely as many wins are by chance alone.
    assert sum(comb(PAIRS, one) for one in range(wins, PAIRS + 1)) / 2**PAIRS < 0.001


def drawn(to: Path, preprocess: Preprocess) -> list[NDArray[np.uint8]]:
    """Canvases of the first frames of drawn patients, three of a folder at most."""
    write_sample(to / "sample", patients=12, include_pydicom=False)
    folders: dict[Path, list[Path]] = {}
    for path in sorted((to / "sample").rglob("*.dcm")):
        folders.setdefault(path.parent, []).append(path)
    found = []
    for paths in folders.values():
        for path in paths[:: max(1, len(paths) // 3)][:3]:
            task = ReadTask(
                image=path,
                limits=ImageLimits(),
                zip_limits=ZipLimits(),
                frames=1,
                thumbnail_side=64,
                preprocess=preprocess,
                pseudonym_key=b"of this test alone",
            )
            try:
                found.append(prepare(task).pictures[0].canvas)
            except ImageRefused:
                continue
    return found


def pairs_of(z: NDArray[np.float32]) -> list[tuple[int, int]]:
    """The pairs of different images that are most alike, as queries and hits are; so there are
    enough of them, whatever the model."""
    alike = z @ z.T
    different = [(a, b) for a, b in combinations(range(len(z)), 2) if alike[a, b] < 0.999]
    return sorted(different, key=lambda pair: -alike[pair])[:PAIRS]


def masked(canvas: NDArray[np.uint8], cells: NDArray[np.bool_]) -> NDArray[np.uint8]:
    side = canvas.shape[0] // CELLS
    pixels = np.kron(cells, np.ones((side, side), bool))
    return np.where(pixels, np.uint8(round(float(canvas.mean()))), canvas)
