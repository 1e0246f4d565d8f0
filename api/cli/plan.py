"""``precedent plan``: extrapolates disk, memory and time of an archive from measured figures."""

import json
from dataclasses import dataclass
from importlib.resources import files
from math import ceil
from typing import Annotated, Any

import typer
from rich.console import Console

from api.cli.options import JsonOption, write_json
from engine.errors import QueryError
from engine.settings import StoreSettings, load_settings

__all__ = ["Measured", "Needs", "needs", "plan"]

_GB = 1e9
_PROFILES = ("hash", "precise", "hash-quantised")
_FORMATS = {
    "uncompressed": "uncompressed DICOM",
    "rle": "RLE DICOM",
    "jpeg-ls": "JPEG-LS DICOM",
    "jpeg-2000": "JPEG 2000 DICOM",
    "jpeg": "JPEG",
}

# These figures are assumed, not measured. The command prints them.
_HEADROOM_DISK = 2.0
"""Factor, because a store keeps old segments while it rewrites them, and a log."""
_HEADROOM_MEMORY = 1.25
_MAX_IMAGES_PER_SHARD = 20_000_000
_BYTES_PER_BAND = 30
"""Bytes in payload and payload index for each band (16 bits) of a code beyond 64 bits."""
_GRAPH_GROWTH, _CELLS_GROWTH = 0.3, 0.5
"""Lowest exponents assumed for the growth of search time with the number of images: of a graph that
of other graph indexes in the same benchmark; of cells that of their number and size."""
_MOST_EMBEDDED = 3_000_000
"""Images for which one machine with an index in its own processes is planned unless asked."""
_STORES = ("auto", "embedded", "server")
_EMBEDDED_PROFILES = ("hash", "precise")


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures that were measured for a profile, and by ``make bench-index`` for a format.

    Those of an embedded index are printed by ``make bench-search``. Those of the layout on a server
    were measured with its payload and indexes in the process.

    Bytes are per image: at ``count``; on a server the slope over the measured archive sizes.

    count: images in the largest archive measured. disk_bytes: of the index.
    anonymous_bytes: memory that no file backs, which must be available.
    resident_bytes: memory, including all parts of files that searches read.
    upsert_per_second, optimise_per_second: images per second, written and optimised, at ``count``;
        None = the profile needs no optimisation.
    p50_ms: median milliseconds of a search at ``count``. growth: exponent of its growth with the
        number of images. graph: whether the profile has an HNSW graph. cells: whether searches look
    into cells.
    indexing_per_second: images that one worker reads, encodes and writes per second.
    machine: on which the profile was measured. files: description of the files indexed.
    dim, bits: length of the blended feature and of the code in the measured archives.
    """

    count: int
    disk_bytes: float
    anonymous_bytes: float
    resident_bytes: float
    upsert_per_second: float
    optimise_per_second: float | None
    p50_ms: float
    growth: float
    indexing_per_second: float
    machine: str
    files: str = ""
    graph: bool = False
    cells: bool = False
    dim: int = 256
    bits: int = 64


@dataclass(frozen=True, slots=True)
class Needs:
    """What an archive needs. Bytes: of all nodes together, including replicas.

    memory_bytes: must be available. fast_memory_bytes: enough that no search reads from disk.
    nodes: Qdrant nodes. indexing_hours: with all workers in parallel. arranging_hours: to optimise
    the index, with all nodes in parallel. p50_ms: median milliseconds of a search.
    """

    disk_bytes: float
    memory_bytes: float
    fast_memory_bytes: float
    nodes: int
    shards: int
    indexing_hours: float
    arranging_hours: float
    p50_ms: float


def needs(
    measured: Measured,
    images: int,
    *,
    dim: int,
    bits: int,
    quantised: bool,
    replicas: int,
    workers: int,
    rate: float | None,
    node_memory: float,
    node_disk: float,
) -> Needs:
    """What an archive of so many images needs.

    Args:
        dim, bits: length of the model's features and codes.
        quantised: whether the index keeps eight-bit copies of the vectors.
        replicas: copies of each point. workers: processes that index in parallel.
        rate: images per second that one worker indexes; None = as measured.
        node_memory, node_disk: bytes of one Qdrant node.
    """
    extra_vector_bytes = (3 if quantised else 2) * (dim - measured.dim)
    extra_code_bytes = _BYTES_PER_BAND * (bits - measured.bits) / 16
    copies = images * replicas
    disk = copies * (measured.disk_bytes + extra_vector_bytes + extra_code_bytes) * _HEADROOM_DISK
    memory = copies * (measured.anonymous_bytes + extra_code_bytes / 2) * _HEADROOM_MEMORY
    fast = (
        copies
        * (measured.resident_bytes + extra_vector_bytes + extra_code_bytes)
        * _HEADROOM_MEMORY
    )
    nodes = max(replicas, ceil(memory / node_memory), ceil(disk / node_disk))
    # With one of two away no collection, alias or index can change.
    nodes = 3 if nodes == 2 else nodes
    shards = nodes * ceil(max(1, images / _MAX_IMAGES_PER_SHARD) / nodes)
    optimise_rate = measured.optimise_per_second
    return Needs(
        disk_bytes=disk,
        memory_bytes=memory,
        fast_memory_bytes=max(memory, fast),
        nodes=nodes,
        shards=shards,
        indexing_hours=images / (workers * (rate or measured.indexing_per_second)) / 3600,
        arranging_hours=0.0 if optimise_rate is None else copies / nodes / optimise_rate / 3600,
        p50_ms=measured.p50_ms * max(1.0, images / measured.count / nodes) ** _growth(measured),
    )


def _growth(measured: Measured) -> float:
    """The exponent with which search time grows with the number of images: never below 1, or with a
    graph below ``_GRAPH_GROWTH``, with cells below ``_CELLS_GROWTH``.

    The exponent measured on small archives is too low for large ones: comparing images, which takes
    little of the time in small archives, grows linearly.
    """
    least = _GRAPH_GROWTH if measured.graph else _CELLS_GROWTH if measured.cells else 1.0
    return max(least, measured.growth)


def plan(
    images: Annotated[str, typer.Option(help="How many, as in 50M, 800k or 120000.")],
    profile: Annotated[str, typer.Option(help="'hash', 'precise' or 'hash-quantised'.")] = "hash",
    store: Annotated[
        str,
        typer.Option(
            help="'embedded' = in one machine's own processes; 'server' = Qdrant nodes; 'auto' = "
            "embedded up to 3 million images."
        ),
    ] = "auto",
    bits: Annotated[int, typer.Option(help="Of a code.")] = 64,
    dim: Annotated[int, typer.Option(help="Length of the blended feature.")] = 256,
    replicas: Annotated[int, typer.Option(help="Copies of each image's point.")] = 1,
    workers: Annotated[int, typer.Option(help="That read and encode, two cores each.")] = 1,
    form: Annotated[
        str, typer.Option("--format", help=f"Of the files: {', '.join(_FORMATS)}.")
    ] = "uncompressed",
    images_per_second: Annotated[
        float | None, typer.Option(help="Of one worker; as measured of the format if left out.")
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Workers with a GPU; needs --images-per-second.")
    ] = False,
    node_memory_gb: Annotated[float, typer.Option(help="Memory of a Qdrant node.")] = 64,
    node_disk_gb: Annotated[float, typer.Option(help="Disk of a Qdrant node.")] = 2000,
    as_json: JsonOption = False,
) -> None:
    """Say what disk, memory, nodes and time an archive will need, with the sums shown."""
    if profile not in _PROFILES:
        raise QueryError(f"profile is {profile!r}; use one of {', '.join(_PROFILES)}")
    if store not in _STORES:
        raise QueryError(f"--store is {store!r}; use one of {', '.join(_STORES)}")
    if store == "embedded" and profile not in _EMBEDDED_PROFILES:
        raise QueryError(
            f"--profile is {profile!r}, of no use in an embedded index, which compares in full "
            f"precision; use one of {', '.join(_EMBEDDED_PROFILES)}, or --store server"
        )
    if store == "embedded" and replicas != 1:
        raise QueryError(
            f"--replicas is {replicas}; an embedded index is one copy on one machine, use --store "
            "server"
        )
    if form not in _FORMATS:
        raise QueryError(f"--format is {form!r}; use one of {', '.join(_FORMATS)}")
    if gpu and images_per_second is None:
        raise QueryError(
            "no GPU has been measured yet; index a thousand images with it, and give what it "
            "reached with --images-per-second"
        )
    if bits < 16 or bits % 8:
        raise QueryError(f"--bits is {bits}; codes have a multiple of 8 bits, from 16 on")
    for name, value in (
        ("--dim", dim), ("--replicas", replicas), ("--workers", workers),
        ("--images-per-second", images_per_second), ("--node-memory-gb", node_memory_gb),
        ("--node-disk-gb", node_disk_gb),
    ):  # fmt: skip
        if value is not None and not value > 0:
            raise QueryError(f"{name} is {value}; give a number above zero")
    count = _parsed_count(images)
    fits = count <= _MOST_EMBEDDED and replicas == 1 and profile in _EMBEDDED_PROFILES
    embedded = store == "embedded" or (store == "auto" and fits)
    measured = _measured(profile, form, embedded=embedded)
    found = needs(
        measured,
        count,
        dim=dim,
        bits=bits,
        quantised=profile == "hash-quantised",
        replicas=replicas,
        workers=workers,
        rate=images_per_second,
        node_memory=float("inf") if embedded else node_memory_gb * _GB,
        node_disk=float("inf") if embedded else node_disk_gb * _GB,
    )
    warning = _warning(load_settings().store, found.nodes)
    rate = images_per_second or measured.indexing_per_second
    copies = count * replicas
    rows = {
        "disk": (
            _gigabytes(found.disk_bytes),
            f"{copies:,} × {found.disk_bytes / copies / _HEADROOM_DISK:,.0f} B × "
            f"{_HEADROOM_DISK:g} (room to rewrite)",
        ),
        "memory": (
            _gigabytes(found.memory_bytes),
            f"{copies:,} × {found.memory_bytes / copies / _HEADROOM_MEMORY:,.0f} B × "
            f"{_HEADROOM_MEMORY:g}",
        ),
        "memory, for full speed": (
            _gigabytes(found.fast_memory_bytes),
            f"{copies:,} × {found.fast_memory_bytes / copies / _HEADROOM_MEMORY:,.0f} B × "
            f"{_HEADROOM_MEMORY:g}",
        ),
        **(
            {"machines": ("1", "with the index in its own processes; --store server for Qdrant")}
            if embedded
            else {
                "Qdrant nodes": (
                    f"{found.nodes}",
                    f"of {node_memory_gb:g} GB memory and {node_disk_gb:g} GB disk; memory, disk "
                    "or replicas decide; never two: with one away nothing could be changed",
                ),
                "shards": (f"{found.shards}", f"at most {_MAX_IMAGES_PER_SHARD:,} images each"),
            }
        ),
        "indexing": (
            f"{found.indexing_hours:,.1f} h",
            f"{count:,} / ({workers} × {rate:,.0f} images/s)",
        ),
        "arranging": (
            f"{found.arranging_hours:,.1f} h",
            "nothing to do"
            if measured.optimise_per_second is None
            else f"{copies // found.nodes:,} a node / {measured.optimise_per_second:,.0f} images/s",
        ),
        "a search, half of them within": (
            f"{found.p50_ms:,.1f} ms",
            f"{measured.p50_ms:g} ms at {measured.count:,} images, growing with the power "
            f"{_growth(measured):g} of what a node has",
        ),
    }
    if as_json:
        names = Needs.__slots__
        told = {name: round(getattr(found, name), 3) for name in names}
        told |= {"images": count, "store": "embedded" if embedded else "server"}
        write_json(told | ({"warnings": [warning]} if warning else {}))
        return
    console = Console()
    width = max(map(len, rows))
    for name, (amount, why) in rows.items():
        console.print(f"{name:>{width}}  {amount:>10}  = {why}", highlight=False, soft_wrap=True)
    if warning:
        console.print(f"Warning: {warning}", highlight=False, soft_wrap=True)
    console.print(
        f"Measured up to {measured.count:,} images on {measured.machine}; beyond that "
        "extrapolated. docs/search.md has the tables.",
        highlight=False,
        soft_wrap=True,
    )
    if images_per_second is None:
        console.print(
            f"Indexing: measured with {measured.files}; --format names others, --images-per-second "
            "takes a rate of your own. docs/evaluation.md has the tables.",
            highlight=False,
            soft_wrap=True,
        )


def _gigabytes(size: float) -> str:
    gigabytes = size / _GB
    return f"{gigabytes:,.0f} GB" if gigabytes >= 10 else f"{gigabytes:.1f} GB"


def _warning(settings: StoreSettings, nodes: int) -> str | None:
    """What the settings would make wrong on so many nodes, or on those that the server has, and the
    way out; None = nothing, or no server is set."""
    if settings.url is None:
        return None
    # Imported here, as it loads a large library.
    from engine.store.checks import check_plan

    found = check_plan(settings, nodes)
    if found is None or found.state == "good":
        return None
    return f"{found.sentence}; {found.way_out}"


def _parsed_count(text: str) -> int:
    """The number that a text such as "50M" stands for. Raises QueryError if it is none."""
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
    digits = text.strip().lower().replace(",", "").replace("_", "")
    unit = digits[-1:] if digits[-1:] in units else ""
    try:
        count = round(float(digits.removesuffix(unit)) * units[unit])
    except (ValueError, OverflowError):
        count = 0
    if not 1 <= count <= 10**12:
        raise QueryError(f"--images is {text!r}; give a number, as in 50M, 800k or 120000")
    return count


def _measured(profile: str, form: str, *, embedded: bool) -> Measured:
    known: dict[str, Any] = json.loads(files("api").joinpath("measured.json").read_text())
    indexing, figures = known["indexing"], known["embedded" if embedded else "server"]
    found = indexing["formats"][form]
    return Measured(
        **figures["profiles"][profile],
        indexing_per_second=found["per_second"],
        machine=figures["machine"],
        files=f"{_FORMATS[form]} files of {indexing['pixels']} pixels, "
        f"{found['kib_a_file']:.0f} KiB each, on {indexing['machine']}",
        graph=profile == "precise",
        cells=embedded,
    )
