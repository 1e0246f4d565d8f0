"""One client of an object store that speaks S3: which host it asks, how often, and what its errors
mean."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NoReturn
from urllib.parse import urlsplit

from engine.errors import SettingsError, StorageAway, StorageError
from engine.extras import install_command
from engine.storage_settings import StorageSettings

__all__ = ["StorageDenied", "check_library", "client_of", "is_missing", "saying"]

_CONNECT_SECONDS = 5.0
_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_DENIED = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "403"}
)
_SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_ELSEWHERE = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect", "301", "307"}
)
_BUSY = frozenset({"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout"})


class StorageDenied(StorageError):
    """The object store knows the key and does not allow this, or does not know the key."""


def check_library() -> None:
    """Raises SettingsError: what speaks S3 is not installed."""
    if find_spec("botocore") is None:
        raise SettingsError(
            "storage.thumbnails needs a library that is not installed; install it with "
            f"`{install_command('s3')}`"
        )


def client_of(settings: StorageSettings, attempts: int) -> Any:
    """A client that asks the endpoint of the settings, and nothing else; close it.

    Neither files nor variables of other programs, nor the machine's own address for credentials,
    have a say in it. Bytes that are put are signed, so that the server refuses others.

    attempts: how often a request is sent at most.

    Raises:
        SettingsError: the file of certificates cannot be read.
    """
    from botocore.config import Config
    from botocore.session import Session

    if settings.access_key is None or settings.secret_key is None or settings.endpoint is None:
        raise SettingsError("storage.thumbnails has no endpoint or no key; give both")
    if settings.ca_file is not None and not os.access(settings.ca_file, os.R_OK):
        raise SettingsError(
            f"setting storage.ca_file is {str(settings.ca_file)!r}, which is no readable file of "
            "certificates; name one in PEM"
        )
    session = Session(
        session_vars={
            "profile": (None, [], None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    client = session.create_client(
        "s3",
        region_name=settings.region,
        endpoint_url=settings.endpoint,
        aws_access_key_id=settings.access_key.get_secret_value(),
        aws_secret_access_key=settings.secret_key.get_secret_value(),
        verify=True if settings.ca_file is None else str(settings.ca_file),
        config=Config(
            signature_version="s3v4",
            # In the path the bucket makes no other host of the endpoint.
            s3={"addressing_style": "path", "payload_signing_enabled": True},
            connect_timeout=min(_CONNECT_SECONDS, settings.timeout_seconds),
            read_timeout=settings.timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=max(settings.connections, 10),
            proxies={},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    allowed = urlsplit(settings.endpoint).netloc

    def check_host(request: Any, **_: Any) -> None:
        if urlsplit(request.url).netloc != allowed:
            raise StorageError(
                f"the object store {allowed} names another host, which is not asked; give the "
                "address that it leads to as storage.endpoint"
            )

    client.meta.events.register("before-send.s3", check_host)
    return client


def is_missing(error: Exception) -> bool:
    """Whether this error of the library says that there is no such object."""
    return _code(error) in _MISSING


def _code(error: Exception) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


@contextmanager
def saying(settings: StorageSettings, what: str) -> Iterator[None]:
    """Turns errors of the library into ours.

    what: was to be done, as in "put thumbnails".

    Raises:
        StorageAway: the store does not answer or is busy. StorageDenied: it does not allow it.
        StorageError: it cannot be done for another reason.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError) as error:
        _raise(error, settings, what)


def _raise(error: Exception, settings: StorageSettings, what: str) -> NoReturn:
    from botocore.exceptions import ClientError, SSLError

    where = f"the object store {settings.endpoint}"
    if not isinstance(error, ClientError):
        if isinstance(error, SSLError):
            raise StorageError(
                f"{where} shows a certificate that is not trusted; name the one that signed it in "
                "storage.ca_file"
            ) from None
        raise StorageAway(
            f"{where} does not answer ({type(error).__name__}), so that it could not {what}; see "
            "that it runs and can be reached from here, and try again"
        ) from None
    code = _code(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        raise StorageError(
            f"{where} has no bucket {settings.bucket!r}; make it, or correct storage.thumbnails"
        ) from None
    if code in _SKEWED:
        raise StorageError(
            f"{where} has another time than this machine; set both clocks, as by NTP"
        ) from None
    if code in _ELSEWHERE:
        raise StorageError(
            f"{where} has the bucket {settings.bucket!r} elsewhere ({code}); correct "
            "storage.region or storage.endpoint"
        ) from None
    if code in _DENIED or status in (401, 403):
        raise StorageDenied(
            f"{where} does not let this key {what} in the bucket {settings.bucket!r} ({code}); "
            "check PRECEDENT_STORAGE__ACCESS_KEY and _SECRET_KEY, and what the key may do there"
        ) from None
    if code in _BUSY or status >= 500 or status == 429:
        raise StorageAway(f"{where} is busy or fails ({code}); try again later") from None
    raise StorageError(
        f"{where} does not {what} in the bucket {settings.bucket!r} ({code}, HTTP {status}); its "
        "log says why"
    ) from None
