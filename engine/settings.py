"""The one settings tree: defaults, then a TOML file, then ``PRECEDENT_…`` variables.

Nested settings take a double underscore: ``PRECEDENT_SEARCH__MIN_CANDIDATES=200``.
The TOML file is ``precedent.toml`` in the working directory, or what ``PRECEDENT_CONFIG``
names. A secret may lie in a file of its own, which ``PRECEDENT_…_FILE`` names. Unknown names in the
settings file are refused, so that a misspelt setting does not go unnoticed.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError as SettingsSourceError,
    TomlConfigSettingsSource,
)

from engine.documents_settings import Destination, DocumentsSettings, refuse_secrets
from engine.environment import nearest, warn_of_unknown
from engine.errors import SettingsError
from engine.integration_settings import (
    CdsHooksSettings,
    FhirSettings,
    QidoSettings,
    ViewerName,
    ViewerSettings,
)
from engine.oidc_settings import OidcSettings
from engine.operation import OperationSettings
from engine.retention_settings import RetentionRule
from engine.settings_by_file import with_files
from engine.settings_entries import setting_at, without_a_kind
from engine.settings_fields import PathSetting, SettingsGroup, TenantSetting
from engine.smart_settings import SmartName, SmartSettings
from engine.storage_settings import StorageSettings, refuse_storage_keys

__all__ = [
    "AuditSettings",
    "BackupSettings",
    "DicomWebSettings",
    "FolderSettings",
    "ImageLimits",
    "IndexingSettings",
    "JobSettings",
    "LedgerSettings",
    "ReceiveSettings",
    "SearchSettings",
    "ServerSettings",
    "Settings",
    "SourceSettings",
    "StoreSettings",
    "ZipLimits",
    "config_file",
    "load_settings",
]

_CONFIG_VARIABLE = "PRECEDENT_CONFIG"
_CONFIG_DEFAULT = "precedent.toml"


def _cores() -> int:
    """Cores this process may use, at most 16: a container may have been given few of many."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(usable or 1, 16)


class ImageLimits(SettingsGroup):
    """Limits of one image file, checked before anything is decoded."""

    max_file_bytes: Annotated[int, Field(gt=0)] = 2 * 1024**3
    """Bytes of a file, and of a member of an archive, unpacked."""
    max_pixels: Annotated[int, Field(gt=0)] = 100_000_000
    """Rows × columns of one frame."""
    max_frames: Annotated[int, Field(gt=0)] = 100_000
    """Frames of one instance."""
    max_decoded_bytes: Annotated[int, Field(gt=0)] = 1024**3
    """Bytes of all the pixels that have to be decoded at once."""
    min_side: Annotated[int, Field(gt=0)] = 8
    """Rows and columns below this carry no picture."""
    max_nesting: Annotated[int, Field(gt=0)] = 32
    """Depth of nested DICOM sequences."""


class ZipLimits(SettingsGroup):
    """Limits of a zip or tar archive, checked in its directory or headers and again while
    unpacking; and of files that gzip or Zstandard packed."""

    max_members: Annotated[int, Field(gt=0)] = 100_000
    """Files in one archive."""
    max_total_bytes: Annotated[int, Field(gt=0)] = 200 * 1024**3
    """Of all members together, unpacked. Each member is limited by ``limits.max_file_bytes``."""
    max_ratio: Annotated[float, Field(ge=1)] = 200.0
    """Largest ratio of unpacked to packed size of a member, or of what is packed as a whole."""


class IndexingSettings(SettingsGroup):
    """How an archive is indexed: reading, encoding, and which frames become points."""

    readers: Annotated[int, Field(ge=1, le=64)] = Field(default_factory=_cores)
    """Processes that read and decode files."""
    encoders: Annotated[int, Field(ge=1, le=64)] = Field(default_factory=_cores)
    """Batches encoded at the same time; 1 for a GPU."""
    reader_memory_bytes: Annotated[int, Field(ge=256 * 1024**2)] = 4 * 1024**3
    """Address space one reading process may take."""
    reader_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Wall-clock time one file may take to read."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Images encoded at once."""
    commit_every: Annotated[int, Field(ge=1)] = 1000
    """Files after which the store is flushed and the ledger committed."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 512 * 1024**2
    """Free space on the disk of the data folder; indexing stops before there is less."""
    frames: Literal["spread", "all", "nth", "middle", "key"] = "spread"
    """Which frames of a multi-frame instance are indexed: evenly spaced ones, all, every n-th,
    the middle one, or those that key object selections of the instance itself name."""
    frames_per_instance: Annotated[int, Field(ge=1)] = 8
    """Most frames indexed of a multi-frame instance, whatever the policy."""
    orient: bool = True
    """Whether slices that are stored upside down, mirrored or lying are turned before the model
    sees them, as Image Orientation (Patient) or Patient Orientation says; thumbnails stay."""
    every_nth_frame: Annotated[int, Field(ge=1)] = 10
    """The n of the policy "nth"."""
    take_derived: bool = False
    """Index segmentations, RT dose grids and parametric maps too: derived objects whose pixels are
    labels, doses or measurements rather than a picture."""
    thumbnail_side: Annotated[int, Field(ge=16, le=1024)] = 192
    """Longer side of a thumbnail, in pixels."""


class StoreSettings(SettingsGroup):
    """Where the points are stored, and the profile of a new index."""

    url: str | None = None
    """A Qdrant server, as in "https://qdrant.example:6333"; None = the embedded store."""
    urls: tuple[str, ...] = ()
    """Several nodes of one cluster, instead of ``url``: when one is away, the next one that is
    ready is asked. All have the same ``grpc_port``."""
    api_key: SecretStr | None = None
    """The key or token that the server asks for; None = it asks for none."""
    collection: str = "precedent"
    """Name of the collection on the server."""
    prefer_grpc: bool = True
    """Ask over gRPC, but for many payloads, which REST brings faster; False = all over REST."""
    grpc_port: Annotated[int, Field(ge=1, le=65535)] = 6334
    """The port on which the server, or each node, speaks gRPC."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Timeout of one request to the server."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 5
    """How often one request is sent at most, when the server is busy or unreachable."""
    patience_seconds: Annotated[float, Field(ge=0)] = 600.0
    """For how long work that fills an index, or writes a snapshot, waits for a server that has gone
    away, as while it is upgraded. Searches do not."""
    shards: Annotated[int, Field(ge=1)] = 1
    """Into how many parts a new index is divided: as many as there are nodes, at least."""
    replication_factor: Annotated[int, Field(ge=1)] = 1
    """Copies of each shard. Shards and copies apply when the collection is created."""
    profile: Literal["hash", "precise"] = "hash"
    """Profile of a new index: without or with an HNSW graph; see docs/search.md."""
    quantised: bool = False
    """Whether a new index finds candidates by eight-bit vectors."""

    @model_validator(mode="before")
    @classmethod
    def _first_of_several(cls, values: Any) -> Any:
        """``url`` is the first of ``urls`` where these are given."""
        if isinstance(values, dict) and (urls := values.get("urls")):
            if values.get("url") not in (None, *urls):
                raise ValueError("store.url is none of store.urls; give one of the two")
            return {**values, "url": values.get("url") or next(iter(urls))}
        return values


class LedgerSettings(SettingsGroup):
    """Where the ledger, the record of instances and jobs, is kept."""

    url: SecretStr | None = None
    """A database, as in "postgresql+psycopg://user@db.example/precedent"; None = an SQLite file
    in the data folder."""


class AuditSettings(SettingsGroup):
    """The audit log: who had access to which images. It lies beside the ledger."""

    enabled: bool = True
    """Record every access, and answer none that cannot be recorded."""


class BackupSettings(SettingsGroup):
    """Backups by `precedent backup`."""

    at_most_days: Annotated[float, Field(gt=0)] | None = None
    """Days after which `precedent doctor` warns that the last backup is too old, or that there is
    none; None = it only says how old it is."""


class JobSettings(SettingsGroup):
    """How jobs are divided into chunks of instances and given to workers."""

    broker: SecretStr | None = None
    """URL of the message broker, as in "redis://…" or "amqp://…"; None = workers poll the
    ledger."""
    chunk: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Instances in a chunk: some minutes of work."""
    attempts: Annotated[int, Field(ge=1)] = 8
    """How often a chunk is attempted before it is marked as failed."""
    backoff_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Pause after the first failed attempt; it doubles with each further one, up to 15 minutes."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How often a worker renews its lease on a chunk, and looks for chunks that others left."""
    lapse_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A chunk whose worker has sent no heartbeat for this long is given to another."""
    queued: Annotated[int, Field(ge=1)] = 32
    """Most chunks in the broker's queue; the others wait in the ledger."""


def _window(written: str) -> str:
    """Checks a daily span of local time, HH:MM-HH:MM, which may pass midnight.

    Raises:
        ValueError: the text is not of this form.
    """
    match = re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", written)
    if match is None:
        raise ValueError(f"{written!r} is no span of the day; write it as in 20:00-06:00")
    return written


class SourceSettings(SettingsGroup):
    """Settings that all sources of images have."""

    window: Annotated[str, AfterValidator(_window)] | None = None
    """Local time of day in which the source may be read, as in "20:00-06:00"; None = always."""
    max_workers: Annotated[int, Field(ge=1)] | None = None
    """Most chunks of the source that are processed at the same time; None = no limit."""
    tenant: TenantSetting | None = None
    """Whose its images are; None = that of `--tenant`."""
    uids: Literal["kept", "replaced"] = "kept"
    """Whether its images have the UIDs under which the hospital's systems know them, or others,
    "replaced" by de-identification before they got here. Of such ones no documents, FHIR resources
    and links of viewers are made, which would lead nowhere."""


class FolderSettings(SourceSettings):
    """Folders, files, archives and DICOMDIRs that every worker sees under these paths."""

    kind: Literal["folder"]
    """That this source is of folders and files."""
    paths: tuple[PathSetting, ...]
    """Folders, files, archives and DICOMDIRs, as every worker sees them."""
    labels: Literal["folder"] | None = None
    """With "folder" the name of the folder in which an image lies is its label; None = it has
    none."""


class DicomWebSettings(SourceSettings):
    """A DICOMweb server (QIDO-RS and WADO-RS)."""

    kind: Literal["dicomweb"]
    """That this source is a DICOMweb server."""
    url: HttpUrl
    """Its root, below which `/studies` is."""
    username: str | None = None
    """With a password: who asks the server (HTTP Basic)."""
    password: SecretStr | None = None
    """Of that user. It belongs into a variable, or into a file that one names."""
    token: SecretStr | None = None
    """Sent as a bearer token."""
    ca_file: PathSetting | None = None
    """Certificates to trust instead of the system's."""
    allowed_hosts: tuple[str, ...] = ()
    """Other hosts to which the server may redirect."""
    retrieve: Literal["instance", "series"] = "instance"
    """What one request brings: an instance, or a whole series."""
    max_connections: Annotated[int, Field(ge=1, le=64)] = 4
    """Most connections of one worker. Times ``max_workers`` this is the most that the server sees,
    but for one more connection while the instances of a new job are being listed."""
    requests_per_second: Annotated[float, Field(gt=0)] | None = None
    """Most requests per second of one worker; None = no limit."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Timeout of one request to the server."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 5
    """How often one request is sent at most, when the server is busy or unreachable."""
    page: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Studies, series or instances in the answer to one QIDO-RS request."""


def _uid(written: str) -> str:
    """Checks a UID (PS3.5 9.1).

    Raises:
        ValueError: the text is none.
    """
    if len(written) > 64 or re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", written) is None:
        raise ValueError(f"{written[:80]!r} is no UID; write it as in 1.2.840.113619.4.26")
    return written


class ReceiveSettings(SettingsGroup):
    """Instances that a PACS sends: to the C-STORE SCP, or to the service by STOW-RS."""

    ae_title: Annotated[str, Field(min_length=1, max_length=16)] = "PRECEDENT"
    """The AE title under which it is called."""
    host: str = "127.0.0.1"
    """The address on which it listens; "0.0.0.0" = on all of the machine."""
    port: Annotated[int, Field(ge=0, le=65535)] = 11112
    """The port on which it listens; 0 = a free one."""
    allowed_ae_titles: tuple[str, ...] = ()
    """Calling AE titles that are accepted; by default none is."""
    sop_classes: tuple[Annotated[str, AfterValidator(_uid)], ...] = ()
    """UIDs of private SOP classes that are accepted besides the standard's."""
    max_associations: Annotated[int, Field(ge=1, le=256)] = 8
    """Associations at a time; further ones are told to come again."""
    max_waiting_bytes: Annotated[int, Field(gt=0)] = 20 * 1024**3
    """Bytes of received instances that are not indexed yet; above this senders are told to wait."""
    max_request_bytes: Annotated[int, Field(gt=0)] = 4 * 1024**3
    """Bytes of one request of STOW-RS, with all of its instances."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 1024**3
    """Free space on the disk; below this senders are told to wait."""
    keep: bool = True
    """Keep received files after indexing; only kept ones can be encoded again by a later model."""
    idle_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Indexing starts when nothing was received for this long, or ``batch`` instances wait."""
    batch: Annotated[int, Field(ge=1)] = 500
    """Instances that are indexed together, at most."""


class SearchSettings(SettingsGroup):
    """How a query is answered."""

    k: Annotated[int, Field(ge=1, le=1000)] = 10
    """Hits of an answer, where the question does not say how many."""
    coarse: Literal["auto", "codes", "cells"] = "auto"
    """How candidates are selected: by their "codes", or by the "cells" in which they lie; "auto" =
    by codes where the index has measured that these find the most similar images, else by cells."""
    min_candidates: Annotated[int, Field(ge=1)] = 1000
    """Least candidates that codes must leave …"""
    candidates_per_hit: Annotated[int, Field(ge=1)] = 20
    """… and least candidates for each hit asked for …"""
    candidates_share: Annotated[float, Field(ge=0, le=1)] = 0.0075
    """… and least share of the images that pass the filters, for up to ten hits; for more hits it
    grows with the square root of their number."""
    max_hamming_ranked: Annotated[int, Field(ge=1)] = 4096
    """Order ``hamming`` ranks this many candidates at most: those most similar to the query."""
    max_counted: Annotated[int, Field(ge=1)] = 2_000
    """On a server, up to about this many candidates are counted; larger numbers are estimated."""
    max_faceted: Annotated[int, Field(ge=1)] = 5_000
    """On a server, facets of a filtered search are counted over up to this many images; for more
    they are estimated from a sample of this size."""
    max_scanned: Annotated[int, Field(ge=256)] = 5_000_000
    """Most images compared in a search; of more, a fixed sample is compared."""
    facet_values: Annotated[int, Field(ge=1, le=1000)] = 50
    """Most values listed for each facet."""
    placeholder_patients: bool = True
    """Treat one patient with more studies than any person has as many unknown ones, so that leaving
    out or grouping by the same patient does not take in the whole archive."""
    ood_policy: Literal["warn", "refuse"] = "warn"
    """What to do with a query foreign to the model: answer with a warning, or with no hits."""


class ServerSettings(OperationSettings):
    """Where the HTTP server listens, the largest upload it accepts, and how it is operated."""

    host: str = "127.0.0.1"
    """The address on which it listens; any other than a loopback address needs a key."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """The port on which it listens; 0 = a free one."""
    max_upload_bytes: Annotated[int, Field(gt=0)] = 64 * 1024**2
    """Size of the body of a request, as of an image that is searched for."""
    drain_seconds: Annotated[float, Field(ge=0, le=300)] = 0.0
    """How long after SIGTERM requests are still taken, while `/readyz` says that none should be
    sent: as long as whoever distributes them needs to notice."""
    show_names: bool = False
    """Name hits without DICOM UIDs by where their file lies in its source's folder. Off, since
    names of files may name patients."""
    language: Literal["en", "de"] = "en"
    """Of the pages, for browsers that prefer none which these speak."""
    receive: bool = False
    """Whether the server also takes what a PACS pushes (C-STORE), as the settings ``receive`` say,
    and indexes it."""


class Settings(BaseSettings):
    """All settings. Use :func:`load_settings`, which turns errors into readable messages."""

    model_config = SettingsConfigDict(
        env_prefix="PRECEDENT_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    data_dir: PathSetting = Path("precedent-data")
    """Index, ledger and, unless they lie elsewhere, thumbnails."""
    model: PathSetting | None = None
    """Folder of a checkpoint; None = the shipped one."""
    device: str = "auto"
    """Where the model runs: "cpu", "cuda", "cuda:1", …; "auto" = a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """In which images are encoded. "auto" follows the index; the first index is made in fp32 on a
    CPU, which any processor computes alike, and in bf16 on a GPU that has it."""
    pseudonym_key: SecretStr | None = None
    """Key of the HMAC that replaces patient ids; None = generated and kept in the data folder."""
    limits: ImageLimits = ImageLimits()
    zip: ZipLimits = ZipLimits()
    indexing: IndexingSettings = IndexingSettings()
    store: StoreSettings = StoreSettings()
    ledger: LedgerSettings = LedgerSettings()
    storage: StorageSettings = StorageSettings()
    audit: AuditSettings = AuditSettings()
    backup: BackupSettings = BackupSettings()
    jobs: JobSettings = JobSettings()
    sources: dict[
        str, Annotated[FolderSettings | DicomWebSettings, Field(discriminator="kind")]
    ] = Field(default_factory=dict)
    """Sources by name, for `precedent index --source NAME` and jobs."""
    receive: ReceiveSettings = ReceiveSettings()
    documents: DocumentsSettings = DocumentsSettings()
    destinations: dict[str, Destination] = Field(default_factory=dict)
    """Where DICOM documents may be sent, by name."""
    search: SearchSettings = SearchSettings()
    server: ServerSettings = ServerSettings()
    oidc: OidcSettings = OidcSettings()
    smart: dict[SmartName, SmartSettings] = Field(default_factory=dict)
    """EHRs that open the page by SMART App Launch, by name."""
    viewers: dict[ViewerName, ViewerSettings] = Field(default_factory=dict)
    """Viewers in which hits can be opened, by name, in the order in which they are offered."""
    fhir: FhirSettings = FhirSettings()
    cds_hooks: CdsHooksSettings = CdsHooksSettings()
    qido: QidoSettings = QidoSettings()
    retention: dict[str, RetentionRule] = Field(default_factory=dict)
    """What is not kept any longer, by the names of rules, for `precedent retention`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls, toml_file=config_file())
        if "client_secret" in toml.toml_data.get("oidc", {}):
            # Such files are copied, mailed and put under version control.
            raise SettingsError(
                f"oidc.client_secret does not belong into {config_file()}; put it into a file of "
                "its own, named by oidc.client_secret_file, or into PRECEDENT_OIDC__CLIENT_SECRET"
            )
        refuse_secrets(toml.toml_data, config_file())
        refuse_storage_keys(toml.toml_data, config_file())
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = with_files(env_settings.env_vars, settings_cls)
        return init_settings, env_settings, toml


def config_file() -> Path | None:
    """The settings file; None = there is none.

    Raises:
        SettingsError: the one that is named is not there.
    """
    named = os.environ.get(_CONFIG_VARIABLE)
    if named is None:
        return Path(_CONFIG_DEFAULT) if Path(_CONFIG_DEFAULT).is_file() else None
    path = Path(os.path.expanduser(named))  # noqa: PTH111 - which raises for an unknown user
    if not path.is_file():
        raise SettingsError(
            f"{_CONFIG_VARIABLE} names {named!r}, which is not a file; "
            "correct the path or unset the variable"
        )
    return path


def _known_names() -> dict[str, str]:
    """The names of all settings by their variables, as "search.k" by "PRECEDENT_SEARCH__K"."""
    names: list[str] = []
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            names += [f"{name}.{inner}" for inner in group.model_fields]
        else:
            names.append(name)
            if SecretStr in get_args(group):
                names.append(f"{name}_file")  # engine/settings_by_file.py
    return {"PRECEDENT_" + name.upper().replace(".", "__"): name for name in names}


def _without_a_kind(group: int | str, name: int | str) -> str:
    written = TomlConfigSettingsSource(Settings, toml_file=config_file()).toml_data
    file = config_file() or _CONFIG_DEFAULT
    return without_a_kind(str(group), str(name), Settings, os.environ, written, file)


def load_settings(**overrides: Any) -> Settings:
    """The settings, with ``overrides`` that are not None taking precedence over all sources.

    A variable with our prefix that is no setting is warned of, once.

    Raises:
        SettingsError: a value is out of range, a name is unknown or the file is not TOML.
    """
    warn_of_unknown(os.environ, _known_names())
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "union_tag_not_found":
            raise SettingsError(_without_a_kind(*first["loc"])) from None
        name = setting_at(first["loc"], Settings)
        variable = "PRECEDENT_" + name.upper().replace(".", "__")
        if first["type"] == "extra_forbidden":
            meant = nearest(name, _known_names().values())
            hint = f" (is {meant} meant?)" if meant else ""
            raise SettingsError(
                f"there is no setting {name}{hint}; correct or remove {variable}, or its line in "
                f"{_CONFIG_DEFAULT}"
            ) from None
        # The value itself is left out: it may be a secret.
        raise SettingsError(
            f"setting {name}: {first['msg']}; set it in {variable} or {_CONFIG_DEFAULT}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config_file()} is no TOML: {error}") from None
    except SettingsSourceError as error:
        group = re.search(r'field "(\w+)"', str(error))
        variable = f"PRECEDENT_{group[1].upper()}" if group else "a PRECEDENT_… variable"
        raise SettingsError(
            f"{variable} is no JSON; set its values one by one, as in PRECEDENT_SEARCH__K=5"
        ) from None
