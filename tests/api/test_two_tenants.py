"""Two tenants in one archive, with images, files and UIDs in common, are each answered as if alone.

The history below is played into one archive for both tenants, and for each into an archive of its
own; then the same is asked of both, in Python and over HTTP.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Indexed, dicom, png, rings, stripes
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings as examples, strategies as st
from pydantic import SecretStr
from services.loopback import LoopbackClient

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.search.duplicates import duplicates
from engine.settings import Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.files.locators import file_path
from indexer.sources.folder import FolderSource

pytestmark = pytest.mark.slow

TENANTS = ("default", "north")
NO_IMAGE = "not-an-image"
KEY = SecretStr("of these tests alone, " * 2)


@dataclass(frozen=True)
class Step:
    """Something that happens to a tenant's images.

    do: "index", "index again", "vanish" (index, and remove what these files no longer have) or
    "delete". names: of the files, by which they are indexed. wanted: what is deleted.
    """

    tenant: str
    do: str
    names: tuple[str, ...] = ()
    wanted: tuple[tuple[str, str], ...] = ()


def written(root: Path) -> dict[str, Path]:
    """Files by name: pictures of two kinds, a copy, a disputed UID, and one that is no image."""
    contents = {f"ct/{n}": dicom(stripes(n), n, modality="CT", part="CHEST") for n in range(6)}
    contents |= {f"mr/{n}": dicom(rings(n), 10 + n, modality="MR", part="BRAIN") for n in range(4)}
    contents |= {f"png/{n}": png(stripes(20 + n)) for n in range(4)}
    contents["ct/copy of 1"] = contents["ct/1"]
    contents["other/2"] = dicom(rings(70), 2, modality="CR", part="HAND")
    contents["other/11"] = dicom(stripes(71), 11, modality="CR", part="KNEE")
    contents["png/copy of 0"] = contents["png/0"]
    contents["png/no image"] = b"words"
    found = {}
    for name, content in contents.items():
        found[name] = root / name
        found[name].parent.mkdir(parents=True, exist_ok=True)
        found[name].write_bytes(content)
    return found


HISTORY = [
    Step("default", "index", ("ct/0", "ct/1", "ct/2", "mr/0", "png/0", "png/no image")),
    # What the first tenant has as well, a UID that shows another picture there, and one more.
    Step("north", "index", ("ct/0", "ct/copy of 1", "other/2", "mr/0", "mr/1", "png/0")),
    Step("default", "index", ("ct/copy of 1", "other/2", "other/11", "png/1")),
    Step("north", "index", ("ct/1", "ct/2", "ct/4", "png/1", "png/copy of 0", "mr/2")),
    Step("default", "delete", wanted=(("study", "1.2.4.0"),)),
    Step("north", "delete", wanted=(("sop", "1.2.3.10"),)),
    # What one has deleted the other may index, and has it still.
    Step("north", "index", ("ct/0", "mr/0", "mr/1")),
    Step("default", "index", ("ct/0", "mr/0", "mr/1", "ct/5")),
    Step("default", "index again", ("ct/1",)),
    Step("north", "vanish", ("ct/0", "ct/1", "ct/2", "other/2", "mr/1", "png/0", "png/1")),
]


def play(archive: Archive, step: Step, files: dict[str, Path]) -> tuple[object, ...]:
    """What the step tells."""
    if step.do == "delete":
        return archive.delete_all(dict(step.wanted))
    report = archive.index(
        FolderSource([files[name] for name in step.names], label_from_folder=True),
        again=step.do == "index again",
        vanished_from=() if step.do == "vanish" else None,
    )
    kept = replace(report, seconds=0.0, stage_seconds={})
    return (kept,)


def holdings(archive: Archive) -> dict[str, Any]:
    """All that ledger, index and thumbnails hold for the tenant of an archive."""
    ledger, store = archive.ledger, archive.store
    ids = [point.id for point in store.scroll(Filter())]
    owners = ledger.owners(ids)
    thumbnails = archive.data_dir.thumbnails
    return {
        "points": [
            (p.id, p.record, p.code.tobytes(), None if p.z is None else p.z.tobytes())
            for p in store.get(ids, with_z=True)
        ],
        "owners": {one: [owner.locator for owner in found] for one, found in owners.items()},
        "thumbnails": [(thumbnails / one[:2] / f"{one}.jpg").is_file() for one in ids],
        "counts": ledger.counts(),
        "refusals": ledger.refusals(100),
        "locators": ledger.find(),
        "stale": ledger.stale(100),
        "facets": archive.engine.facets(Filter()),
        "duplicates": [[one.id for one in group.members] for group in duplicates(store)],
        "sources": ledger.sources(),
    }


@dataclass(frozen=True)
class Played:
    """together: the archive of both, for each tenant; alone: one of its own for each.
    ids: of all images of either. clients: of services over them, with a key of the tenant."""

    files: dict[str, Path]
    together: dict[str, Archive]
    alone: dict[str, Archive]
    ids: list[str]
    clients: dict[str, tuple[TestClient, TestClient]]


def service(stack: ExitStack, archive: Archive, tenant: str) -> TestClient:
    _, key = Keys(archive._database).create("t", [Scope.SEARCH], tenant=tenant)
    client = stack.enter_context(LoopbackClient(create_service(archive=archive)))
    client.headers["Authorization"] = f"Bearer {key}"
    return client


def opened(stack: ExitStack, settings: Settings, root: Path) -> tuple[dict[str, Archive], ...]:
    """The archive of both tenants, and one for each."""

    def at(name: str, tenant: str) -> Archive:
        placed = settings.model_copy(update={"data_dir": root / name})
        return stack.enter_context(Archive(placed, tenant=tenant, create=True))

    both = at("both", "default")
    return {one: both.of(one) for one in TENANTS}, {one: at(one, one) for one in TENANTS}


@pytest.fixture(scope="module")
def played(indexed: Indexed, store_root: Path) -> Iterator[Played]:
    files = written(store_root / "files")
    with ExitStack() as stack:
        # A pseudonym is the same only under the same key.
        settings = indexed.settings.model_copy(update={"pseudonym_key": KEY})
        together, alone = opened(stack, settings, store_root)
        for step in HISTORY:
            told = play(together[step.tenant], step, files)
            assert told == play(alone[step.tenant], step, files), step
        ids = [p.id for one in TENANTS for p in alone[one].store.scroll(Filter())]
        clients = {
            one: (service(stack, together[one], one), service(stack, alone[one], one))
            for one in TENANTS
        }
        yield Played(files, together, alone, ids, clients)


def test_each_has_what_it_would_have_alone(played: Played) -> None:
    found = {one: holdings(played.together[one]) for one in TENANTS}
    for tenant in TENANTS:
        assert found[tenant] == holdings(played.alone[tenant])
    # They have files, instances and pictures in common, under ids of their own.
    default, north = (found[one] for one in TENANTS)
    assert set(default["locators"]) & set(north["locators"])
    sops = [{record.sop for _, record, *_ in one["points"]} for one in (default, north)]
    assert "1.2.3.2" in sops[0] & sops[1]
    assert not set(default["owners"]) & set(north["owners"])
    refused = {
        name: [(file_path(r.locator).name, r.reason.value) for r in one["refusals"]]
        for name, one in (("default", default), ("north", north))
    }
    # Of two pictures with one UID each tenant keeps the one that it had first.
    assert refused == {
        "default": [("1", "conflicting-uid"), ("2", "conflicting-uid"), ("no image", NO_IMAGE)],
        "north": [("2", "conflicting-uid")],
    }
    assert default["refusals"][1].locator != north["refusals"][0].locator


_FILTERS = st.lists(
    st.sampled_from(
        [
            *("modality=CT", "modality=MR", "modality=CR", "modality!=CT", "body_part=KNEE"),
            *("labels=png", "labels=OTHER", "labels=nothing", "study_year=2010..2014"),
            *("study=1.2.4.0", "sop=1.2.3.2", "source=folder", "burned_in=true", "tenant=north"),
        ]
    ),
    max_size=2,
)


Question = tuple[str, str, dict[str, Any], int]


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Method, path and data of a request; and which image it is about."""
    number = draw(st.integers(0, 40))
    kind = draw(
        st.sampled_from(["id", "upload", "recommend", "facets", "image", "picture", "page"])
    )
    where = draw(_FILTERS)
    group = draw(st.sampled_from([None, "study", "patient"]))
    options: dict[str, Any] = {"where": where, "k": draw(st.integers(1, 12))}
    if group is not None:
        options["group_by"] = group
    if draw(st.booleans()):
        options["exclude"] = draw(st.sampled_from(["study", "patient"]))
    if kind in ("id", "upload"):
        options["order"] = draw(st.sampled_from(["content", "hamming"]))
        return ("POST", "/v1/search", {**options, "kind": kind}, number)
    if kind == "recommend":
        asked = draw(st.sampled_from(["like", "study", "upload"]))
        return ("POST", "/v1/recommend", {**options, "kind": asked}, number)
    if kind == "facets":
        return ("GET", "/v1/facets", {"where": where}, number)
    if kind == "page":
        return ("GET", "/", {"where": where, "kind": "like"}, number)
    return ("GET", "/v1/images/ID" + ("/thumbnail" if kind == "picture" else ""), {}, number)


def asked(
    client: TestClient, played: Played, question: tuple[str, str, dict[str, Any], int]
) -> Any:
    """Status and content of an answer, without times and the names of keys."""
    method, path, options, number = question
    image, named = played.ids[number % len(played.ids)], list(played.files.values())
    data = {name: value for name, value in options.items() if name != "kind"}
    kind, files = options.get("kind"), None
    if kind in ("id", "like"):
        data["id" if kind == "id" else "like"] = image
    elif kind == "study":
        data["study"] = f"1.2.4.{number % 8}"
    elif kind == "upload":
        files = {"file": named[number % len(named)].read_bytes()}
    sent: dict[str, Any] = {"params": data} if method == "GET" else {"data": data, "files": files}
    # Problems repeat it.
    sent["headers"] = {"X-Request-Id": "same"}
    answer = client.request(method, path.replace("ID", image), **sent)
    if answer.headers["content-type"].startswith("image/"):
        return answer.status_code, answer.content
    if answer.headers["content-type"].startswith("text/html"):
        # The two archives were given keys of their own, so what browsers keep is named apart.
        return answer.status_code, re.sub(r'\d+ ms|data-(?:recent|saved)-of="\w+"', "", answer.text)
    return answer.status_code, without_times(answer.json())


def without_times(document: Any) -> Any:
    if isinstance(document, dict):
        left = {one: v for one, v in document.items() if one not in ("timings_ms", "indexed_at")}
        return {name: without_times(value) for name, value in left.items()}
    return [without_times(one) for one in document] if isinstance(document, list) else document


@examples(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(question=questions(), tenant=st.sampled_from(TENANTS))
def test_each_is_answered_as_if_it_were_alone(
    played: Played, question: Question, tenant: str
) -> None:
    together, alone = played.clients[tenant]
    assert asked(together, played, question) == asked(alone, played, question)


def test_an_image_of_another_tenant_is_in_no_answer(played: Played) -> None:
    client, _ = played.clients["north"]
    for point in played.alone["default"].store.scroll(Filter()):
        assert client.get(f"/v1/images/{point.id}").status_code == 404
        assert client.get(f"/v1/images/{point.id}/thumbnail").status_code == 404
        assert client.post("/v1/search", data={"id": point.id}).status_code == 404
        assert client.post("/v1/recommend", data={"like": point.id}).status_code == 404


_NAMES = ["ct/0", "ct/1", "ct/copy of 1", "ct/2", "other/2", "mr/1", "other/11", "png/0"]
_STEPS = st.builds(
    Step,
    st.sampled_from(TENANTS),
    st.sampled_from(["index", "index", "index again", "vanish"]),
    st.lists(st.sampled_from(_NAMES), min_size=1, max_size=5, unique=True).map(tuple),
) | st.builds(
    Step,
    st.sampled_from(TENANTS),
    st.just("delete"),
    wanted=st.sampled_from(
        [(("study", "1.2.4.0"),), (("sop", "1.2.3.2"),), (("source", "folder"),)]
    ),
)


@examples(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=st.lists(_STEPS, min_size=3, max_size=8))
def test_whatever_happens_to_one_the_other_does_not_notice(
    indexed: Indexed, tmp_path_factory: pytest.TempPathFactory, history: Sequence[Step]
) -> None:
    root = tmp_path_factory.mktemp("tenants")
    files = written(root / "files")
    with ExitStack() as stack:
        settings = indexed.settings.model_copy(update={"pseudonym_key": KEY})
        together, alone = opened(stack, settings, root)
        for step in history:
            told = play(together[step.tenant], step, files)
            assert told == play(alone[step.tenant], step, files), step
        for tenant in TENANTS:
            assert holdings(together[tenant]) == holdings(alone[tenant])
