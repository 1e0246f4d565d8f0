"""Thumbnails in an object store: several machines show them, kills and failures leave nothing half
done, and what is deleted or erased is not there any more."""

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import run
from conftest import Indexed, dicom, rings, stripes
from pydantic import SecretStr
from reached import reached
from services.commands import CommandProcess
from services.loopback import LoopbackClient
from services.objects import ObjectServer
from test_api_page import Page

from api.service import create_service
from engine.errors import StorageError
from engine.settings import IndexingSettings, LedgerSettings, Settings, StoreSettings
from engine.storage_settings import StorageSettings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.ledger.instances import State
from indexer.sources.folder import FolderSource

BUCKET = "hospital"
PLACE = f"s3://{BUCKET}/precedent"
GONE = "1.2.4.1"
"""The study that is deleted: two of the images."""


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as running:
        running.make_bucket(BUCKET)
        running.make_bucket("careful", versions=True)
        yield running


@dataclass
class Site:
    """Images, and settings of an archive whose thumbnails are in a folder of a bucket."""

    images: Path
    settings: Settings
    server: ObjectServer

    @property
    def place(self) -> list[str]:
        return ["--data-dir", str(self.settings.data_dir), "--model", str(self.settings.model)]

    def index(self, tenant: str = "default") -> int:
        with Archive(self.settings, tenant=tenant, create=True) as archive:
            return archive.index(FolderSource([self.images])).indexed

    def ids(self, tenant: str = "default") -> set[str]:
        with Archive(self.settings, tenant=tenant) as archive:
            return {point.id for point in archive.store.scroll(Filter())}

    def keys(self) -> set[str]:
        storage = self.settings.storage
        found = self.server.keys(storage.bucket)
        return {one.removeprefix(storage.folder) for one in found if one.startswith(storage.folder)}

    def variables(self, patch: pytest.MonkeyPatch) -> None:
        for name, value in self.server.environment(str(self.settings.storage.thumbnails)).items():
            patch.setenv(name, value)


def keys_of(ids: set[str]) -> set[str]:
    return {f"{one[:2]}/{one}.jpg" for one in ids}


def site_of(root: Path, indexed: Indexed, server: ObjectServer, place: str, count: int = 6) -> Site:
    images = root / "images"
    images.mkdir()
    for number in range(count):
        content = dicom(stripes(number), number, modality="CT", part="CHEST")
        (images / f"{number:03}.dcm").write_bytes(content)
    settings = Settings(
        data_dir=root / "data",
        model=indexed.settings.model,
        indexing=IndexingSettings(readers=1, batch_size=4),
        storage=server.settings(place),
    )
    return Site(images, settings, server)


@pytest.fixture
def site(tmp_path: Path, indexed: Indexed, server: ObjectServer) -> Site:
    return site_of(tmp_path, indexed, server, f"{PLACE}/{tmp_path.name}")


@pytest.mark.slow
def test_what_one_process_indexes_another_shows_and_no_name_tells_anything(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.variables(monkeypatch)
    run("index", site.images, *site.place)
    assert site.keys() == keys_of(site.ids())
    assert not (site.settings.data_dir / "thumbnails").exists()
    with LoopbackClient(create_service(site.settings)) as client:
        sent = {"file": (site.images / "000.dcm").read_bytes()}
        hits = client.post("/v1/search", files=sent).json()["hits"]
        shown = [client.get(f"/v1/images/{hit['id']}/thumbnail") for hit in hits]
        assert len(shown) == 6
        assert all(one.content[:3] == b"\xff\xd8\xff" for one in shown)
        page = Page(client.get("/", params={"like": hits[0]["id"]}).text)
        assert len(page.thumbnails()) > 1
        for address in page.thumbnails():
            assert client.get(f"/{address}").headers["content-type"] == "image/jpeg"
        # Another process goes on, with the same archive open here.
        (site.images / "new.dcm").write_bytes(dicom(rings(1), 90, modality="MR", part="BRAIN"))
        before = site.keys()
        run("index", site.images, *site.place)
        (new,) = site.keys() - before
        assert client.get(f"/v1/images/{new[3:-4]}/thumbnail").status_code == 200


@pytest.mark.slow
def test_a_machine_with_a_data_folder_of_its_own_shows_what_another_one_indexed(
    site: Site, tmp_path: Path
) -> None:
    with reached("rest") as qdrant:
        shared = {
            "store": StoreSettings(url=qdrant.settings.url, prefer_grpc=False),
            "ledger": LedgerSettings(url=SecretStr(f"sqlite:///{tmp_path / 'ledger.sqlite'}")),
            "pseudonym_key": SecretStr("of this test alone, " * 2),
        }
        first = site.settings.model_copy(update=shared)
        second = first.model_copy(update={"data_dir": tmp_path / "second"})
        assert Site(site.images, first, site.server).index() == 6
        with Archive(second) as archive, LoopbackClient(create_service(archive=archive)) as client:
            ids = [point.id for point in archive.store.scroll(Filter())]
            assert len(ids) == 6
            for one in ids:
                assert client.get(f"/v1/images/{one}/thumbnail").content[:2] == b"\xff\xd8"
        assert site.keys() == keys_of(set(ids))


@pytest.mark.slow
def test_a_search_is_answered_while_the_object_store_is_away(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.index()
    # Nobody listens on it: what is asked of it fails at once.
    away = site.settings.storage.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    settings = site.settings.model_copy(update={"storage": away})
    with LoopbackClient(create_service(settings)) as client:
        sent = {"file": (site.images / "000.dcm").read_bytes()}
        answer = client.post("/v1/search", files=sent)
        hits = answer.json()["hits"]
        assert (answer.status_code, len(hits)) == (200, 6)
        assert client.post("/", files=sent).status_code == 200
        failed = client.get(f"/v1/images/{hits[0]['id']}/thumbnail")
        assert (failed.status_code, failed.json()["code"]) == (503, "storage-away")
        assert "127.0.0.1" not in failed.text
        assert client.get("/readyz").status_code == 200
    assert site.keys() == keys_of({hit["id"] for hit in hits})


def test_nothing_is_recorded_whose_thumbnail_was_not_put(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = site.settings.storage.model_copy(update={"thumbnails": "s3://nowhere/precedent"})
    broken = Site(site.images, site.settings.model_copy(update={"storage": missing}), site.server)
    with pytest.raises(StorageError, match="no bucket 'nowhere'"):
        broken.index()
    with Archive(site.settings) as archive:
        assert archive.store.count(Filter()) == 0
        assert archive.ledger.counts() == {State.PENDING: 6}
    assert site.index() == 6
    assert site.keys() == keys_of(site.ids())


@pytest.mark.slow
def test_tenants_have_thumbnails_of_their_own(site: Site) -> None:
    assert site.index() == site.index("north") == 6
    own, theirs = site.ids(), site.ids("north")
    assert site.keys() == keys_of(own | theirs)
    with Archive(site.settings, tenant="north") as archive:
        archive.delete_all({"study": GONE, "tenant": "north"})
    assert len(site.ids("north")) == 4
    assert site.keys() == keys_of(own | site.ids("north"))


@pytest.mark.slow
def test_what_is_deleted_is_not_in_the_bucket_and_can_be_deleted_again_after_a_failure(
    site: Site,
) -> None:
    site.index()
    before = site.keys()
    away = site.settings.storage.model_copy(
        update={"endpoint": "http://127.0.0.1:9", "attempts": 1}
    )
    with (
        Archive(site.settings.model_copy(update={"storage": away})) as archive,
        pytest.raises(StorageError),
    ):
        archive.delete_all({"study": GONE})
    # Whoever opens it next ends what was begun.
    left = site.ids()
    assert len(left) == 4
    assert site.keys() == keys_of(left) < before


@pytest.mark.slow
@pytest.mark.parametrize("may_purge", [True, False])
def test_erasing_leaves_no_version_or_says_that_it_does(
    tmp_path: Path,
    indexed: Indexed,
    server: ObjectServer,
    monkeypatch: pytest.MonkeyPatch,
    may_purge: bool,
) -> None:
    site = site_of(tmp_path, indexed, server, f"s3://careful/{tmp_path.name}")
    site.index()
    asking = ("s3:GetBucketVersioning", "s3:ListBucketVersions")
    able = ("s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:DeleteObject", *asking)
    key = server.key_that_may(*able, *(["s3:DeleteObjectVersion"] if may_purge else []))
    site.variables(monkeypatch)
    for name, value in key.items():
        monkeypatch.setenv(f"PRECEDENT_STORAGE__{name.upper()}", value)
    with server.checking_keys():
        process = CommandProcess(["erase", "--study", GONE, "--yes", "--json", *site.place])
        out, err = process.communicate(timeout=240)
    told = json.loads(out)
    assert told["places"]["thumbnails"] == {"before": 2, "after": 0}, err
    assert told["complete"] is may_purge
    unproven = {one["what"]: one["why"] for one in told["not_proven"]}
    assert "object store" in unproven
    kept = [one for one in server.versions("careful") if one.startswith(tmp_path.name + "/")]
    stays = {f"{tmp_path.name}/{one}" for one in keys_of(site.ids())}
    assert len(stays) == 4
    if may_purge:
        assert sorted(kept) == sorted(stays)
        assert "versions in the bucket" not in unproven
    else:
        # Two pictures and two marks of their deletion.
        assert len(kept) == 8
        assert unproven["versions in the bucket"].startswith("4 versions of deleted thumbnails")


@pytest.mark.slow
def test_killed_between_thumbnails_and_ledger_the_next_run_completes(
    tmp_path: Path, indexed: Indexed, server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_of(tmp_path, indexed, server, f"{PLACE}/{tmp_path.name}", count=60)
    site.variables(monkeypatch)
    monkeypatch.setenv("PRECEDENT_INDEXING__BATCH_SIZE", "1")
    command = ["index", site.images, *site.place]
    process = CommandProcess(command, start_new_session=True)
    deadline = time.monotonic() + 200
    # The ledger is told of all sixty at once, at the end.
    while not site.keys() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert 0 < len(site.keys()) < 60
    ledger = sqlite3.connect(site.settings.data_dir / "ledger.sqlite")
    assert ledger.execute("SELECT count(*) FROM instances WHERE state = 'done'").fetchone() == (0,)
    ledger.close()
    run(*command)
    assert len(site.ids()) == 60
    assert site.keys() == keys_of(site.ids())


@pytest.mark.slow
def test_the_index_deleted_by_hand_takes_its_thumbnails_along(site: Site) -> None:
    site.index()
    with site.server.client() as client:
        other = {"Bucket": BUCKET, "Key": f"{site.settings.storage.folder}notes.txt"}
        client.put_object(**other, Body=b"of somebody else")
    shutil.rmtree(site.settings.data_dir / "index")
    Archive(site.settings, create=True).close()
    assert site.keys() == {"notes.txt"}


@pytest.mark.slow
def test_doctor_tells_of_the_bucket_and_of_what_was_left_in_the_folder(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.index()
    left = site.settings.data_dir / "thumbnails"
    left.mkdir()

    def found(storage: StorageSettings) -> dict[str, dict[str, str]]:
        site.variables(monkeypatch)
        monkeypatch.setenv("PRECEDENT_STORAGE__THUMBNAILS", str(storage.thumbnails))
        monkeypatch.setenv("PRECEDENT_STORAGE__ENDPOINT", str(storage.endpoint))
        out, _ = CommandProcess(["doctor", "--json", *site.place]).communicate(timeout=240)
        return {one["check"]: one for one in json.loads(out)["findings"]}

    before = site.keys()
    well = found(site.settings.storage)
    assert well["thumbnails"]["level"] == "ok"
    assert well["thumbnails.left"]["thing"] == str(left)
    assert site.keys() == before
    versions = site.server.settings("s3://careful/doctor")
    assert "`precedent erase` removes them" in found(versions)["thumbnails"]["value"]
    nowhere = found(site.server.settings("s3://nowhere/doctor"))["thumbnails"]
    assert (nowhere["level"], nowhere["way_out"][:7]) == ("error", "make it")


@pytest.mark.slow
def test_backup_says_what_it_has_not(site: Site, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    site.index()
    site.variables(monkeypatch)
    file = site.settings.data_dir.parent / "a.backup"
    _, err = CommandProcess(["backup", "create", file, *site.place]).communicate(timeout=240)
    assert f"thumbnails are in {site.settings.storage.thumbnails}, and not in it" in err
