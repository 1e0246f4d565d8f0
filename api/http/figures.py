"""Every figure of ``/metrics`` by its name: type, labels, unit and meaning.

No other figure can be made: :mod:`api.http.metrics` and :mod:`api.http.archive_figures` take theirs
from here, and so does docs/metrics.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from indexer.jobs.records import JobState, TaskState

__all__ = [
    "FIGURES",
    "GROUPS",
    "LABELS",
    "Figure",
    "counter",
    "counter_family",
    "gauge",
    "gauge_family",
    "histogram",
    "info_family",
]

Type = Literal["counter", "gauge", "histogram", "info"]
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure.

    name: without what its type adds. unit: what is counted or measured. meaning: a sentence.
    labels: names, whose values :data:`LABELS` has.
    """

    name: str
    type: Type
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """Its name as an expression of Prometheus has it; of a histogram without its parts."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.type, "")


def _named(values: Iterable[str]) -> str:
    return ", ".join(f"`{one}`" for one in values)


LABELS: Mapping[str, str] = {
    "route": "the address as the API describes it, such as `/v1/images/{id}`; `unmatched` for what "
    "is not served",
    "method": "`GET`, `HEAD`, `POST`, `DELETE`, `OPTIONS`",
    "status": "the status of the answer, such as `503`",
    "code": "the code of the problem ([errors.md](errors.md))",
    "stage": "`read`, `encode`, `fetch`, `ood`, `prefilter`, `rank`, `facets`, as the header "
    "`Server-Timing` has them",
    "verdict": "`known`, `unfamiliar`, `foreign`",
    "filter": "how candidates were found, `rung` of an answer's evidence: `none`, `exact`, "
    "`codes`, `cells`, `dense` ([search.md](search.md))",
    "kind": "`index`, a job; `run`, a run of `precedent index`",
    "state": f"of a job {_named(JobState)}; of a chunk {_named(TaskState)}; of the queue `due`, "
    "`held`, `later`; of sendings `waiting`, or `asked`: an answer on storage commitment is "
    "awaited",
    "chain": "the id of a chain of the audit log",
    "fingerprint": "of the model; `precedent info` and `/v1/model` say the same",
    "bits": "of a code",
    "precision": "in which images are encoded",
    "version": "of Precedent",
}
"""Labels, and what values they take. None is an id of an image, a path or a tenant."""

GROUPS: Mapping[str, tuple[Figure, ...]] = {
    "Requests": (
        Figure(
            "precedent_requests",
            "counter",
            "requests",
            "Requests answered.",
            ("route", "method", "status"),
        ),
        Figure(
            "precedent_request_seconds",
            "histogram",
            "seconds",
            "Time from the headers of a request to the end of its answer.",
            ("route",),
        ),
        Figure(
            "precedent_refusals", "counter", "answers", "Problems answered.", ("status", "code")
        ),
        Figure(
            "precedent_clients_gone",
            "counter",
            "requests",
            "Requests whose client left first.",
            ("route",),
        ),
        Figure(
            "precedent_connections_refused",
            "counter",
            "connections",
            "Connections refused before they had asked anything.",
            ("status",),
        ),
    ),
    "Room": (
        Figure("precedent_requests_in_flight", "gauge", "requests", "Requests begun."),
        Figure("precedent_requests_at_work", "gauge", "requests", "Requests being worked on."),
        Figure(
            "precedent_requests_at_work_limit",
            "gauge",
            "requests",
            "The setting server.max_at_once.",
        ),
        Figure("precedent_requests_waiting", "gauge", "requests", "Requests that wait for room."),
        Figure(
            "precedent_requests_waiting_limit",
            "gauge",
            "requests",
            "The setting server.max_waiting.",
        ),
        Figure("precedent_uploads", "gauge", "uploads", "Uploads being received."),
    ),
    "Searches": (
        Figure(
            "precedent_stage_seconds",
            "histogram",
            "seconds",
            "Time that a stage of a search took.",
            ("stage",),
        ),
        Figure(
            "precedent_filters",
            "counter",
            "searches",
            "Coarse filters taken by searches.",
            ("filter",),
        ),
        Figure(
            "precedent_verdicts", "counter", "searches", "Verdicts of the OOD gate.", ("verdict",)
        ),
    ),
    "Index and model": (
        Figure("precedent_index_up", "gauge", "1 or 0", "Whether the index can be searched."),
        Figure("precedent_points", "gauge", "images", "Images in the index."),
        Figure(
            "precedent_model",
            "info",
            "1",
            "The model of the index in force.",
            ("fingerprint", "bits", "precision", "version"),
        ),
        Figure(
            "precedent_calibration_images",
            "gauge",
            "images",
            "On how many images queries are judged; 0 = they are not.",
        ),
        Figure(
            "precedent_calibration_alpha",
            "gauge",
            "share, 0 to 1",
            "Share of queries like those images that are called foreign.",
        ),
        Figure(
            "precedent_calibration_timestamp_seconds",
            "gauge",
            "seconds since 1970",
            "When the calibration was made; the shipped one does not say.",
        ),
    ),
    "Jobs": (
        Figure("precedent_jobs", "gauge", "jobs", "Jobs.", ("kind", "state")),
        Figure(
            "precedent_jobs_failed_lately",
            "gauge",
            "jobs",
            "Jobs that ended as failed within a day, and were not taken up again.",
        ),
        Figure("precedent_job_chunks", "gauge", "chunks", "Chunks of jobs.", ("state",)),
        Figure(
            "precedent_job_queue",
            "gauge",
            "tasks",
            "Tasks of running jobs, that a worker could take (due), has (held), or has to leave.",
            ("state",),
        ),
        Figure(
            "precedent_job_queue_oldest_seconds",
            "gauge",
            "seconds",
            "For how long a worker could have taken the task that is due for longest.",
        ),
        Figure(
            "precedent_job_instances_planned",
            "counter",
            "instances",
            "Instances that jobs are to read.",
        ),
        Figure("precedent_job_instances", "counter", "instances", "Instances that jobs have read."),
        Figure(
            "precedent_job_instances_refused",
            "counter",
            "instances",
            "Instances that jobs have refused.",
        ),
        Figure(
            "precedent_job_points",
            "counter",
            "images",
            "Images that jobs have brought into the index.",
        ),
    ),
    "What waits": (
        Figure(
            "precedent_received_waiting_bytes",
            "gauge",
            "bytes",
            "What this process has received and not indexed yet.",
        ),
        Figure(
            "precedent_received_waiting_limit_bytes",
            "gauge",
            "bytes",
            "The setting receive.max_waiting_bytes.",
        ),
        Figure(
            "precedent_sendings",
            "gauge",
            "documents",
            "Documents that wait for an attempt, or for an answer on storage commitment.",
            ("state",),
        ),
    ),
    "Ledger, keys and audit log": (
        Figure("precedent_ledger_up", "gauge", "1 or 0", "Whether the ledger can be asked."),
        Figure("precedent_ledger_bytes", "gauge", "bytes", "Size of the ledger's database."),
        Figure(
            "precedent_keys_expiring", "gauge", "keys", "API keys that expire within two weeks."
        ),
        Figure("precedent_audit_up", "gauge", "1 or 0", "Whether the audit log can be read."),
        Figure(
            "precedent_audit_sequence",
            "gauge",
            "number of a row",
            "Last number of a chain of the audit log.",
            ("chain",),
        ),
        Figure(
            "precedent_audit_digest",
            "gauge",
            "48 bits",
            "The first 48 bits of the hash of a chain's last line.",
            ("chain",),
        ),
    ),
    "Disk": (
        Figure(
            "precedent_disk_size_bytes", "gauge", "bytes", "Size of the disk of the data folder."
        ),
        Figure(
            "precedent_disk_free_bytes",
            "gauge",
            "bytes",
            "What is free on the disk of the data folder.",
        ),
        Figure(
            "precedent_disk_free_files",
            "gauge",
            "files",
            "For how many more files that disk has room.",
        ),
        Figure(
            "precedent_disk_least_free_bytes",
            "gauge",
            "bytes",
            "Below so much nothing is indexed or received.",
        ),
        Figure(
            "precedent_index_bytes",
            "gauge",
            "bytes",
            "What the embedded index takes on the disk.",
        ),
    ),
}
"""All figures of Precedent, by what they are about."""

FIGURES: Mapping[str, Figure] = {one.name: one for group in GROUPS.values() for one in group}
"""The same by name."""


def counter(name: str, registry: CollectorRegistry) -> Counter:
    """The counter of this name. Raises KeyError: there is no such figure, as all of these do."""
    figure = FIGURES[name]
    return Counter(name, figure.meaning, figure.labels, registry=registry)


def gauge(name: str, registry: CollectorRegistry) -> Gauge:
    """The gauge of this name."""
    figure = FIGURES[name]
    return Gauge(name, figure.meaning, figure.labels, registry=registry)


def histogram(name: str, registry: CollectorRegistry) -> Histogram:
    """The histogram of this name, of seconds."""
    figure = FIGURES[name]
    return Histogram(name, figure.meaning, figure.labels, buckets=_SECONDS, registry=registry)


def gauge_family(name: str, value: float | None = None) -> GaugeMetricFamily:
    """What a collector tells as this gauge; value: where it has no labels."""
    return GaugeMetricFamily(name, FIGURES[name].meaning, value, labels=_labels(name, value))


def counter_family(name: str, value: float) -> CounterMetricFamily:
    """What a collector tells as this counter."""
    return CounterMetricFamily(name, FIGURES[name].meaning, value)


def info_family(name: str, value: dict[str, str]) -> InfoMetricFamily:
    """What a collector tells as this information. value: by label."""
    if set(value) != {*FIGURES[name].labels}:
        raise KeyError(f"{name} has the labels {', '.join(FIGURES[name].labels)}")
    return InfoMetricFamily(name, FIGURES[name].meaning, value)


def _labels(name: str, value: float | None) -> Sequence[str] | None:
    return FIGURES[name].labels if value is None else None
