"""Archives indexed for real, with a model that is quick to load."""

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from services.needed import package
from sites import Site, drawn, png_of

from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.encoder import Encoder
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.settings import Settings
from indexer import archive


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """For small batches: threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def loaded_once() -> Iterator[None]:
    """Archives share the encoder of a model whose files are the same; nothing changes encoders."""
    load, loaded = archive.load_encoder, {}

    def kept(directory: Path, settings: Settings) -> Encoder:
        files = [(str(path), path.stat()) for path in sorted(directory.glob("*"))]
        key = (
            *((name, found.st_ino, found.st_size, found.st_mtime_ns) for name, found in files),
            *(settings.device, settings.precision, settings.indexing.batch_size),
        )
        if key not in loaded:
            loaded[key] = load(directory, settings)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "load_encoder", kept)
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that nobody has trained."""
    directory = tmp_path_factory.mktemp("untrained") / "model"
    torch.manual_seed(7)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(directory, network, config, preprocess, (), {})
    return directory


@pytest.fixture(scope="module")
def new_site(store_root: Path, model: Path) -> Callable[..., Site]:
    """Makes sites that last as long as the module's tests; of the shipped model if asked to."""

    def make(*, shipped: bool = False, **indexing: Any) -> Site:
        chosen = None if shipped else model
        return Site(Path(tempfile.mkdtemp(dir=store_root)), chosen, **indexing)

    return make


@pytest.fixture
def site(store_root: Path, model: Path) -> Iterator[Site]:
    """A site of this test alone."""
    with tempfile.TemporaryDirectory(dir=store_root) as folder:
        yield Site(Path(folder), model)


@pytest.fixture(scope="session")
def draw() -> Callable[[int], bytes]:
    """Seed → the bytes of a PNG."""
    return lambda seed: png_of(drawn(seed))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that signed itself, with its key beside it in ``key.pem``."""
    folder = tmp_path_factory.mktemp("tls")
    made = (package("openssl"), "req", "-x509", "-newkey", "ec")
    kind = ("-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    subject = ("-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", folder / "key.pem", "-out", folder / "cert.pem")
    subprocess.run([*made, *kind, *subject, *files], check=True, capture_output=True)
    return folder / "cert.pem"
