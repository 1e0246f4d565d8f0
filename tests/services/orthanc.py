"""A real Orthanc with its DICOMweb plugin, on loopback, for as long as a test wants it."""

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from services.needed import package

__all__ = ["Orthanc"]

_START_SECONDS, _STOP_SECONDS = 60.0, 20.0


class Orthanc:
    """A PACS of its own: use it as a context manager. Ports and what it holds last until then.

    Args:
        user: name and password that it asks for; None = it asks nobody.
        modalities: AE title, host and port of nodes that it may send to, by name.
        more: further entries of its configuration.
    """

    aet = "ORTHANC"

    def __init__(
        self,
        *,
        user: tuple[str, str] | None = None,
        modalities: Mapping[str, tuple[str, str, int]] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.user = user
        self._modalities = dict(modalities or {})
        self._more = dict(more or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Orthanc":
        self._binary, self._plugin = package("orthanc"), package("orthanc-dicomweb")
        self._folder = tempfile.TemporaryDirectory(prefix="orthanc-")
        self.http_port, self.dicom_port = _free_ports(2)
        self._rest = requests.Session()
        self._rest.trust_env = False
        self._rest.auth = self.user
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._rest.close()
        self._folder.cleanup()

    @property
    def root(self) -> str:
        """Of its own REST API."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def url(self) -> str:
        """Of its DICOMweb API."""
        return f"{self.root}/dicom-web"

    def start(self) -> None:
        """Starts it, and returns when it answers; what it held before it still holds."""
        assert self._process is None
        folder = Path(self._folder.name)
        configuration = folder / "orthanc.json"
        configuration.write_text(json.dumps(self._configuration(folder)))
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, str(configuration)], stdout=log, stderr=log, cwd=folder
            )
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                if self._rest.get(f"{self.root}/system", timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            if self._process.poll() is not None or time.monotonic() > until:
                said = (folder / "log").read_text(errors="replace")[-2000:]
                self.kill()
                pytest.fail(f"Orthanc did not start; its last words:\n{said}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stops it in good order, if it runs. That takes it some seconds."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            finally:
                self.kill()

    def kill(self) -> None:
        """Stops it at once, as a power cut does, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def upload(self, files: Iterable[bytes]) -> list[str]:
        """Stores DICOM files; the identifiers that Orthanc gave the instances, in order."""
        return [self._post("/instances", data=content)["ID"] for content in files]

    def file(self, identifier: str) -> bytes:
        """The file of an instance as Orthanc holds it."""
        answer = self._rest.get(f"{self.root}/instances/{identifier}/file", timeout=30)
        answer.raise_for_status()
        return answer.content

    def delete(self, identifier: str) -> None:
        """Removes an instance."""
        answer = self._rest.delete(f"{self.root}/instances/{identifier}", timeout=30)
        answer.raise_for_status()

    def send(self, modality: str, identifiers: Iterable[str]) -> None:
        """Pushes instances to one of the ``modalities`` by C-STORE, until they are there."""
        wanted = {"Resources": list(identifiers), "Synchronous": True}
        self._post(f"/modalities/{modality}/store", json=wanted)

    def _post(self, path: str, **body: Any) -> Any:
        answer = self._rest.post(self.root + path, timeout=60, **body)
        answer.raise_for_status()
        return answer.json()

    def _configuration(self, folder: Path) -> dict[str, Any]:
        return {
            "Name": "Test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(self._plugin)],
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": self.aet,
            "DicomModalities": {name: list(node) for name, node in self._modalities.items()},
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": self.user is not None,
            "RegisteredUsers": dict([self.user]) if self.user else {},
            "UnknownSopClassAccepted": True,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **self._more,
        }


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; found together, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
