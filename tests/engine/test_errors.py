"""The exception tree is a promise: to those who catch, and to those who read its codes."""

import pickle
import re

import pytest

from engine import errors
from engine.errors import ImageRefused, PrecedentError, RefusalReason

TREE = {
    "PrecedentError": None,
    "SettingsError": "PrecedentError",
    "ModelError": "PrecedentError",
    "TrainingDataError": "PrecedentError",
    "QueryError": "PrecedentError",
    "ImageNotFound": "QueryError",
    "QueryExpired": "QueryError",
    "StoreError": "PrecedentError",
    "StoreNotFound": "StoreError",
    "StoreLocked": "StoreError",
    "StoreAway": "StoreError",
    "StoreLimited": "StoreError",
    "BackupError": "PrecedentError",
    "FingerprintMismatch": "StoreError",
    "LedgerError": "PrecedentError",
    "AuditError": "LedgerError",
    "StorageError": "PrecedentError",
    "StorageAway": "StorageError",
    "DiskFull": "PrecedentError",
    "SourceError": "PrecedentError",
    "SourceGone": "SourceError",
    "SourceChanged": "SourceError",
    "JobError": "PrecedentError",
    "JobNotFound": "JobError",
    "DocumentError": "PrecedentError",
    "DestinationUnknown": "DocumentError",
    "SendingNotFound": "DocumentError",
    "ErasureError": "PrecedentError",
    "AccessError": "PrecedentError",
    "KeyNotFound": "AccessError",
    "NotAuthenticated": "AccessError",
    "NotAllowed": "AccessError",
    "ProviderUnavailable": "AccessError",
    "ImageRefused": "PrecedentError",
}

CODES = {
    "PrecedentError": "error",
    "SettingsError": "settings",
    "ModelError": "model",
    "TrainingDataError": "training-data",
    "QueryError": "query",
    "ImageNotFound": "image-not-found",
    "QueryExpired": "query-expired",
    "StoreError": "store",
    "StoreNotFound": "store-not-found",
    "StoreLocked": "store-locked",
    "StorageError": "storage",
    "StorageAway": "storage-away",
    "StoreAway": "store-away",
    "StoreLimited": "store-limit",
    "BackupError": "backup",
    "FingerprintMismatch": "model-mismatch",
    "LedgerError": "ledger",
    "AuditError": "audit",
    "DiskFull": "disk-full",
    "SourceError": "source",
    "SourceGone": "source-gone",
    "SourceChanged": "source-changed",
    "JobError": "job",
    "JobNotFound": "job-not-found",
    "DocumentError": "document",
    "DestinationUnknown": "destination-unknown",
    "SendingNotFound": "sending-not-found",
    "ErasureError": "erasure",
    "AccessError": "access",
    "KeyNotFound": "key-not-found",
    "NotAuthenticated": "not-authenticated",
    "NotAllowed": "not-allowed",
    "ProviderUnavailable": "identity-provider",
}

REASONS = {
    "EMPTY_FILE": "empty-file",
    "NOT_AN_IMAGE": "not-an-image",
    "UNREADABLE": "unreadable",
    "TRUNCATED": "truncated",
    "DAMAGED": "damaged",
    "NO_PIXELS": "no-pixels",
    "NOT_A_PICTURE": "not-a-picture",
    "UNSUPPORTED_SYNTAX": "unsupported-transfer-syntax",
    "UNSUPPORTED_PIXELS": "unsupported-pixels",
    "TOO_SMALL": "too-small",
    "TOO_LARGE": "too-large",
    "NESTED_TOO_DEEP": "nested-too-deep",
    "TOO_SLOW": "too-slow",
    "READER_DIED": "reader-died",
    "WORKER_DIED": "worker-died",
    "CONFLICTING_UID": "conflicting-uid",
}


def drawn_tree(docstring: str) -> dict[str, str | None]:
    """Name → parent, as the lines of the docstring's drawing say by their indentation."""
    parents: dict[str, str | None] = {}
    above: list[str] = []
    for line in docstring.splitlines():
        found = re.match(r"((?: [│├└ ][─ ]{2,3})*)([A-Z]\w+)(\s{2,}|$)", line)
        if not found:
            continue
        depth = found.start(2) // 5
        above[depth:] = [found[2]]
        parents[found[2]] = above[depth - 1] if depth else None
    return parents


def test_the_drawn_tree_is_the_documented_one():
    assert drawn_tree(errors.__doc__) == TREE


def test_the_classes_form_the_documented_tree():
    actual = {
        name: None if name == "PrecedentError" else getattr(errors, name).__base__.__name__
        for name in TREE
    }
    assert actual == TREE
    assert PrecedentError.__base__ is Exception


def test_exports_are_the_tree_and_the_reasons():
    assert sorted(errors.__all__) == sorted([*TREE, "RefusalReason"])
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert defined == set(TREE)


def test_codes_are_stable_and_unique():
    assert {name: getattr(errors, name).code for name in CODES} == CODES
    assert {reason.name: reason.value for reason in RefusalReason} == REASONS
    everything = [*CODES.values(), *REASONS.values()]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("reason", RefusalReason)
def test_a_refusal_carries_its_reason_across_processes(reason):
    refused = ImageRefused(reason, "7 rows, at least 8 wanted")
    copied = pickle.loads(pickle.dumps(refused))
    assert type(copied) is ImageRefused
    assert (copied.reason, copied.detail) == (reason, "7 rows, at least 8 wanted")
    assert copied.code == reason.value
    assert str(copied) == f"{reason.value}: 7 rows, at least 8 wanted"
