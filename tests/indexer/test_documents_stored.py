"""Documents stored over C-STORE and STOW-RS at nodes that answer in all the ways nodes do."""

import gc
import io
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from dicom_files import dataset, encode
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

from engine.documents_settings import DicomDestination, StowDestination
from engine.errors import SettingsError
from indexer.documents import cstore, stow
from indexer.documents.delivery import Unreachable
from indexer.documents.making import Document


def document(number: int) -> Document:
    sop = f"1.2.9.{number}"
    made = dataset(
        SOPClassUID=ComprehensiveSRStorage,
        SOPInstanceUID=sop,
        StudyInstanceUID="1.2.9",
        PatientName="Müller^Anna",
        SpecificCharacterSet="ISO_IR 192",
    )
    return Document(encode(made), "1.2.9", sop, ComprehensiveSRStorage)


class Node:
    """A node that stores in Implicit VR alone, with these statuses, and commits itself at once."""

    def __init__(self, statuses: list[int], *, commits: bool) -> None:
        self.statuses, self.stored = statuses, []
        self._ae = AE("NODE")
        self._ae.require_called_aet = True
        self._ae.add_supported_context(ComprehensiveSRStorage, ImplicitVRLittleEndian)
        if commits:
            self._ae.add_supported_context(StorageCommitmentPushModel)

    def store(self, event: Any) -> int:
        self.stored.append(event.dataset)
        return self.statuses[len(self.stored) - 1]

    def commit(self, event: Any) -> tuple[int, None]:
        asked = event.action_information
        said = Dataset()
        said.TransactionUID = asked.TransactionUID
        said.ReferencedSOPSequence = asked.ReferencedSOPSequence
        threading.Timer(0.05, self._report, [event.assoc, said]).start()
        return 0x0000, None

    def _report(self, link: Any, said: Dataset) -> None:
        link.send_n_event_report(said, 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")

    @contextmanager
    def running(self, certificate: Path | None = None) -> Iterator[DicomDestination]:
        """certificate: of the node, which then takes TLS alone, from who has this one too."""
        context = None
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
            context.load_cert_chain(certificate, certificate.with_name("key.pem"))
            context.verify_mode = ssl.CERT_REQUIRED
        handlers = [(evt.EVT_C_STORE, self.store), (evt.EVT_N_ACTION, self.commit)]
        server = self._ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=context
        )
        try:
            yield DicomDestination(
                kind="dicom",
                ae_title="NODE",
                host="127.0.0.1",
                port=server.server_address[1],
                timeout_seconds=5,
                commitment_seconds=5,
            )
        finally:
            server.shutdown()


def test_a_node_answers_for_each_document() -> None:
    node = Node([0x0000, 0xB000, 0xA700, 0x0110], commits=True)
    with node.running() as to:
        delivery = cstore.store("pacs", to, [document(n) for n in range(4)])
    assert [(one.state, one.status) for one in delivery.fates] == [
        ("stored", "0x0000"),
        ("stored", "0xB000"),
        ("waiting", "0xA700"),
        ("refused", "0x0110"),
    ]
    assert delivery.commitment == "asked"
    assert [one.committed for one in delivery.fates] == [True, True, None, None]
    assert {str(one.PatientName) for one in node.stored} == {"Müller^Anna"}


# pynetdicom leaves the socket of a connection that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_with_tls_is_trusted_by_its_certificate_and_wants_ours(certificate: Path) -> None:
    node = Node([0x0000] * 2, commits=True)
    own = {"cert_file": certificate, "key_file": certificate.with_name("key.pem")}
    with node.running(certificate) as to:
        known = to.model_copy(update={"tls": True, "ca_file": certificate, **own})
        delivery = cstore.store("pacs", known, [document(0)])
        assert (delivery.fates[0].state, delivery.fates[0].committed) == ("stored", True)
        for change in ({"ca_file": None}, {"tls": False}, {"cert_file": None, "key_file": None}):
            with pytest.raises(Unreachable, match=r"cannot be reached.*ca_file"):
                cstore.store("pacs", known.model_copy(update=change), [document(1)])
        missing = known.model_copy(update={"ca_file": certificate.with_name("none.pem")})
        with pytest.raises(SettingsError, match=r"destinations\.pacs"):
            cstore.store("pacs", missing, [document(1)])
    assert len(node.stored) == 1
    gc.collect()


# pynetdicom leaves the socket of a connection that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_without_commitment_and_one_that_is_not_there() -> None:
    with Node([0x0000], commits=False).running() as to:
        assert cstore.store("pacs", to, [document(0)]).commitment == "not-offered"
        other = to.model_copy(update={"ae_title": "OTHER"})
        with pytest.raises(Unreachable, match=r"refuses the association.*destinations\.pacs"):
            cstore.store("pacs", other, [document(0)])
    with pytest.raises(Unreachable, match="cannot be reached"):
        cstore.store("pacs", to, [document(0)])
    gc.collect()


class _Face(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.asked.append((self.path, dict(self.headers), self.rfile.read(length)))
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    found = HTTPServer(("127.0.0.1", 0), _Face)
    found.asked, found.answer = [], (200, b"{}")
    thread = threading.Thread(target=found.serve_forever, args=(0.02,))
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def test_a_server_answers_for_each_document(server: Any) -> None:
    url = f"http://127.0.0.1:{server.server_port}/dicom-web/"
    to = StowDestination(kind="stow", url=url, token="a-token")
    some = (
        b'{"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.9.0"]}}]},'
        b'"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.9.1"]},'
        b'"00081197": {"vr": "US", "Value": [272]}}]}}'
    )
    for answer, states in (
        ((200, b"{}"), ["stored", "stored"]),
        ((202, some), ["stored", "refused"]),
        ((409, b"no JSON"), ["refused", "refused"]),
        ((401, b""), ["refused", "refused"]),
        ((302, b""), ["refused", "refused"]),
    ):
        server.answer = answer
        fates = stow.store("pacs", to, [document(0), document(1)]).fates
        assert [one.state for one in fates] == states
    server.answer = (503, b"")
    with pytest.raises(Unreachable, match="HTTP 503"):
        stow.store("pacs", to, [document(0)])
    path, headers, body = server.asked[0]
    assert (path, headers["Authorization"]) == ("/dicom-web/studies", "Bearer a-token")
    assert headers["Content-Type"].startswith('multipart/related; type="application/dicom"')
    file = body.split(b"\r\n\r\n", 1)[1]
    assert dcmread(io.BytesIO(file), stop_before_pixels=True).SOPInstanceUID == "1.2.9.0"
