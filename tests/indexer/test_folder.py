"""A folder source lists every file once, whatever the folder holds."""

import os
import socket
import zipfile
from pathlib import Path

import pytest

from engine.errors import ImageRefused, QueryError, RefusalReason
from indexer.files.locators import (
    ZipMember,
    beginnings,
    file_locator,
    file_path,
    is_too_long,
    shown,
)
from indexer.files.zip_archive import zip_locator, zip_member
from indexer.sources.base import Discovered
from indexer.sources.folder import FolderSource


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def listed(source: FolderSource, root: Path) -> list[str]:
    return [
        os.path.relpath(file_path(found.locator), root).replace(os.sep, "/")
        for found in source.instances()
    ]


def labels(source: FolderSource) -> dict[str, str | None]:
    return {file_path(found.locator).name: found.label for found in source.instances()}


def test_files_come_folder_by_folder_in_the_order_of_their_names(tmp_path: Path) -> None:
    make(tmp_path, "b/2", "b/10", "b/inner/x", "a/z", "a.dcm", "z.dcm", "c/deep/er/file", "a/y")
    expected = ["a.dcm", "z.dcm", "a/y", "a/z", "b/10", "b/2", "b/inner/x", "c/deep/er/file"]
    assert listed(FolderSource([tmp_path]), tmp_path) == expected
    assert FolderSource([tmp_path]).name == "folder"


def test_it_can_be_listed_again(tmp_path: Path) -> None:
    make(tmp_path, "a", "b/c")
    source = FolderSource([tmp_path])
    assert list(source.instances()) == list(source.instances()) != []


def test_an_instance_has_its_size_and_a_stamp_that_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"12345")
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    (found,) = FolderSource([tmp_path]).instances()
    assert found == Discovered(file_locator(path), 5, 1_700_000_000_123_456_789, None)


def test_hidden_files_and_empty_folders(tmp_path: Path) -> None:
    make(tmp_path, ".hidden", ".folder/file")
    (tmp_path / "empty").mkdir()
    assert listed(FolderSource([tmp_path]), tmp_path) == [".hidden", ".folder/file"]
    assert listed(FolderSource([tmp_path / "empty"]), tmp_path) == []


def test_a_link_to_a_folder_above_is_no_endless_way(tmp_path: Path) -> None:
    make(tmp_path, "a/b/file")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "b" / "self").symlink_to(".")
    assert listed(FolderSource([tmp_path]), tmp_path) == ["a/b/file"]


def test_a_link_to_itself_is_listed_to_be_refused(tmp_path: Path) -> None:
    make(tmp_path, "good")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    assert listed(FolderSource([tmp_path]), tmp_path) == ["good", "loop", "one", "other"]
    assert [found.size for found in FolderSource([tmp_path / "loop"]).instances()] == [0]


def test_a_broken_link_is_listed_to_be_refused(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    assert list(FolderSource([tmp_path]).instances()) == [
        Discovered(file_locator(tmp_path / "broken"), 0, 0, None)
    ]
    assert listed(FolderSource([tmp_path / "broken"]), tmp_path) == ["broken"]


def test_a_link_that_names_too_long_a_path_is_listed_to_be_refused(tmp_path: Path) -> None:
    make(tmp_path, "a", "z")
    (tmp_path / "long").symlink_to("n" * 300)
    assert listed(FolderSource([tmp_path]), tmp_path) == ["a", "long", "z"]


def test_links_to_files_are_files_of_their_own(tmp_path: Path) -> None:
    make(tmp_path, "real/file")
    (tmp_path / "again").symlink_to("real/file")
    assert listed(FolderSource([tmp_path]), tmp_path) == ["again", "real/file"]
    first, second = FolderSource([tmp_path]).instances()
    assert first.size == second.size == len("real/file")


def test_the_same_folder_through_two_links_only_once(tmp_path: Path) -> None:
    make(tmp_path, "outside/file")
    inside = tmp_path / "inside"
    inside.mkdir()
    for name in ("one", "two"):
        (inside / name).symlink_to(tmp_path / "outside")
    assert listed(FolderSource([inside]), inside) == ["one/file"]
    assert listed(FolderSource([inside / "two", inside]), inside) == ["two/file"]


def test_the_data_folder_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a.dcm", "data/index/segment", "data/thumbnails/x.jpg", "b/c.dcm")
    source = FolderSource([tmp_path], leave_out=tmp_path / "data")
    assert listed(source, tmp_path) == ["a.dcm", "b/c.dcm"]
    (tmp_path / "b" / "link").symlink_to(tmp_path / "data")
    assert listed(source, tmp_path) == ["a.dcm", "b/c.dcm"]


def test_a_data_folder_that_is_made_later_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cd archive; precedent index .` makes it between the start and the walk."""
    make(tmp_path, "a.dcm")
    monkeypatch.chdir(tmp_path)
    source = FolderSource([Path()], leave_out=Path("precedent-data"))
    make(tmp_path, "precedent-data/ledger.sqlite", "precedent-data/index/segment")
    assert listed(source, tmp_path) == ["a.dcm"]


def test_a_path_given_twice_or_inside_another_counts_once(tmp_path: Path) -> None:
    make(tmp_path, "a/file", "a/b/file", "single")
    folder, inner, single = tmp_path / "a", tmp_path / "a" / "b", tmp_path / "single"
    assert listed(FolderSource([folder, folder]), tmp_path) == ["a/file", "a/b/file"]
    assert listed(FolderSource([inner, folder]), tmp_path) == ["a/b/file", "a/file"]
    assert listed(FolderSource([single, tmp_path / "a" / ".." / "single"]), tmp_path) == ["single"]


def test_a_file_named_beside_its_folder_counts_once(tmp_path: Path) -> None:
    make(tmp_path, "a/file", "a/other")
    folder, file = tmp_path / "a", tmp_path / "a" / "file"
    assert listed(FolderSource([file, folder]), tmp_path) == ["a/file", "a/other"]
    assert listed(FolderSource([folder, file]), tmp_path) == ["a/file", "a/other"]


def test_relative_paths_give_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a/file")
    absolute = list(FolderSource([tmp_path / "a"]).instances())
    monkeypatch.chdir(tmp_path / "a")
    assert list(FolderSource([Path()]).instances()) == absolute
    assert list(FolderSource([Path("../a")]).instances()) == absolute


def test_a_path_that_does_not_exist_is_an_error_at_once(tmp_path: Path) -> None:
    make(tmp_path, "a")
    with pytest.raises(QueryError, match=r"nowhere does not exist"):
        FolderSource([tmp_path / "a", tmp_path / "nowhere"])


def test_labels_are_the_names_of_folders(tmp_path: Path) -> None:
    make(tmp_path, "top", "chest/1", "chest/inner/2", "head/3")
    source = FolderSource([tmp_path], label_from_folder=True)
    assert labels(source) == {"top": tmp_path.name, "1": "chest", "2": "inner", "3": "head"}
    named = FolderSource([tmp_path / "head" / "3"], label_from_folder=True)
    assert labels(named) == {"3": "head"}
    assert set(labels(FolderSource([tmp_path])).values()) == {None}


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", "røntgen 胸部".encode()])
def test_labels_are_text_whatever_the_folder_is_called(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    (folder / "image").write_bytes(b"x")
    (found,) = FolderSource([tmp_path], label_from_folder=True).instances()
    assert found.label == name.decode("utf-8", "replace")
    assert file_path(found.locator) == folder / "image"
    assert file_path(found.locator).read_bytes() == b"x"


def test_what_is_no_file_is_listed_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's path has to be short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        assert listed(FolderSource([tmp_path]), tmp_path) == ["pipe", "socket"]


def test_a_file_that_goes_while_the_folder_is_listed_is_accounted_for(tmp_path: Path) -> None:
    make(tmp_path, "a", "b")
    instances = FolderSource([tmp_path]).instances()
    first = next(instances)
    (tmp_path / "b").unlink()
    assert [first.size, *(found.size for found in instances)] == [1, 0]


def test_a_folder_that_goes_while_the_walk_is_on_is_accounted_for(tmp_path: Path) -> None:
    make(tmp_path, "a", "b/c")
    instances = FolderSource([tmp_path]).instances()
    next(instances)
    (tmp_path / "b" / "c").unlink()
    (tmp_path / "b").rmdir()
    assert list(instances) == [Discovered(file_locator(tmp_path / "b"), 0, 0, None)]


def pack(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as packed:
        for name in names:
            packed.writestr(name, name)


def named(source: FolderSource, root: Path) -> list[str]:
    """All instances as a person sees them, below ``root``."""
    return [shown(found.locator).removeprefix(f"{root}/") for found in source.instances()]


def test_archives_are_opened_in_their_place_among_the_files(tmp_path: Path) -> None:
    make(tmp_path, "a.dcm", "c.dcm", "inner/d.dcm")
    pack(tmp_path / "b.ZIP", "2.dcm", "1.dcm", "deep/0.dcm")
    pack(tmp_path / "inner" / "b.zip", "x")
    expected = ["a.dcm", "b.ZIP!1.dcm", "b.ZIP!2.dcm", "b.ZIP!deep/0.dcm", "c.dcm"]
    expected += ["inner/b.zip!x", "inner/d.dcm"]
    assert named(FolderSource([tmp_path]), tmp_path) == expected
    assert list(FolderSource([tmp_path]).instances()) == list(FolderSource([tmp_path]).instances())


def test_archives_are_known_by_name_in_a_folder_and_by_content_when_named(tmp_path: Path) -> None:
    pack(tmp_path / "export", "1.dcm")
    (tmp_path / "text.zip").write_text("no archive")
    assert named(FolderSource([tmp_path]), tmp_path) == ["export", "text.zip"]
    assert named(FolderSource([tmp_path / "export"]), tmp_path) == ["export!1.dcm"]
    assert named(FolderSource([tmp_path / "text.zip"]), tmp_path) == ["text.zip"]


def test_an_archive_named_twice_or_beside_its_folder_counts_once(tmp_path: Path) -> None:
    pack(tmp_path / "a.zip", "1", "2")
    path, expected = tmp_path / "a.zip", ["a.zip!1", "a.zip!2"]
    for paths in ([path, path], [path, tmp_path], [tmp_path, path]):
        assert named(FolderSource(paths), tmp_path) == expected


def test_archives_can_be_left_closed(tmp_path: Path) -> None:
    pack(tmp_path / "a.zip", "1", "2")
    for path in (tmp_path, tmp_path / "a.zip"):
        source = FolderSource([path], open_archives=False)
        assert named(source, tmp_path) == ["a.zip"]


def test_what_is_called_an_archive_and_cannot_be_opened_is_listed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "gone.zip").symlink_to("nowhere")
    (tmp_path / "empty.zip").touch()
    (tmp_path / "folder.zip").mkdir()
    make(tmp_path, "folder.zip/1")
    expected = ["empty.zip", "gone.zip", "pipe.zip", "folder.zip/1"]
    assert named(FolderSource([tmp_path]), tmp_path) == expected
    for name in expected:
        assert named(FolderSource([tmp_path / name]), tmp_path) == [name]


def test_the_images_of_instances(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    locators = [
        file_locator(tmp_path / "a b.dcm"),
        zip_locator(path, "series/1.dcm"),
        "https://pacs.example/studies/1/series/2/instances/3",
        "no locator at all",
        file_locator(tmp_path / "c.dcm"),
    ]
    images = FolderSource([tmp_path]).images(iter(locators))
    first, second, server, nonsense, last = images
    assert (first, last) == (tmp_path / "a b.dcm", tmp_path / "c.dcm")
    assert second == ZipMember(path, "series/1.dcm")
    for refused in (server, nonsense):
        assert isinstance(refused, ImageRefused)
        assert refused.reason is RefusalReason.UNREADABLE


def test_locators_are_taken_as_images_are_asked_for(tmp_path: Path) -> None:
    def locators():
        yield file_locator(tmp_path / "first")
        raise AssertionError("the second was not asked for")

    assert next(FolderSource([tmp_path]).images(locators())) == tmp_path / "first"


def test_a_source_may_have_a_name(tmp_path: Path) -> None:
    assert FolderSource([tmp_path], name="archive 2019").name == "archive 2019"


@pytest.mark.parametrize("name", ["日本 #?%41;~&", "a b", os.fsdecode(b"\xe3\xff\xc3\xa9 \xff")])
@pytest.mark.parametrize("length", [20, 300, 1100])
def test_a_locator_leads_back_to_its_path_however_long(name, length):
    path = Path("/archive", *[(name * 200)[:20]] * (length // 20))
    locator, packed = file_locator(path), zip_locator(path, name)
    assert max(len(locator.encode()), len(packed.encode())) <= 2400
    if is_too_long(locator):
        assert len(os.fsencode(path)) > 800
        return
    assert file_path(locator) == path
    assert shown(locator) == str(path)
    assert zip_member(packed) == ZipMember(path, name)


def test_paths_that_are_too_long_keep_apart():
    folders = Path("/archive", *["x" * 250] * 12)
    first, second = (file_locator(folders / name) for name in ("a.dcm", "b.dcm"))
    assert first != second
    assert is_too_long(first)
    assert len(first) < 2400
    assert first.startswith(tuple(beginnings("file", b"/archive")))
