"""Which certificates of servers are trusted."""

import ssl
from pathlib import Path

from engine.errors import SettingsError

__all__ = ["trusting"]


def trusting(ca_file: Path | None, setting: str) -> ssl.SSLContext:
    """Trusts these certificates; None = those of the system.

    setting: full name of the one that names the file.

    Raises:
        SettingsError: the file cannot be read, or has no certificates.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError):
        raise SettingsError(
            f"setting {setting} is {str(ca_file)!r}, which is no readable file of certificates; "
            "name one in PEM"
        ) from None
