"""What answers have as Patient ID: never what the index keeps, which is the same for all tenants.

A pseudonym here is that of the index, encrypted as one block under a key of the tenant's. So it
leads back to the patient's studies, for this service alone, and a table of pseudonyms is not
needed.
"""

import hashlib
import hmac
import re

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from engine.settings import Settings
from indexer.datadir.layout import DataDir

__all__ = ["Patients"]

_BLOCK = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Patients:
    """Pseudonyms of a tenant's patients.

    Args:
        settings: whether there are any, and where the key of the index is.
        tenant: whose patients they are.
    """

    def __init__(self, settings: Settings, tenant: str) -> None:
        self._cipher = None
        if settings.qido.patients == "pseudonym":
            key = DataDir(settings.data_dir).pseudonym_key(settings)
            own = hmac.new(key, f"qido-patient\0{tenant}".encode(), hashlib.sha256).digest()
            # What is encrypted is one block, different for each patient.
            self._cipher = Cipher(algorithms.AES(own), modes.ECB())  # noqa: S305

    def told(self, indexed: str | None) -> str | None:
        """The pseudonym of a patient; None = nothing is told of them. indexed: what the index
        has."""
        if self._cipher is None or indexed is None or not _BLOCK.fullmatch(indexed):
            return None
        return self._cipher.encryptor().update(bytes.fromhex(indexed)).hex()

    def indexed(self, told: str) -> str | None:
        """What the index has for a patient with this pseudonym; None = it is none."""
        if self._cipher is None or not _BLOCK.fullmatch(told):
            return None
        return self._cipher.decryptor().update(bytes.fromhex(told)).hex()
