"""`precedent demo` as a newcomer meets it: run, run again, and what it says comes next."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from indexer.sample import write_sample

ROOT = Path(__file__).parents[2]
KNOWN = {
    "query-chest-ct.dcm": ({"CT"}, "CHEST"),
    "query-head-ct.dcm": ({"CT"}, "HEAD"),
    "query-chest-xray.dcm": ({"CR", "DX"}, "CHEST"),
    "query-hand-xray.dcm": ({"CR"}, "HAND"),
    "query-knee-xray.png": ({"DX"}, "KNEE"),
    "query-breast-mr.dcm": ({"MR"}, "BREAST"),
    "query-cardiac-mr.png": ({"MR"}, "HEART"),
}
FOREIGN = "query-landscape.png"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def environment(**more: str) -> dict[str, str]:
    kept = {name: v for name, v in os.environ.items() if not name.startswith("PRECEDENT_")}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **more}


def run(home: Path, arguments: list[str], **more: str) -> str:
    done = subprocess.run(
        arguments,
        cwd=home,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(store_root: Path) -> Path:
    """A folder with the command in it, and a demo of an earlier version, with a smaller sample."""
    script = store_root / "bin" / "precedent"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom api.cli.main import main\nmain()\n")
    script.chmod(0o755)
    write_sample(store_root / ".demo" / "archive", patients=2)
    run(store_root, ["bin/precedent", "index", ".demo/archive", "--data-dir", ".demo/data"])
    return store_root


@pytest.fixture(scope="module")
def said(home: Path) -> str:
    return run(home, ["bin/precedent", "demo", "--port", "0"], PRECEDENT_DEMO_EXIT="1")


def answers(said: str) -> dict[str, str]:
    """What is said of each query, by its file's name."""
    parts = re.split(r"^(query-\S+) *$", said, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def next_steps(said: str) -> list[str]:
    _, _, rest = said.partition("What next")
    steps, _, _ = rest.partition("Without keys it answers")
    return [line.split(": ", 1)[1] for line in steps.splitlines()[1:]]


def test_known_images_are_known_with_right_hits_and_the_landscape_is_foreign(said: str) -> None:
    given = answers(said)
    assert list(given) == [*KNOWN, FOREIGN]
    for name, (modalities, part) in KNOWN.items():
        assert "known kind of image" in given[name]
        assert "FOREIGN" not in given[name]
        rows = [line.split("│") for line in given[name].splitlines() if line.startswith("│")]
        assert len(rows) == 3
        for row in rows:
            assert row[4].strip() in modalities
            assert row[5].strip() == part
    assert "FOREIGN" in given[FOREIGN]
    assert "do not trust these hits" in given[FOREIGN]


def test_the_gate_keeps_its_promise_of_three_in_a_hundred(said: str, home: Path) -> None:
    assert "calibrated .demo/model" in said
    assert re.search(r"p = 0\.\d+ ≤ 0\.03;", answers(said)[FOREIGN])
    assert not list((home / ".demo").glob(".archive-*"))  # of the sample that was replaced


def test_what_comes_next_works_as_it_is_printed(home: Path, said: str) -> None:
    serve, index, calibrate = next_steps(said)
    for line in (serve, index, calibrate):
        assert line.startswith("bin/precedent ")
    images = ".demo/archive/synthetic"
    run(home, shlex.split(calibrate.replace("/your/folder", images)))
    assert (home / "my-model" / "manifest.json").is_file()
    run(home, shlex.split(index.replace("/your/folder", ".demo/queries")))
    asked = [".demo/queries/query-chest-ct.dcm", "--data-dir", "my-index", "--model", "my-model"]
    assert "known kind of image" in run(home, ["bin/precedent", "search", *asked])
    with started(home, shlex.split(serve)) as (url, _):
        assert_gate_is_calibrated(home, url)


def test_a_second_run_serves_the_calibrated_model(home: Path, said: str) -> None:
    assert "refused" in said
    with started(home, ["bin/precedent", "demo", "--port", "0"]) as (url, output):
        assert_gate_is_calibrated(home, url)
        assert "Every instance, accounted for" in output()
        assert re.search(r"already there +│ +[1-9]", output())
        assert next_steps(output())[0] == url
        assert list(answers(output())) == [*KNOWN, FOREIGN]


@contextmanager
def started(home: Path, command: list[str]) -> Iterator[tuple[str, "Output"]]:
    """A server that was started by this command: its address, and what it has said."""
    output = Output(home / "output.txt")
    with output.path.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=environment(PYTHONUNBUFFERED="1"),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + 600
        while not (found := re.search(r"Precedent is at (http://\S+)", output())):
            assert process.poll() is None, output()
            assert time.monotonic() < until, output()
            time.sleep(0.2)
        while requests.get(f"{found[1]}healthz", timeout=60).status_code != 200:
            assert time.monotonic() < until, output()
            time.sleep(0.2)
        yield found[1], output
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


class Output:
    """What a process has written to a file so far."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> str:
        return self.path.read_text()


def assert_gate_is_calibrated(home: Path, url: str) -> None:
    """The shipped gate calls this X-ray of a knee foreign, as it does the landscape."""
    for name, foreign in (("query-knee-xray.png", False), (FOREIGN, True)):
        content = (home / ".demo" / "queries" / name).read_bytes()
        answer = requests.post(f"{url}v1/search", files={"file": (name, content)}, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["ood"]["foreign"] is foreign
