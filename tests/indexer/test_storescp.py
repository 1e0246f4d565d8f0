"""The C-STORE SCP with real senders: dcmtk's tools, and pynetdicom as SCU."""

import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pynetdicom._config
import pytest
from dicom_files import CT, SAMPLES, dataset, encode
from pydicom._uid_dict import UID_dictionary
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_context
from pynetdicom.dimse_primitives import C_STORE
from services.needed import dcmtk

from engine.errors import SettingsError, StoreLocked
from engine.settings import ReceiveSettings
from indexer.sources.pushed.arrival import file_head
from indexer.sources.pushed.inbox import Inbox
from indexer.sources.pushed.storescp import StoreScp

LOCAL = "127.0.0.1"
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
SERVER = """
    import sys, threading
    from pathlib import Path
    from engine.settings import ReceiveSettings
    from indexer.sources.pushed.inbox import Inbox
    from indexer.sources.pushed.storescp import StoreScp
    receive = ReceiveSettings(port=0, allowed_ae_titles=("PACS",))
    inbox = Inbox(Path(sys.argv[1]), receive, 2**31)
    print(StoreScp(receive).start(inbox), flush=True)
    threading.Event().wait()
"""


class Station:
    """A running SCP and its inbox."""

    def __init__(self, folder: Path, max_file_bytes: int = 2**31, **receive: Any) -> None:
        self.folder = folder
        settings = ReceiveSettings(
            **{"port": 0, "allowed_ae_titles": ("PACS",), "min_free_bytes": 0, **receive}
        )
        self.scp = StoreScp(settings)
        self.inbox = Inbox(folder, settings, max_file_bytes)
        self.port = self.scp.start(self.inbox)

    def close(self) -> None:
        self.scp.stop(0.0)
        self.inbox.__exit__()

    def files(self) -> dict[str, Path]:
        """What is stored, by the name of the file."""
        return {path.stem: path for path in self.inbox}


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Callable[..., Station]]:
    started: list[Station] = []

    def start(**options: Any) -> Station:
        started.append(Station(tmp_path / "received", **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


def storescu(port: int, *arguments: object, title: str = "PACS") -> list[str]:
    command = [dcmtk("storescu"), "-v", "-aet", title, "-aec", "PRECEDENT"]
    return [*command, LOCAL, str(port), *map(str, arguments)]


def store(port: int, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        storescu(port, *arguments, **options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


def echo(port: int, *, title: str = "PACS", called: str = "PRECEDENT") -> str:
    """What echoscu says; nothing when it was answered."""
    command = [dcmtk("echoscu"), "-aet", title, "-aec", called, LOCAL, str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) == (done.stderr == ""), done
    return done.stderr


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Sends files in one association, data sets as they lie in them; gives the answers."""
    monkeypatch.setattr(pynetdicom._config, "STORE_SEND_CHUNKED_DATASET", True)

    def sent(port: int, *files: Path, title: str = "PACS") -> list[Any]:
        sender = AE(title)
        wanted: dict[str, list[str]] = {}
        for path in files:
            meta = read_file_meta_info(path)
            syntaxes = wanted.setdefault(meta.MediaStorageSOPClassUID, [])
            if meta.TransferSyntaxUID not in syntaxes:
                syntaxes.append(meta.TransferSyntaxUID)
        contexts = [build_context(of, [one]) for of, several in wanted.items() for one in several]
        association = sender.associate(LOCAL, port, contexts, ae_title="PRECEDENT")
        assert association.is_established
        answers = [association.send_c_store(path) for path in files]
        association.release()
        return answers

    return sent


def instance(path: Path, sop: str, data: bytes, syntax: str = ExplicitVRLittleEndian) -> Path:
    """A file whose data set may be any bytes."""
    path.write_bytes(file_head(CT, sop, syntax) + data)
    return path


def slice_of(seed: int, side: int = 32) -> Any:
    pixels = np.random.default_rng(seed).integers(0, 4000, (side, side)).astype(np.uint16)
    return dataset(
        pixels,
        SOPInstanceUID=f"1.2.826.{seed}",
        StudyInstanceUID="1.2.826.0",
        SeriesInstanceUID="1.2.826.1",
        PatientName="Hidden^Somebody",
        PatientID="HIDDEN-1",
    )


def large_image(path: Path, size: int) -> Path:
    """Real senders look at what they send: of so many bytes, but an image."""
    rows = np.zeros((size // 10_000, 5_000), np.uint16)
    path.write_bytes(encode(dataset(rows, SOPInstanceUID="1.2.826.2")))
    return path


def data_of(path: Path) -> bytes:
    """The bytes after the meta information, whose length the file says itself."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<L", content, 140)
    return content[144 + length :]


# Who may send, and where.


def test_an_echo_is_answered_for_those_who_are_named(station: Any) -> None:
    port = station(allowed_ae_titles=("PACS", "MODALITY 1")).port
    assert echo(port) == ""
    assert echo(port, title="MODALITY 1") == ""


def test_others_are_rejected_and_the_log_says_why(
    station: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    port = station().port
    assert "Calling AE Title Not Recognized" in echo(port, title="OTHER")
    assert "Called AE Title Not Recognized" in echo(port, called="OTHER")
    path = tmp_path / "one.dcm"
    path.write_bytes(encode(slice_of(1)))
    assert "Calling AE Title Not Recognized" in store(port, path, title="OTHER").stdout
    assert "'OTHER' is not among receive.allowed_ae_titles" in caplog.text
    assert "it called 'OTHER', and this is 'PRECEDENT'" in caplog.text
    assert not list((tmp_path / "received").glob("*/*/*"))


def test_the_log_has_a_line_for_each_association(
    station: Any, send: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "indexer")
    port = station().port
    first = tmp_path / "one.dcm"
    first.write_bytes(encode(slice_of(1)))
    send(port, first, instance(tmp_path / "two.dcm", "1.2.826.2", b""))
    assert echo(port, title="OTHER")
    deadline = time.monotonic() + 10
    while "association of" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "association of 'PACS' at 127.0.0.1: 2 instances taken, 0 refused; " in caplog.text
    assert "association of 'OTHER'" not in caplog.text
    assert "HIDDEN" not in caplog.text.upper()


def stored_as(association: Any, sop_class: str, sop: str) -> int:
    """The status for an instance that is sent in the context of CT as one of another class."""
    (context,) = association.accepted_contexts
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, sop
    request.DataSet = BytesIO(b"any bytes")
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return answer.Status


def test_a_class_that_is_not_its_context_s_is_refused_and_the_log_lists_what_was(
    station: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As dicom-rs' sender does with what was not negotiated, and ends well."""
    running = station()
    known, unknown, find = "1.2.840.10008.5.1.4.1.1.88.33", PRIVATE, "1.2.840.10008.5.1.4.1.2.2.1"
    contexts = [build_context(CT, ImplicitVRLittleEndian), build_context(find)]
    association = AE("PACS").associate(LOCAL, running.port, contexts, ae_title="PRECEDENT")
    for number, sop_class in enumerate((known, known, unknown, find)):
        assert stored_as(association, sop_class, f"1.2.{number}") == 0x0122
    assert stored_as(association, CT, "1.2.9") == 0
    association.release()
    until(lambda: "association of" in caplog.text)
    assert running.files().keys() == {"1.2.9"}
    (line,) = [one.getMessage() for one in caplog.records if "association of" in one.getMessage()]
    assert ": 1 instances taken, 4 refused (2 of SOP class " + known + ": 0x0122, " in line
    assert f"1 of SOP class {unknown}: 0x0122, " in line
    assert f"SOP classes not taken: {find}; " in line


def test_without_a_list_of_senders_it_does_not_start() -> None:
    with pytest.raises(SettingsError, match="PRECEDENT_RECEIVE__ALLOWED_AE_TITLES"):
        StoreScp(ReceiveSettings())


@pytest.mark.parametrize("title", ["   ", "A\\B", "TITEL\u00c4", "A\nB"])
def test_what_is_no_ae_title_is_told(title: str) -> None:
    with pytest.raises(SettingsError, match="PRECEDENT_RECEIVE__AE_TITLE"):
        StoreScp(ReceiveSettings(ae_title=title, allowed_ae_titles=("PACS",)))
    with pytest.raises(SettingsError, match="PRECEDENT_RECEIVE__ALLOWED_AE_TITLES"):
        StoreScp(ReceiveSettings(allowed_ae_titles=("PACS", title)))


def test_a_port_in_use_is_told(station: Any, tmp_path: Path) -> None:
    first = station()
    second = StoreScp(ReceiveSettings(port=first.port, allowed_ae_titles=("PACS",)))
    with pytest.raises(SettingsError, match=f"{LOCAL}:{first.port}.*--port"):
        second.start(first.inbox)


def test_only_one_process_receives_into_a_folder(station: Any, tmp_path: Path) -> None:
    station()
    with pytest.raises(StoreLocked, match="another process"):
        Inbox(tmp_path / "received", ReceiveSettings(), 2**31)


def test_more_associations_than_allowed_wait(station: Any, caplog: Any) -> None:
    port = station(max_associations=1).port
    association = AE("PACS").associate(LOCAL, port, [build_context(CT)], ae_title="PRECEDENT")
    assert association.is_established
    assert "Local Limit Exceeded" in echo(port)
    association.release()
    deadline = time.monotonic() + 10
    while (said := echo(port)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert said == ""
    assert "receive.max_associations are open" in caplog.text


# What is stored.


@pytest.mark.parametrize(
    ("syntax", "option"),
    [
        (ExplicitVRLittleEndian, "-xe"),
        (ImplicitVRLittleEndian, "-xi"),
        (ExplicitVRBigEndian, "-xb"),
        (DeflatedExplicitVRLittleEndian, "-xd"),
        (RLELossless, "-xr"),
    ],
)
def test_dcmtk_stores_one_by_one(station: Any, tmp_path: Path, syntax: Any, option: str) -> None:
    running = station()
    sent = {}
    for seed in range(1, 6):
        made = slice_of(seed)
        if syntax == RLELossless:
            made.file_meta = pydicom.dataset.FileMetaDataset()
            made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            made.compress(RLELossless, generate_instance_uid=False)
        path = tmp_path / f"{seed}.dcm"
        path.write_bytes(encode(made, syntax))
        sent[made.SOPInstanceUID] = path
    done = store(running.port, "-R", option, *sent.values())
    assert done.returncode == 0, done.stdout
    stored = running.files()
    assert stored.keys() == sent.keys()
    for uid, path in stored.items():
        before, after = pydicom.dcmread(sent[uid]), pydicom.dcmread(path)
        assert after.file_meta.TransferSyntaxUID == syntax
        assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID == uid
        assert after.file_meta.MediaStorageSOPClassUID == CT
        assert np.array_equal(after.pixel_array, before.pixel_array)
        assert path.stat().st_mode & 0o077 == 0
    assert sum(path.stat().st_size for path in stored.values()) == running.inbox.waiting_bytes


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", "-xs"),
        ("MR_small_jp2klossless.dcm", "-xv"),
        ("MR_small_jpeg_ls_lossless.dcm", "-xt"),
        ("SC_rgb_jpeg_dcmtk.dcm", "-xy"),
        ("JPGExtended.dcm", "-xx"),
        ("JPEG2000.dcm", "-xw"),
    ],
)
def test_compressed_instances_are_stored_as_they_are(station: Any, name: str, option: str) -> None:
    running = station()
    before = pydicom.dcmread(SAMPLES / name)
    done = store(running.port, "-R", option, SAMPLES / name)
    assert done.returncode == 0, done.stdout
    after = pydicom.dcmread(running.files()[before.SOPInstanceUID])
    assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
    assert after.PixelData == before.PixelData


def test_every_transfer_syntax_is_taken_byte_for_byte(
    station: Any, send: Any, tmp_path: Path
) -> None:
    """No byte is looked at: these data sets are none."""
    running = station()
    rng = np.random.default_rng(7)
    sent = {}
    for number, syntax in enumerate(ALL_TRANSFER_SYNTAXES):
        data = rng.bytes(int(rng.integers(2, 300_000)))
        sent[f"1.2.{number}"] = instance(tmp_path / f"{number}", f"1.2.{number}", data, syntax)
    answers = send(running.port, *sent.values())
    assert [answer.Status for answer in answers] == [0] * len(sent)
    stored = running.files()
    assert stored.keys() == sent.keys()
    for uid, path in stored.items():
        assert data_of(path) == data_of(sent[uid])
        assert path.read_bytes() == sent[uid].read_bytes()


def test_every_storage_class_is_taken(station: Any) -> None:
    port = station().port
    classes = [context.abstract_syntax for context in AllStoragePresentationContexts]
    for start in range(0, len(classes), 128):
        contexts = [build_context(one, ImplicitVRLittleEndian) for one in classes[start:][:128]]
        association = AE("PACS").associate(LOCAL, port, contexts, ae_title="PRECEDENT")
        assert len(association.accepted_contexts) == len(contexts)
        association.release()


RETIRED = {
    "1.2.840.10008.5.1.4.1.1.6": "Ultrasound Image Storage (Retired)",
    "1.2.840.10008.5.1.4.1.1.3": "Ultrasound Multi-frame Image Storage (Retired)",
    "1.2.840.10008.5.1.4.1.1.5": "Nuclear Medicine Image Storage (Retired)",
    "1.2.840.10008.5.1.4.1.1.77.1": "VL Image Storage - Trial (Retired)",
    "1.2.840.10008.5.1.4.1.1.12.3": "X-Ray Angiographic Bi-Plane Image Storage (Retired)",
}
PRIVATE = "1.2.840.113619.4.26"


def of_class(path: Path, sop_class: str, sop: str) -> Path:
    path.write_bytes(file_head(sop_class, sop, ExplicitVRLittleEndian) + b"any bytes")
    return path


def test_retired_storage_classes_are_taken(station: Any, send: Any, tmp_path: Path) -> None:
    """PS3.6, table A-1. Old devices send them still."""
    running = station()
    files = [
        of_class(tmp_path / f"{number}", sop_class, f"1.2.9.{number}")
        for number, sop_class in enumerate(RETIRED)
    ]
    assert [answer.Status for answer in send(running.port, *files)] == [0] * len(files)
    assert sorted(running.files()) == [f"1.2.9.{number}" for number in range(len(files))]


def test_every_storage_class_of_the_standard_s_registry_is_negotiated(station: Any) -> None:
    """All of PS3.6 table A-1 that are called storage and are about patients, retired or not."""
    port = station().port
    classes = [
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and uid.startswith("1.2.840.10008.5.1.4.1.1.")
        # Luggage and materials, protocols and inventories are no patients.
        if not uid.removeprefix("1.2.840.10008.5.1.4.1.1.").startswith(
            ("200.", "201", "501", "601")
        )
    ]
    assert len(classes) > 128  # more than one association can negotiate (PS3.8 9.3.2)
    for start in range(0, len(classes), 128):
        contexts = [build_context(one, ImplicitVRLittleEndian) for one in classes[start:][:128]]
        association = AE("PACS").associate(LOCAL, port, contexts, ae_title="PRECEDENT")
        refused = [one.abstract_syntax for one in association.rejected_contexts]
        association.release()
        assert refused == []


def test_private_classes_are_taken_where_they_are_named(
    station: Any, send: Any, tmp_path: Path
) -> None:
    file = of_class(tmp_path / "private", PRIVATE, "1.2.9.9")
    running = station(sop_classes=(PRIVATE,))
    assert [answer.Status for answer in send(running.port, file)] == [0]
    assert list(running.files()) == ["1.2.9.9"]


def test_private_classes_are_not_taken_otherwise(station: Any) -> None:
    contexts = [build_context("1.2.840.113619.4.27", ExplicitVRLittleEndian), build_context(CT)]
    association = AE("PACS").associate(LOCAL, station().port, contexts, ae_title="PRECEDENT")
    assert [one.abstract_syntax for one in association.accepted_contexts] == [CT]
    association.release()


def test_of_several_transfer_syntaxes_explicit_little_endian_is_chosen(station: Any) -> None:
    offered = [ImplicitVRLittleEndian, RLELossless, ExplicitVRLittleEndian]
    association = AE("PACS").associate(
        LOCAL, station().port, [build_context(CT, offered)], ae_title="PRECEDENT"
    )
    assert association.accepted_contexts[0].transfer_syntax == [ExplicitVRLittleEndian]
    association.release()


def test_several_associations_at_once(station: Any, tmp_path: Path) -> None:
    running = station()
    expected = set()
    senders = []
    for sender in range(4):
        folder = tmp_path / f"{sender}"
        folder.mkdir()
        for number in range(15):
            made = slice_of(100 * sender + number)
            (folder / f"{number}.dcm").write_bytes(encode(made))
            expected.add(made.SOPInstanceUID)
        command = storescu(running.port, "-R", "+sd", folder)
        senders.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    for process in senders:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert running.files().keys() == expected


def test_the_same_again_changes_nothing(station: Any, send: Any, tmp_path: Path) -> None:
    running = station()
    path = instance(tmp_path / "one", "1.2.3", b"original..")
    send(running.port, path)
    running.inbox.take()
    running.inbox.end_round()
    stored = running.files()["1.2.3"]
    before = stored.stat()
    (answer,) = send(running.port, path)
    after = stored.stat()
    assert answer.Status == 0
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert running.inbox.waiting_bytes == 0
    assert running.inbox.take() == []


@pytest.mark.parametrize("corrected", [b"corrected.", b"longer than before"])
def test_a_corrected_instance_replaces_the_earlier_one(
    station: Any, send: Any, tmp_path: Path, corrected: bytes
) -> None:
    running = station()
    send(running.port, instance(tmp_path / "one", "1.2.3", b"original.."))
    assert len(running.inbox.take()) == 1
    running.inbox.end_round()
    stored = running.files()["1.2.3"]
    before = stored.stat().st_mtime_ns
    (answer,) = send(running.port, instance(tmp_path / "one", "1.2.3", corrected))
    assert answer.Status == 0
    assert data_of(stored) == corrected
    assert stored.stat().st_mtime_ns != before
    assert running.inbox.take() == [stored]


# What is not stored.


@pytest.mark.parametrize("uid", ["../../../evil", "1.2.3/4", "abc", ".1.2", "1.2.3\n4"])
def test_no_path_is_made_of_what_is_no_uid(
    station: Any,
    send: Any,
    tmp_path: Path,
    uid: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    running = station()
    bad, good = instance(tmp_path / "bad", uid, b"any"), instance(tmp_path / "good", "1.2", b"any")
    there = set(tmp_path.rglob("*"))
    refused, taken = send(running.port, bad, good)
    assert (refused.Status, refused.ErrorComment) == (
        CANNOT_UNDERSTAND,
        "SOP Class UID or SOP Instance UID is not valid",
    )
    assert taken.Status == 0
    assert running.files().keys() == {"1.2"}
    new = set(tmp_path.rglob("*")) - there
    assert [path.name for path in new if path.is_file()] == ["1.2.dcm"]
    assert "'PACS' was refused" in caplog.text
    said = caplog.text + "".join(capfd.readouterr())
    assert uid not in said.replace(CT, "")


def test_an_instance_that_is_too_large_is_let_go_by(
    station: Any, send: Any, tmp_path: Path
) -> None:
    running = station(max_file_bytes=100_000)
    large = instance(tmp_path / "large", "1.1", bytes(5_000_000))
    refused, taken = send(running.port, large, instance(tmp_path / "small", "1.2", b"any"))
    assert (refused.Status, refused.ErrorComment) == (
        CANNOT_UNDERSTAND,
        "it is larger than limits.max_file_bytes",
    )
    assert taken.Status == 0
    assert running.files().keys() == {"1.2"}
    assert not list(running.inbox.incoming.iterdir())


def test_on_a_full_disk_the_sender_is_to_come_again(
    station: Any, tmp_path: Path, caplog: Any
) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(encode(slice_of(1)))
    running = station(min_free_bytes=2**60)
    done = store(running.port, "-nh", path, path)
    # The sender has a name for the status, or else its number.
    assert re.search(rf"outofresources|0x{OUT_OF_RESOURCES:04x}", done.stdout.lower())
    assert not running.files()
    assert caplog.text.count("refused for now: too little free disk space") == 1
    running.close()
    running = station()
    assert store(running.port, path).returncode == 0
    assert running.files().keys() == {"1.2.826.1"}


def test_above_what_may_wait_the_sender_is_to_come_again(
    station: Any, send: Any, tmp_path: Path, caplog: Any
) -> None:
    running = station(max_waiting_bytes=250_000)
    files = [instance(tmp_path / f"{n}", f"1.{n}", bytes(100_000)) for n in range(3)]
    answers = send(running.port, *files)
    assert [answer.Status for answer in answers] == [0, 0, OUT_OF_RESOURCES]
    assert answers[2].ErrorComment == "too much waits to be indexed; send it again later"
    assert running.inbox.waiting_bytes == sum(path.stat().st_size for path in files[:2])
    running.inbox.take()
    assert send(running.port, files[2])[0].Status == OUT_OF_RESOURCES
    running.inbox.end_round()
    assert send(running.port, files[2])[0].Status == 0
    assert running.files().keys() == {"1.0", "1.1", "1.2"}
    assert "instances are taken again" in caplog.text


def test_nothing_that_was_sent_is_logged(
    station: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    running = station()
    path = tmp_path / "one.dcm"
    path.write_bytes(encode(slice_of(1)))
    assert store(running.port, path).returncode == 0
    said = caplog.text + "".join(capfd.readouterr())
    for secret in ("HIDDEN", "Hidden", "1.2.826"):
        assert secret not in said


# What breaks off.


def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_a_sender_that_dies_nothing_stays(station: Any, tmp_path: Path) -> None:
    running = station()
    path = large_image(tmp_path / "large.dcm", 100_000_000)
    with subprocess.Popen(storescu(running.port, path), stdout=subprocess.DEVNULL) as sender:
        try:
            until(lambda: running.inbox.waiting_bytes > 1_000_000)
        finally:
            sender.kill()
    until(lambda: running.inbox.waiting_bytes == 0)
    assert not list(running.inbox.incoming.iterdir())
    assert not running.files()


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """An SCP in a process of its own, and its port; it does not outlive its test."""
    command = [sys.executable, "-c", textwrap.dedent(SERVER), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.slow
def test_killed_in_the_middle_of_an_instance_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "received"
    small, large = tmp_path / "small.dcm", large_image(tmp_path / "large.dcm", 200_000_000)
    small.write_bytes(encode(slice_of(1)))
    with serving(folder) as (process, port):
        assert store(port, small).returncode == 0
        with subprocess.Popen(storescu(port, large), stdout=subprocess.DEVNULL) as sender:
            incoming = folder / "incoming"
            until(lambda: any(one.stat().st_size > 1_000_000 for one in incoming.iterdir()))
            os.kill(process.pid, signal.SIGKILL)
            sender.wait(30)
    assert [path.name for path in folder.glob("*/*/*")] == ["1.2.826.1.dcm"]
    with serving(folder) as (process, port):
        assert not list(incoming.iterdir())
        assert store(port, large).returncode == 0
        names = {path.name for path in folder.glob("*/*/*")}
        assert names == {"1.2.826.1.dcm", "1.2.826.2.dcm"}
        # A data set is not gathered in memory.
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        assert int(peak.split()[1]) * 1024 < large.stat().st_size


@pytest.mark.slow
def test_a_stop_lets_associations_end(station: Any, tmp_path: Path) -> None:
    running = station()
    for seed in range(60):
        (tmp_path / f"{seed}.dcm").write_bytes(encode(slice_of(seed)))
    command = storescu(running.port, "-R", "+sd", "+sp", "*.dcm", tmp_path)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as sender:
        until(lambda: len(running.files()) > 2)
        running.scp.stop(30.0)
        assert sender.wait(1) == 0
    assert len(running.files()) == 60
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOCAL, running.port), timeout=5)


def test_a_stop_cuts_off_those_that_do_not_end(station: Any, tmp_path: Path) -> None:
    running = station()
    association = AE("PACS").associate(
        LOCAL, running.port, [build_context(CT)], ae_title="PRECEDENT"
    )
    with socket.create_connection((LOCAL, running.port)) as silent:
        silent.sendall(b"\x01\x00")
        started = time.monotonic()
        running.scp.stop(0.2)
        assert time.monotonic() - started < 5
    until(lambda: not association.is_established)


def test_whoever_connects_and_leaves_takes_no_place(station: Any) -> None:
    running = station(max_associations=1)
    for _ in range(3):
        socket.create_connection((LOCAL, running.port)).close()
    with socket.create_connection((LOCAL, running.port)) as half:
        half.sendall(b"\x01\x00\x00\x00")
    until(lambda: echo(running.port) == "", 5.0)
    started = time.monotonic()
    running.scp.stop(0.0)
    assert time.monotonic() - started < 5


def test_a_pdu_that_claims_to_be_huge_ends_the_connection(station: Any) -> None:
    port = station().port
    with socket.create_connection((LOCAL, port), timeout=20) as stranger:
        stranger.sendall(b"\x01\x00\xff\xff\xff\xff" + bytes(1000))
        started = time.monotonic()
        with suppress(ConnectionResetError):
            assert stranger.recv(1000) == b""
        assert time.monotonic() - started < 10
    assert echo(port) == ""


def pdata(*fragments: bytes) -> bytes:
    """A P-DATA-TF PDU (PS3.8, 9.3.5) of fragments in presentation context 1."""
    items = b"".join(struct.pack(">LB", 1 + len(one), 1) + one for one in fragments)
    return struct.pack(">BBL", 4, 0, len(items)) + items


@pytest.mark.parametrize(
    "pdus",
    [
        # Command set fragments, never the last one.
        [pdata(b"\x01" + bytes(30_000))] * 5,
        # A complete command set that is none.
        [pdata(b"\x03" + b"HIDDEN^SOMEBODY" * 20)],
        # A data set with no command set before it.
        [pdata(b"\x00" + b"HIDDEN^SOMEBODY"), pdata(b"\x02" + b"HIDDEN^SOMEBODY")],
    ],
    ids=["endless", "nonsense", "data set alone"],
)
def test_messages_that_make_no_sense_end_the_association(
    station: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], pdus: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    running = station()
    association = AE("PACS").associate(
        LOCAL, running.port, [build_context(CT)], ae_title="PRECEDENT"
    )
    connection = association.dul.socket.socket
    for pdu in pdus:
        with suppress(OSError):
            connection.sendall(pdu)
    until(lambda: not association.is_established)
    assert echo(running.port) == ""
    assert running.inbox.waiting_bytes == 0
    assert not list(running.inbox.incoming.iterdir())
    said = caplog.text + "".join(capfd.readouterr())
    assert "HIDDEN" not in said
    assert "Traceback" not in said
