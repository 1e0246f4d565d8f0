"""A real Orthanc with its DICOMweb plugin, on loopback, for as long as a test wants it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from services.needed import package
from services.server import Server, free_ports

__all__ = ["Orthanc"]


class Orthanc(Server):
    """A PACS of its own: use it as a context manager. Ports and what it holds last until then.

    Args:
        user: name and password that it asks for; None = it asks nobody.
        modalities: AE title, host and port of nodes that it may send to, by name.
        more: further entries of its configuration.
    """

    name = "orthanc"
    aet = "ORTHANC"
    stop_seconds = 20.0

    def __init__(
        self,
        *,
        user: tuple[str, str] | None = None,
        modalities: Mapping[str, tuple[str, str, int]] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self._binary, self._plugin = package("orthanc"), package("orthanc-dicomweb")
        super().__init__()
        (self.dicom_port,) = free_ports(1)
        self.user = user
        self._modalities = dict(modalities or {})
        self._more = dict(more or {})
        self._rest = requests.Session()
        self._rest.trust_env = False
        self._rest.auth = user

    def close(self) -> None:
        super().close()
        self._rest.close()

    @property
    def root(self) -> str:
        """Of its own REST API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Of its DICOMweb API."""
        return f"{self.root}/dicom-web"

    def _command(self) -> Sequence[str | Path]:
        configuration = self.folder / "orthanc.json"
        configuration.write_text(json.dumps(self._configuration()))
        return [self._binary, configuration]

    def _answers(self) -> bool:
        try:
            return self._rest.get(f"{self.root}/system", timeout=5).ok
        except requests.RequestException:
            return False

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

    def _configuration(self) -> dict[str, Any]:
        return {
            "Name": "Test",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "Plugins": [str(self._plugin)],
            "HttpPort": self.port,
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
