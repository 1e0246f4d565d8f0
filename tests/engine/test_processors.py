"""What holds on other kinds of processors: the same tests as on them, and how far they agree.

PyTorch, oneDNN and MKL can be kept to the instructions of an older processor, and then run the
kernels that they would choose there.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.encoder import canvases_of
from bench.processors import OURS, PROCESSORS, difference, encoded_as_on
from engine.model.manifest import SHIPPED, read_manifest
from indexer.sample import write_sample

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
SUITE = [
    "engine/test_encoder.py",
    "engine/test_invariance.py",
    "indexer/test_pipeline.py::test_a_shuffled_archive_gives_the_same_answers",
    "indexer/test_reencode.py::test_cut_short_it_goes_on",
    "api/test_cli_reencode.py::test_a_running_service_takes_up_the_new_index",
    "api/test_cli_recommend.py::test_duplicates_are_listed_with_their_files",
]
"""Of the encoder, and of archives whose order or interruption must not show."""
ON_STARTING = "imported_first or importing_the_engine or torch_came_first or asks_for_less"
"""Tests of what is settled before the first thread; each starts a process of its own."""


class OnAnotherProcessor:
    """The suite on a kind of processor. A class each, so that they run beside each other."""

    processor: str

    @pytest.mark.timeout(900)
    @pytest.mark.parametrize("threads", [1, 2])
    def test_what_is_promised_holds(self, threads):
        words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "600"]
        if threads > 1:
            words += ["-k", f"not ({ON_STARTING})"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words, *(str(TESTS / one) for one in SUITE)],
            env={**os.environ, **PROCESSORS[self.processor], "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert " passed" in done.stdout
        assert "skipped" not in done.stdout


class TestAvx2(OnAnotherProcessor):
    processor = "AVX2"


class TestSse4(OnAnotherProcessor):
    processor = "SSE4"


@pytest.fixture(scope="module")
def canvases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "archive"
    write_sample(folder, patients=12, include_pydicom=False)
    return np.stack(canvases_of(folder, read_manifest(SHIPPED).preprocess, 64))


@pytest.fixture(scope="module")
def ours(canvases):
    return {name: encoded_as_on(OURS, canvases, name)[0] for name in ("fp32", "bf16")}


@pytest.mark.parametrize("processor", [name for name in PROCESSORS if name != OURS])
@pytest.mark.parametrize(
    ("precision", "similarity", "bits"), [("fp32", 1e-5, 0.001), ("bf16", 1e-2, 0.004)]
)
def test_processors_agree(processor, precision, similarity, bits, canvases, ours):
    theirs, _ = encoded_as_on(processor, canvases, precision)
    differs = difference(theirs, ours[precision])
    assert differs["share_of_bits"] <= bits
    assert differs["similarity"] <= similarity
    assert differs["across"] <= similarity


def test_precisions_agree_nearly(ours):
    differs = difference(ours["bf16"], ours["fp32"])
    assert 0 < differs["across"] <= 0.12
    assert differs["share_of_bits"] <= 0.04


def test_another_process_gives_the_same_bits(canvases, ours):
    again, _ = encoded_as_on(OURS, canvases[::-1], "fp32")
    assert again.z[::-1].tobytes() == ours["fp32"].z.tobytes()
    assert again.codes[::-1].tobytes() == ours["fp32"].codes.tobytes()
