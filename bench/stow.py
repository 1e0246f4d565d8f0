"""How many instances a second are received by STOW-RS and by C-STORE, beside Orthanc.

    python -m bench.stow [--instances 160] [--rounds 5]

``precedent serve --receive`` with an API key and the audit log, and an Orthanc with its DICOMweb
plugin, both as they are installed, on the same disk. What is received is not indexed meanwhile:
this measures how soon a sender is rid of it. Four senders at a time: by C-STORE dcmtk's
``storescu``, an association each; by STOW-RS connections that are kept, with one instance a
request, and with 20.

In each round both servers are given the same files, CT slices of 512 KiB that nobody has seen
before, by each way in turn; the servers change places from round to round. A value is the median
of the rounds, until the last answer. Writes bench/results/stow.json.
"""

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from rich.console import Console

from api.security.keys import Keys
from api.security.policy import Scope
from bench.machine import write_results
from bench.tables import show
from engine.settings import load_settings
from indexer.datadir.layout import DataDir
from indexer.ledger.database import open_database

__all__ = ["judged", "main"]

_SENDERS = 4
_MANY = 20
_WAYS = ("C-STORE", "STOW, 1 a request", f"STOW, {_MANY} a request")
_SYSTEMS = ("Precedent", "Orthanc")
_COLUMNS = ("system", "way", "instances/s", "slowest", "fastest", "MB/s")
_CT = "1.2.840.10008.5.1.4.1.1.2"
_SIDE = 512
_BOUNDARY = "0f3cf5c0-70e0-41ef-baef-c6f9f65ec3e1"
_TIMEOUT_S = 120
_PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc")


@dataclass(frozen=True)
class System:
    """Where a server takes instances. path: of STOW-RS. headers: that it asks for."""

    title: str
    port: int
    path: str
    dicom_port: int
    headers: dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--instances", type=int, default=160, help="of each way in a round")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    missing = [one for one in ("Orthanc", "storescu") if _program(one) is None]
    if missing or not _plugins():
        parser.error(
            f"{' and '.join(missing) or 'the DICOMweb plugin of Orthanc'} is not installed; on "
            "Debian: apt install orthanc orthanc-dicomweb dcmtk"
        )
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as opened:
        systems = {
            "Precedent": opened.enter_context(_precedent(Path(scratch) / "precedent")),
            "Orthanc": opened.enter_context(_orthanc(Path(scratch) / "orthanc")),
        }
        rows = _measured(systems, Path(scratch), asked.instances, asked.rounds)
    targets = judged(rows)
    console = Console(width=120)
    show(console, f"{asked.instances} instances, {_SENDERS} senders", rows, _COLUMNS)
    show(console, "judged", targets, ("measure", "value", "may be"))
    print(write_results("stow", {"rows": rows, "targets": targets}))


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures by which the two ways are judged.

    Args:
        rows: as they are printed.
    """
    rate = {(row["system"], row["way"]): float(row["instances/s"]) for row in rows}
    c_store, one, many = _WAYS
    found = []
    for system in _SYSTEMS:
        for way in (one, many):
            may = "≥ .9" if (system, way) == ("Precedent", many) else ""
            value = round(rate[system, way] / rate[system, c_store], 3)
            found.append({"measure": f"{system}, {way} / C-STORE", "value": value, "may be": may})
    for way in _WAYS:
        value = round(rate["Precedent", way] / rate["Orthanc", way], 3)
        found.append({"measure": f"{way}, Precedent / Orthanc", "value": value, "may be": ""})
    return found


def _measured(
    systems: dict[str, System], scratch: Path, instances: int, rounds: int
) -> list[dict[str, Any]]:
    template, place, sop = _template()
    took: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for at, way in enumerate(_WAYS):
            folder = scratch / "files"
            shares = [folder / str(sender) for sender in range(_SENDERS)]
            for share in shares:
                share.mkdir(parents=True)
            for index in range(instances):
                uid = f"{sop[:-9]}{10**8 + (number * len(_WAYS) + at) * 100_000 + index}".encode()
                content = bytearray(template)
                for start in place:
                    content[start : start + len(uid)] = uid
                (shares[index % _SENDERS] / f"{index}.dcm").write_bytes(content)
            for name in _SYSTEMS if number % 2 else reversed(_SYSTEMS):
                seconds = _sent(systems[name], way, shares)
                if number:  # the first round warms up
                    took.setdefault((name, way), []).append(seconds)
            shutil.rmtree(folder)
    rows = []
    for name in _SYSTEMS:
        for way in _WAYS:
            rates = [instances / seconds for seconds in took[name, way]]
            rows.append(
                {
                    "system": name,
                    "way": way,
                    "instances/s": round(statistics.median(rates), 1),
                    "slowest": round(min(rates), 1),
                    "fastest": round(max(rates), 1),
                    "MB/s": round(statistics.median(rates) * len(template) / 1e6, 1),
                }
            )
    return rows


def _template() -> tuple[bytes, list[int], str]:
    """A CT slice, where in it the SOP Instance UID stands, and that UID."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = _CT, "1.2.826.0.1.3680043.8.498.100000000"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.2"
    made.PatientID, made.PatientName, made.Modality = "BENCH", "Bench", "CT"
    made.StudyDate = made.StudyTime = made.AccessionNumber = made.StudyID = ""
    made.Rows = made.Columns = _SIDE
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, 0
    pixels = np.random.default_rng(0).integers(0, 4000, (_SIDE, _SIDE), np.uint16)
    made.PixelData = pixels.tobytes()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with tempfile.TemporaryFile() as file:
        made.save_as(file, enforce_file_format=True)
        file.seek(0)
        content = file.read()
    uid = made.SOPInstanceUID.encode()
    first = content.index(uid)
    return content, [first, content.index(uid, first + 1)], made.SOPInstanceUID


def _sent(system: System, way: str, shares: Sequence[Path]) -> float:
    """Seconds until every sender has its last answer.

    Raises:
        RuntimeError: something was not taken.
    """
    if way == "C-STORE":
        return _by_c_store(system, shares)
    at_once = 1 if way == _WAYS[1] else _MANY
    bodies = [list(_bodies(sorted(share.iterdir()), at_once)) for share in shares]
    return _together([lambda own=own: _by_stow(system, own) for own in bodies])  # type: ignore[misc]


def _by_c_store(system: System, shares: Sequence[Path]) -> float:
    command = [str(_program("storescu")), "-R", "-aet", "PACS", "-aec", system.title]
    began = time.perf_counter()
    processes = [
        subprocess.Popen(
            [*command, "127.0.0.1", str(system.dicom_port), "+sd", str(share)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for share in shares
    ]
    failed = [said for one in processes if (said := one.communicate()[1]) or one.returncode]
    seconds = time.perf_counter() - began
    if failed:
        raise RuntimeError(f"storescu: {failed[0].decode(errors='replace')[:500]}")
    return seconds


def _bodies(files: Sequence[Path], at_once: int) -> Iterator[bytes]:
    head = f"\r\n--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    for start in range(0, len(files), at_once):
        parts = (head + path.read_bytes() for path in files[start : start + at_once])
        yield b"".join(parts) + f"\r\n--{_BOUNDARY}--".encode()


def _by_stow(system: System, bodies: Sequence[bytes]) -> None:
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}',
        "Accept": "application/dicom+json",
        **system.headers,
    }
    connection = http.client.HTTPConnection("127.0.0.1", system.port, timeout=_TIMEOUT_S)
    for body in bodies:
        connection.request("POST", system.path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{system.path} answered {answer.status}: {said[:500]!r}")
    connection.close()


def _together(works: Sequence[Callable[[], None]]) -> float:
    """Seconds until all of them are done, side by side."""
    failed: list[Exception] = []

    def done(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=done, args=(work,)) for work in works]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failed:
        raise failed[0]
    return seconds


@contextmanager
def _precedent(folder: Path) -> Iterator[System]:
    settings = load_settings(data_dir=folder)
    folder.mkdir()
    with open_database(settings, DataDir(folder).ledger) as database:
        _, key = Keys(database).create("bench", [Scope.INDEX])
    port, dicom_port = _free_port(), _free_port()
    listen = ["--port", str(port), "--receive", f"PRECEDENT:{dicom_port}"]
    environment = {
        **os.environ,
        "PRECEDENT_RECEIVE__ALLOWED_AE_TITLES": '["PACS"]',
        # Nothing is indexed meanwhile.
        "PRECEDENT_RECEIVE__IDLE_SECONDS": "86400",
        "PRECEDENT_RECEIVE__BATCH": "100000000",
        "PRECEDENT_SERVER__REQUESTS_PER_SECOND": "1000000",
    }
    headers = {"Authorization": f"Bearer {key}"}
    command = [sys.executable, "-m", "api", "serve", "--data-dir", str(folder), *listen]
    with _running(command, environment, f"http://127.0.0.1:{port}/openapi.json"):
        yield System("PRECEDENT", port, "/dicomweb/studies", dicom_port, headers)


@contextmanager
def _orthanc(folder: Path) -> Iterator[System]:
    folder.mkdir()
    port, dicom_port = _free_port(), _free_port()
    configuration = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "Plugins": [str(_plugins()[0])],
        "HttpPort": port,
        "DicomPort": dicom_port,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    command = [str(_program("Orthanc")), str(folder / "orthanc.json")]
    with _running(command, dict(os.environ), f"http://127.0.0.1:{port}/system"):
        yield System("ORTHANC", port, "/dicom-web/studies", dicom_port, {})


@contextmanager
def _running(command: Sequence[str], environment: dict[str, str], url: str) -> Iterator[None]:
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + _TIMEOUT_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > until:
                raise TimeoutError(f"{command[0]} does not answer at {url}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def _plugins() -> list[Path]:
    """Orthanc's DICOMweb plugin, where its packages have it."""
    return [one for at in _PLUGINS for one in sorted(Path(at).glob("**/libOrthancDicomWeb.so*"))]


def _program(name: str) -> Path | None:
    """A program of the system: pynetdicom brings some of the same names, with other options."""
    own = str(Path(sys.executable).parent)
    folders = [*os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/sbin"]
    found = shutil.which(name, path=os.pathsep.join(one for one in folders if one != own))
    return None if found is None else Path(found)


if __name__ == "__main__":
    main()
