"""Objects in a folder and in a bucket behave alike; a bucket's troubles are told as what they are.

The bucket is that of a real server that speaks S3, but for what such a server does not do on
request.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from services.objects import ObjectServer

from engine.errors import SettingsError, StorageAway, StorageError
from engine.settings import load_settings
from engine.storage_settings import StorageSettings
from indexer.objects import s3_client
from indexer.objects.base import Kept, ObjectStore
from indexer.objects.folder import FolderObjects
from indexer.objects.s3 import BucketObjects
from indexer.objects.s3_client import StorageDenied

PLACE = "s3://hospital/thumbnails"
EVERYTHING = ("s3:PutObject", "s3:GetObject", "s3:DeleteObject", "s3:ListBucket")
NAMES = [f"{number:02x}/{number}.jpg" for number in range(20)]


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as running:
        running.make_bucket("hospital")
        running.make_bucket("careful", versions=True)
        yield running


@contextmanager
def opened(settings: StorageSettings) -> Iterator[BucketObjects]:
    objects = BucketObjects(settings)
    try:
        yield objects
    finally:
        objects.close()


@pytest.fixture(params=["folder", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "folder":
        yield FolderObjects(tmp_path / "objects")
        return
    server = request.getfixturevalue("server")
    with opened(server.settings(f"s3://hospital/{tmp_path.name}")) as found:
        yield found


def test_what_is_put_is_there_until_it_is_deleted(objects: ObjectStore) -> None:
    assert (objects.get(NAMES[0]), list(objects.names())) == (None, [])
    objects.put({name: name.encode() for name in NAMES})
    objects.put({NAMES[3]: b"", NAMES[4]: b"another one"})
    assert [objects.get(name) for name in NAMES[2:6]] == [
        NAMES[2].encode(),
        b"",
        b"another one",
        NAMES[5].encode(),
    ]
    assert objects.existing([*NAMES[:2], "00/none.jpg"]) == set(NAMES[:2])
    objects.delete([*NAMES[:18], "00/none.jpg"])
    assert list(objects.names()) == NAMES[18:]
    assert objects.get(NAMES[0]) is None
    assert objects.purge(NAMES) == Kept()
    objects.put({})
    objects.delete([])


def test_others_in_the_bucket_are_not_ours(server: ObjectServer) -> None:
    with server.client() as client:
        client.put_object(Bucket="hospital", Key="thumbnails-of-others/a.jpg", Body=b"x")
    with opened(server.settings(PLACE)) as objects:
        objects.put({"ab/a.jpg": b"ours"})
        assert list(objects.names()) == ["ab/a.jpg"]
        objects.delete(["ab/a.jpg"])


def test_what_is_not_what_was_put_is_not_given_out(server: ObjectServer) -> None:
    with opened(server.settings(PLACE)) as objects, server.client() as client:
        objects.put({"ab/a.jpg": b"whole"})
        place = {"Bucket": "hospital", "Key": "thumbnails/ab/a.jpg"}
        told = client.head_object(**place)["Metadata"]
        client.put_object(**place, Body=b"other", Metadata=told)
        with pytest.raises(StorageError, match=r"ab/a\.jpg .* is not what was put there; index"):
            objects.get("ab/a.jpg")
        # Copied there by another program, which notes no checksum.
        client.put_object(**place, Body=b"copied")
        assert objects.get("ab/a.jpg") == b"copied"


def test_a_key_that_is_not_known_and_one_that_may_not(server: ObjectServer) -> None:
    reading = server.key_that_may("s3:GetObject", "s3:ListBucket")
    with server.checking_keys():
        with opened(server.settings(PLACE)) as objects:
            for ask in (lambda: objects.get("a"), lambda: objects.put({"a": b"x", "b": b"y"})):
                with pytest.raises(StorageDenied, match="check PRECEDENT_STORAGE__ACCESS_KEY"):
                    ask()
            assert server.secret_key not in str(objects.place)
        with opened(server.settings(PLACE, **reading)) as objects:
            assert objects.get("a") is None
            with pytest.raises(StorageDenied, match="put thumbnails in the bucket 'hospital'"):
                objects.put({"a": b"x"})


def test_a_bucket_that_is_not_there_is_named(server: ObjectServer) -> None:
    with opened(server.settings("s3://nowhere/thumbnails")) as objects:
        for ask in (
            lambda: objects.get("a"),
            lambda: objects.put({"a": b"x"}),
            lambda: objects.delete(["a"]),
            lambda: list(objects.names()),
        ):
            with pytest.raises(StorageError, match="no bucket 'nowhere'; make it") as told:
                ask()
            assert not isinstance(told.value, StorageAway)


def test_versions_of_what_was_deleted_are_purged_and_no_others(server: ObjectServer) -> None:
    with opened(server.settings("s3://careful/mine")) as objects:
        objects.put(dict.fromkeys(NAMES, b"first"))
        objects.put(dict.fromkeys(NAMES, b"second"))
        objects.delete(NAMES[1:])
        with server.client() as client:
            client.put_object(Bucket="careful", Key="theirs/a.jpg", Body=b"x")
            client.delete_object(Bucket="careful", Key="theirs/a.jpg")
        assert objects.keeps_versions is True
        assert objects.purge([]) == Kept()
    assert sorted(server.versions("careful")) == [*["mine/" + NAMES[0]] * 2, *["theirs/a.jpg"] * 2]


@pytest.mark.slow
def test_versions_that_cannot_be_purged_are_told(server: ObjectServer) -> None:
    # Whoever may delete may not delete for good.
    asking = ("s3:GetBucketVersioning", "s3:ListBucketVersions")
    able, blind = server.key_that_may(*EVERYTHING, *asking), server.key_that_may(*EVERYTHING)
    with server.checking_keys():
        with opened(server.settings("s3://careful/kept", **able)) as objects:
            objects.put({"a": b"first"})
            objects.delete(["a"])
            kept = objects.purge([])
            assert kept.versions == 2
            assert "does not let this key delete versions" in kept.why
        with opened(server.settings("s3://careful/kept", **blind)) as objects:
            assert objects.keeps_versions is None
            assert objects.purge([]).versions is None


@pytest.mark.slow
def test_a_server_that_goes_is_away_and_readers_do_not_wait_for_it_twice() -> None:
    now = [0.0]
    with ObjectServer() as server:
        server.make_bucket("hospital")
        objects = BucketObjects(server.settings(PLACE), clock=lambda: now[0])
        objects.put({"a": b"x"})
        assert objects.get("a") == b"x"
        server.stop()
        with pytest.raises(StorageAway, match=r"does not answer .*; see that it runs"):
            objects.get("a")
        with pytest.raises(StorageAway):
            objects.put({"b": b"x", "c": b"y"})
        server.start()
        server.make_bucket("hospital")
        objects.put({"a": b"again"})
        with pytest.raises(StorageAway):
            objects.get("a")
        now[0] = 6.0
        assert objects.get("a") == b"again"
        objects.close()


@contextmanager
def answering(
    status: int, body: str, asked: list[str], headers: Callable[[], dict[str, str]] = dict
) -> Iterator[int]:
    """The port of a server that answers all with the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            for name, value in headers().items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        yield httpd.server_port
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def settings_of(port: int, **others: object) -> StorageSettings:
    values = {"access_key": "of this test", "secret_key": "of this test alone", "attempts": 1}
    endpoint = f"http://127.0.0.1:{port}"
    return StorageSettings(thumbnails=PLACE, endpoint=endpoint, **{**values, **others})


def said(code: str) -> str:
    return f"<Error><Code>{code}</Code><Message>so it is</Message></Error>"


@pytest.mark.parametrize(
    ("status", "code", "words", "away"),
    [
        (403, "RequestTimeTooSkewed", "set both clocks", False),
        (400, "AuthorizationHeaderMalformed", "correct storage.region", False),
        (503, "SlowDown", "is busy or fails", True),
        (501, "NotImplemented", "is busy or fails", True),
        (409, "Whatever", "HTTP 409", False),
    ],
)
def test_what_the_server_says_is_told_with_a_way_out(status, code, words, away) -> None:
    with answering(status, said(code), []) as port, opened(settings_of(port)) as objects:
        with pytest.raises(StorageError, match=words) as told:
            objects.get("a")
        assert isinstance(told.value, StorageAway) is away


@pytest.mark.slow
def test_no_other_host_is_asked_whatever_the_server_says() -> None:
    elsewhere: list[str] = []
    with answering(200, "secrets", elsewhere) as other:
        place = {"Location": f"http://127.0.0.1:{other}/hospital/thumbnails/a"}
        for status, code in ((301, "PermanentRedirect"), (307, "TemporaryRedirect")):
            asked: list[str] = []
            with (
                answering(status, said(code), asked, lambda: place) as port,
                opened(settings_of(port)) as objects,
                pytest.raises(StorageError),
            ):
                objects.get("a")
            assert asked
    assert elsewhere == []


def test_what_other_programs_are_told_has_no_say(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.setenv(name, "nonsense")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere.pem")
    with opened(server.settings(PLACE)) as objects:
        objects.put({"ab/a.jpg": b"x"})
        assert objects.get("ab/a.jpg") == b"x"
        objects.delete(["ab/a.jpg"])


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        with (
            opened(settings_of(port, timeout_seconds=0.1)) as objects,
            pytest.raises(StorageAway, match="does not answer"),
        ):
            objects.get("a")
        assert time.monotonic() - started < 20


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"\[s3\]"):
        BucketObjects(settings_of(1))


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "THUMBNAILS": PLACE,
        "ENDPOINT": "https://s3.example:9000",
        "ACCESS_KEY": "of this test",
        "SECRET_KEY": "of this test alone",
    }.items():
        monkeypatch.setenv(f"PRECEDENT_STORAGE__{name}", value)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("THUMBNAILS", "s3://hospital", "names no bucket and a folder"),
        ("THUMBNAILS", "s3://hospital/", "names no bucket and a folder"),
        ("THUMBNAILS", "s3://hospital/../other", "names no bucket and a folder"),
        ("THUMBNAILS", "https://hospital/a", "names no bucket and a folder"),
        ("ENDPOINT", "http://s3.example", "without TLS"),
        ("ENDPOINT", "ftp://s3.example", "no address of an object store"),
        ("ENDPOINT", "https://user:word@s3.example", "no address of an object store"),
        ("ENDPOINT", "https://s3.example:port", "no address of an object store"),
        ("REGION", "Frankfurt am Main", "storage.region"),
        ("TIMEOUT_SECONDS", "0", "storage.timeout_seconds"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(variables, name, value, words) -> None:
    variables.setenv(f"PRECEDENT_STORAGE__{name}", value)
    with pytest.raises(SettingsError, match=words) as told:
        load_settings()
    assert "word@" not in str(told.value)


@pytest.mark.parametrize("name", ["THUMBNAILS", "ENDPOINT", "ACCESS_KEY", "SECRET_KEY"])
def test_what_is_missing_is_named(variables, name) -> None:
    variables.delenv(f"PRECEDENT_STORAGE__{name}")
    with pytest.raises(SettingsError, match=f"(?i)storage[._]+{name}"):
        load_settings()


def test_keys_come_from_files_and_never_from_the_settings_file(variables, tmp_path) -> None:
    (tmp_path / "key").write_text("of a file\n")
    variables.delenv("PRECEDENT_STORAGE__SECRET_KEY")
    variables.setenv("PRECEDENT_STORAGE__SECRET_KEY_FILE", str(tmp_path / "key"))
    found = load_settings().storage
    assert found.secret_key is not None
    assert found.secret_key.get_secret_value() == "of a file"
    assert (found.bucket, found.folder) == ("hospital", "thumbnails/")
    (tmp_path / "precedent.toml").write_text('[storage]\nsecret_key = "of this test"\n')
    with pytest.raises(SettingsError, match=r"does not belong into .*SECRET_KEY_FILE"):
        load_settings()


def test_plain_http_goes_to_this_machine_or_where_it_is_allowed(variables) -> None:
    variables.setenv("PRECEDENT_STORAGE__ENDPOINT", "http://127.0.0.1:9000/")
    assert load_settings().storage.endpoint == "http://127.0.0.1:9000"
    variables.setenv("PRECEDENT_STORAGE__ENDPOINT", "http://s3.example")
    variables.setenv("PRECEDENT_STORAGE__PLAIN_HTTP", "true")
    assert load_settings().storage.plain_http
