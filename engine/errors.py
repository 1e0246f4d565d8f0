"""The exceptions of this project, in one tree.

Every message says what is wrong, with which value, and what to do about it.

PrecedentError
 ├── SettingsError          a setting is missing, unknown or out of range
 ├── ModelError             a checkpoint is absent, damaged or does not fit
 ├── TrainingDataError      nothing to learn from, or not readable as asked
 ├── QueryError             a search was asked that cannot be answered
 │    ├── ImageNotFound     no indexed image has this id
 │    └── QueryExpired      an upload that was searched for is not kept any more
 ├── StoreError             the vector store cannot do what was asked
 │    ├── StoreNotFound     there is no index at this place
 │    ├── StoreLocked       another process holds the index
 │    ├── StoreAway         the server is away or busy, and was so for longer than is waited
 │    ├── StoreLimited      a limit that the server sets stands in the way
 │    └── FingerprintMismatch   the index belongs to another model
 ├── LedgerError            the record of an archive cannot be read or written
 │    └── AuditError        an access cannot be recorded, or the record of accesses not be read
 ├── StorageError           an object store refuses, or has something else than was put
 │    └── StorageAway       … does not answer, or is busy
 ├── BackupError            a backup cannot be made, is not whole, or cannot be restored
 ├── DiskFull               the data folder has no room for more
 ├── SourceError            where images come from cannot be reached, or refuses
 │    ├── SourceGone        the file of an indexed image is not there any more
 │    └── SourceChanged     … or is another one by now
 ├── JobError               a job cannot be made, found, or changed as asked
 │    └── JobNotFound       there is no job of this number
 ├── DocumentError          a DICOM document cannot be made of an answer, or not be sent
 │    ├── DestinationUnknown   the settings name no such destination
 │    └── SendingNotFound   there is no sending of this id
 ├── ErasureError           an erasure cannot be done, or a report of one not be believed
 ├── AccessError            a key or session cannot be made or found
 │    ├── KeyNotFound       there is no key of this id
 │    ├── NotAuthenticated  it is not known who asks
 │    ├── NotAllowed        whoever asks may not have this
 │    └── ProviderUnavailable   the identity provider cannot be asked
 └── ImageRefused           one image cannot be used; carries a RefusalReason
"""

from enum import StrEnum

__all__ = [
    "AccessError",
    "AuditError",
    "BackupError",
    "DestinationUnknown",
    "DiskFull",
    "DocumentError",
    "ErasureError",
    "FingerprintMismatch",
    "ImageNotFound",
    "ImageRefused",
    "JobError",
    "JobNotFound",
    "KeyNotFound",
    "LedgerError",
    "ModelError",
    "NotAllowed",
    "NotAuthenticated",
    "PrecedentError",
    "ProviderUnavailable",
    "QueryError",
    "QueryExpired",
    "RefusalReason",
    "SendingNotFound",
    "SettingsError",
    "SourceChanged",
    "SourceError",
    "SourceGone",
    "StorageAway",
    "StorageError",
    "StoreAway",
    "StoreError",
    "StoreLimited",
    "StoreLocked",
    "StoreNotFound",
    "TrainingDataError",
]


class PrecedentError(Exception):
    """Base of all errors that Precedent raises on purpose.

    ``code`` is stable: scripts, reports and problem+json documents carry it.
    """

    code = "error"


class SettingsError(PrecedentError):
    code = "settings"


class ModelError(PrecedentError):
    code = "model"


class TrainingDataError(PrecedentError):
    code = "training-data"


class QueryError(PrecedentError):
    code = "query"


class ImageNotFound(QueryError):
    code = "image-not-found"


class QueryExpired(QueryError):
    code = "query-expired"


class StoreError(PrecedentError):
    code = "store"


class StoreNotFound(StoreError):
    code = "store-not-found"


class StoreLocked(StoreError):
    code = "store-locked"


class StoreAway(StoreError):
    code = "store-away"


class StoreLimited(StoreError):
    code = "store-limit"


class FingerprintMismatch(StoreError):
    code = "model-mismatch"


class LedgerError(PrecedentError):
    code = "ledger"


class StorageError(PrecedentError):
    code = "storage"


class StorageAway(StorageError):
    code = "storage-away"


class BackupError(PrecedentError):
    code = "backup"


class DiskFull(PrecedentError):
    code = "disk-full"


class SourceError(PrecedentError):
    code = "source"


class SourceGone(SourceError):
    code = "source-gone"


class SourceChanged(SourceError):
    code = "source-changed"


class JobError(PrecedentError):
    code = "job"


class JobNotFound(JobError):
    code = "job-not-found"


class DocumentError(PrecedentError):
    code = "document"


class DestinationUnknown(DocumentError):
    code = "destination-unknown"


class SendingNotFound(DocumentError):
    code = "sending-not-found"


class AuditError(LedgerError):
    code = "audit"


class ErasureError(PrecedentError):
    code = "erasure"


class AccessError(PrecedentError):
    code = "access"


class KeyNotFound(AccessError):
    code = "key-not-found"


class NotAuthenticated(AccessError):
    code = "not-authenticated"


class NotAllowed(AccessError):
    """subject, name: of somebody whom the identity provider knows, and who may do nothing here: for
    the audit log. They are not part of the message."""

    code = "not-allowed"

    def __init__(
        self, message: str, *, subject: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(message)
        self.subject = subject
        self.name = name


class ProviderUnavailable(AccessError):
    code = "identity-provider"


class RefusalReason(StrEnum):
    """Why an instance was not indexed. The values are stable: reports and scripts use them."""

    EMPTY_FILE = "empty-file"
    NOT_AN_IMAGE = "not-an-image"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    NO_PIXELS = "no-pixels"
    NOT_A_PICTURE = "not-a-picture"
    UNSUPPORTED_SYNTAX = "unsupported-transfer-syntax"
    UNSUPPORTED_PIXELS = "unsupported-pixels"
    TOO_SMALL = "too-small"
    TOO_LARGE = "too-large"
    NESTED_TOO_DEEP = "nested-too-deep"
    TOO_SLOW = "too-slow"
    READER_DIED = "reader-died"
    WORKER_DIED = "worker-died"
    CONFLICTING_UID = "conflicting-uid"


class ImageRefused(PrecedentError):
    """One image cannot be used.

    Args:
        reason: the stable code under which refusals are counted.
        detail: one sentence with the offending value; never text about a patient.
    """

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
        self.code = reason.value

    def __reduce__(self) -> tuple[type["ImageRefused"], tuple[RefusalReason, str]]:
        return type(self), (self.reason, self.detail)
