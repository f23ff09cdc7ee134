"""Counters and histograms of a server: for Prometheus, and OpenTelemetry if it is configured."""

import os
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points, version
from typing import Any

from sonde.core.errors import InputError, failed_import
from sonde.run.instruments.entries import Key
from sonde.run.watching.metrics import OpenTelemetryMetrics, PrometheusMetrics
from sonde.serving.served import Answered

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
GAUGES = {
    "waiting_inputs": "Inputs in the queue.",
    "ready": "1 if the model can answer.",
    "stalled_seconds": "Time of the forward pass that runs now.",
    "last_commit_timestamp_seconds": "Time of the last commit of the traffic; 0 if none.",
}
"""Gauges that are measured when they are asked for."""
REPLICA = "replica"
"""Label of every metric if there are several replicas."""


class Figures:
    """The metrics of a server. Labels are only routes, status codes, detectors and sites.

    Parameters
    ----------
    registry : prometheus_client.CollectorRegistry, optional

    Raises
    ------
    InputError
        If ``prometheus_client`` is not installed.
    """

    def __init__(self, registry: Any = None) -> None:
        self.guard = PrometheusMetrics(registry)
        import prometheus_client as client

        own_registry = self.guard.registry
        self.requests = client.Counter(
            "sonde_requests",
            "Requests by route and status.",
            ("route", "code"),
            registry=own_registry,
        )
        self.seconds = client.Histogram(
            "sonde_request_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=own_registry,
        )
        self.batch = client.Histogram(
            "sonde_batch_inputs", "Inputs of a forward pass.", buckets=SIZES, registry=own_registry
        )
        self.forward = client.Histogram(
            "sonde_forward_seconds",
            "Time of a forward pass with its scores.",
            buckets=SECONDS,
            registry=own_registry,
        )
        self.inputs = client.Counter(
            "sonde_inputs", "Inputs that were answered.", registry=own_registry
        )
        self.refused = client.Counter(
            "sonde_inputs_refused",
            "Inputs without an answer in requests that were answered.",
            registry=own_registry,
        )
        self.cut = client.Counter(
            "sonde_inputs_cut", "Texts that were cut at the model's context.", registry=own_registry
        )
        self.alarms = client.Counter(
            "sonde_input_alarms",
            "Inputs whose p-value over all detectors is at most the stated rate.",
            registry=own_registry,
        )
        self.changes = client.Counter(
            "sonde_change_alarms", "Changes of the traffic.", ("site",), registry=own_registry
        )
        self.commits_failed = client.Counter(
            "sonde_commits_failed", "Commits of the traffic that failed.", registry=own_registry
        )
        self._by_route: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._add_gauges(registry is None)
        self._meter = _meter()

    def _add_gauges(self, of_process: bool) -> None:
        import prometheus_client as client

        registry = self.guard.registry
        self.changed = client.Gauge(
            "sonde_changed",
            "1 while a change of the traffic lasts that nobody acknowledged.",
            registry=registry,
        )
        self.repeated = client.Gauge(
            "sonde_inputs_repeated",
            "Inputs that equal one of the last thousand; change detectors count them once.",
            registry=registry,
        )
        self.joined = client.Gauge(
            "sonde_inputs_joined",
            "Inputs that change detectors do not count: their caller asked several in a row.",
            registry=registry,
        )
        self._gauges = {
            name: client.Gauge(f"sonde_{name}", text, registry=registry)
            for name, text in GAUGES.items()
        }
        build = client.Gauge(
            "sonde_build_info", "Versions of the server.", ("version", "torch"), registry=registry
        )
        build.labels(version("sonde-torch"), version("torch")).set(1)
        if of_process:
            client.ProcessCollector(registry=registry)
            client.PlatformCollector(registry=registry)

    def measure(self, name: str, value: Callable[[], float]) -> None:
        """Set the function by which a gauge of ``GAUGES`` is measured at each scrape."""
        self._gauges[name].set_function(value)

    def request(self, route: str, code: int, seconds: float) -> None:
        """Record a request with its status and its time."""
        metrics = self._by_route.get((route, code))
        if metrics is None:
            metrics = self.requests.labels(route, str(code)), self.seconds.labels(route)
            self._by_route[route, code] = metrics
        count, times = metrics
        count.inc()
        times.observe(seconds)

    def seen(self, answered: Answered, seconds: float, alpha: float) -> None:
        """Record a forward pass and its answers."""
        self.guard.forward()
        self.batch.observe(len(answered.answers))
        self.forward.observe(seconds)
        self.inputs.inc(len(answered.answers))
        verdicts = [a.verdict for a in answered.answers if a.verdict is not None]
        self.alarms.inc(sum(v.alarm is True for v in verdicts))
        if self._meter is not None:
            self._meter.forward()
        for key in dict.fromkeys(key for v in verdicts for key in v.each):
            every = [v.each[key][1] for v in verdicts if key in v.each]
            p_values = [p for p in every if p is not None]
            self._rows(key, len(every), sum(p <= alpha for p in p_values), p_values)

    def _rows(self, key: Key, n: int, n_alarms: int, p_values: Iterable[float]) -> None:
        self.guard.rows(key, n, n_alarms, p_values)
        if self._meter is not None:
            self._meter.rows(key, n, n_alarms, p_values)

    def snapshot(self) -> list[Any]:
        """Return all metrics as JSON values: name, help, type, and the samples."""
        return [
            [
                one.name,
                one.documentation,
                one.type,
                [[s.name, s.labels, s.value] for s in one.samples],
            ]
            for one in self.guard.registry.collect()
        ]

    def text(self, replicas: Mapping[str, list[Any]] | None = None) -> str:
        """Return all metrics in the text format of Prometheus.

        Parameters
        ----------
        replicas : mapping of str to list, optional
            Snapshots of all replicas by name; every sample is labelled with its replica.
        """
        return self.guard.text() if replicas is None else _text_of(replicas)


class _Families:
    """Metrics of several replicas, in the form that Prometheus' client writes."""

    def __init__(self, replicas: Mapping[str, list[Any]]) -> None:
        from prometheus_client.core import Metric

        self._found: dict[str, Any] = {}
        for replica, families in replicas.items():
            for name, text, kind, samples in families:
                family = self._found.setdefault(name, Metric(name, text, kind))
                for sample, labels, value in samples:
                    family.add_sample(sample, {**labels, REPLICA: replica}, value)

    def collect(self) -> Iterable[Any]:
        """Return the metrics."""
        return self._found.values()


def _text_of(replicas: Mapping[str, list[Any]]) -> str:
    from prometheus_client import generate_latest

    return generate_latest(_Families(replicas)).decode()  # type: ignore[arg-type]


def _meter() -> OpenTelemetryMetrics | None:
    """Return the instruments of OpenTelemetry, if its environment variables name a target.

    A provider that the program has set is used, e.g. that of ``opentelemetry-instrument``.
    """
    if not any(name.startswith("OTEL_") for name in os.environ):
        return None
    try:
        from opentelemetry.metrics import get_meter, get_meter_provider, set_meter_provider
        from opentelemetry.sdk.metrics import MeterProvider
    except ImportError as error:
        raise InputError(
            "serve: OTEL_ environment variables are set, which need "
            f"{failed_import('opentelemetry-sdk', error)}. Install it, or unset the variables."
        ) from None
    if not isinstance(get_meter_provider(), MeterProvider):
        readers = [_reader(name.strip()) for name in _exporters() if name.strip() != "none"]
        if not readers:
            return None
        set_meter_provider(MeterProvider(metric_readers=readers))
    return OpenTelemetryMetrics(get_meter("sonde"))


def _exporters() -> list[str]:
    return os.environ.get("OTEL_METRICS_EXPORTER", "otlp").split(",")


def _reader(name: str) -> Any:
    """Return the metric reader of an exporter, found by name among installed packages."""
    from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader

    points = {point.name: point for point in entry_points(group="opentelemetry_metrics_exporter")}
    if name not in points:
        raise InputError(
            f"serve: expected OTEL_METRICS_EXPORTER to name an installed exporter "
            f"({', '.join(sorted(points))}, none), got {name!r}. Install its package, e.g. "
            "opentelemetry-exporter-otlp, or name another."
        )
    exporter = points[name].load()()
    return (
        PeriodicExportingMetricReader(exporter)
        if isinstance(exporter, MetricExporter)
        else exporter
    )
