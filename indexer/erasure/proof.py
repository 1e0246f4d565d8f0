"""Reports of what was erased, signed by the key of the installation.

The signature (Ed25519, RFC 8032) is over the report as canonical JSON: names sorted, no blanks,
ASCII alone. Whoever has the public key can check it without this program.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from engine.errors import ErasureError
from indexer.datadir.layout import DataDir

__all__ = ["asked_hash", "canonical", "public_key", "signed", "verified"]

_ALGORITHM = "Ed25519"
_KEY_BYTES = 32


def canonical(document: Mapping[str, Any]) -> bytes:
    """The one way to write a document."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def asked_hash(key: bytes, tenant: str, kind: str, value: str) -> str:
    """A keyed hash of what was asked to be erased (HMAC-SHA256, hex): who knows it, and has the
    key of the pseudonyms, can tell that a report is about it, and nobody else.

    Args:
        value: of a patient the pseudonym.
    """
    message = f"erased\0{tenant}\0{kind}\0{value}".encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def public_key(data_dir: DataDir) -> str:
    """The installation's public key, in base64; its private one is made where there is none.

    Raises:
        SettingsError: the file of the private one is damaged.
    """
    return _written(_private(data_dir).public_key())


def signed(report: Mapping[str, Any], data_dir: DataDir) -> bytes:
    """The report with its signature, as JSON for people and programs.

    Raises:
        SettingsError: the file of the key is damaged.
    """
    key = _private(data_dir)
    signature = {
        "algorithm": _ALGORITHM,
        "public_key": _written(key.public_key()),
        "value": base64.b64encode(key.sign(canonical(report))).decode(),
    }
    return json.dumps({"report": report, "signature": signature}, indent=1).encode() + b"\n"


def verified(path: Path, trusted: str) -> dict[str, Any]:
    """The report in a file, if the installation with this public key (base64) signed it.

    Raises:
        ErasureError: it did not, or the report was changed, or the file has none.
    """
    try:
        document = json.loads(path.read_bytes())
        report, signature = document["report"], document["signature"]
        named = str(signature["public_key"])
        value = base64.b64decode(signature["value"], validate=True)
        if document.keys() != {"report", "signature"} or signature["algorithm"] != _ALGORITHM:
            raise ValueError("it has something else")
        if base64.b64encode(value).decode() != signature["value"]:
            raise ValueError("its signature is written otherwise")
        text = canonical(report)
    except OSError as error:
        raise ErasureError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ErasureError(
            f"{path} is no report of `precedent erase` ({type(error).__name__}); name the file "
            "that it wrote"
        ) from None
    if not hmac.compare_digest(named, trusted):
        raise ErasureError(
            f"{path} is signed by the key {named[:64]}, not by {trusted}; name the data folder of "
            "the installation that wrote it, or its public key with --key"
        )
    try:
        _parsed(trusted).verify(value, text)
    except InvalidSignature:
        raise ErasureError(
            f"{path} was changed after it was signed, or something else was signed; take it for "
            "no proof"
        ) from None
    return dict(report)


def _private(data_dir: DataDir) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(data_dir.erasure_key()[:_KEY_BYTES])


def _written(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes_raw()).decode()


def _parsed(written: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(written, validate=True))
    except (binascii.Error, ValueError):
        raise ErasureError(
            f"{written[:64]!r} is no public key; give what `precedent erase` printed, 44 characters"
        ) from None
