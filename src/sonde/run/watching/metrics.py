"""Export a guard's rows, alarms and p-values as metrics of Prometheus or OpenTelemetry."""

from collections.abc import Iterable
from typing import Any, Protocol, final, runtime_checkable

from sonde.core.errors import InputError, failed_import
from sonde.core.wording import install_extra
from sonde.run.instruments.entries import Key

BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
FORWARDS = "Forward passes of the model that the guard observed."
PASSED = "Forward passes in other threads or tasks, which a guard with here=True does not observe."
ROWS = "Rows scored: examples, tokens or patches."
ALARMS = "Rows above the threshold of their detector."
P_VALUES = "Conformal p-values of rows; in-distribution rows are uniform on [0, 1]."


@runtime_checkable
class Metrics(Protocol):
    """Interface of ``Guard(metrics=)``: receives each forward pass, then each detector's scores."""

    def forward(self) -> None:
        """Count a forward pass."""
        ...

    def passed_by(self) -> None:
        """Count a forward pass of another thread or task, ignored by a guard with ``here``."""
        ...

    def rows(self, key: Key, n: int, n_alarms: int, p_values: Iterable[float]) -> None:
        """Count the rows and alarms of a detector at a site, and p-values if it is calibrated."""
        ...


@final
class PrometheusMetrics:
    """Counters and a histogram of ``prometheus_client``, and their text.

    Several guards may share one object. Needs the extra ``serve``.

    Parameters
    ----------
    registry : prometheus_client.CollectorRegistry, optional
        Where the metrics are registered, e.g. ``prometheus_client.REGISTRY``, which
        ``start_http_server`` serves; by default one of its own.

    Raises
    ------
    InputError
        If ``prometheus_client`` is not installed.
    """

    def __init__(self, registry: Any = None) -> None:
        try:
            import prometheus_client as client
        except ImportError as error:
            raise InputError(
                f"PrometheusMetrics: expected {failed_import('prometheus-client', error)}. Run: "
                f"{install_extra('serve')}"
            ) from None
        self.registry = client.CollectorRegistry() if registry is None else registry
        labels, own_registry = ("method", "site"), self.registry
        self._forwards = client.Counter("sonde_forwards", FORWARDS, registry=own_registry)
        self._passed = client.Counter("sonde_forwards_passed_by", PASSED, registry=own_registry)
        self._rows = client.Counter("sonde_rows", ROWS, labels, registry=own_registry)
        self._alarms = client.Counter("sonde_alarms", ALARMS, labels, registry=own_registry)
        self._p = client.Histogram(
            "sonde_p_value", P_VALUES, labels, buckets=BUCKETS, registry=own_registry
        )

    def forward(self) -> None:
        """Count a forward pass."""
        self._forwards.inc()

    def passed_by(self) -> None:
        """Count a forward pass that the guard does not score."""
        self._passed.inc()

    def rows(self, key: Key, n: int, n_alarms: int, p_values: Iterable[float]) -> None:
        """Count the rows and alarms of a detector at a site."""
        self._rows.labels(*key).inc(n)
        self._alarms.labels(*key).inc(n_alarms)
        histogram = self._p.labels(*key)
        for p in p_values:
            histogram.observe(p)

    def text(self) -> str:
        """Return the metrics as text for a Prometheus scrape."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()


@final
class OpenTelemetryMetrics:
    """Instruments of an OpenTelemetry meter.

    Parameters
    ----------
    meter : opentelemetry.metrics.Meter
        E.g. ``opentelemetry.metrics.get_meter("my service")``.
    """

    def __init__(self, meter: Any) -> None:
        self._forwards = meter.create_counter("sonde.forwards", description=FORWARDS)
        self._passed = meter.create_counter("sonde.forwards.passed_by", description=PASSED)
        self._rows = meter.create_counter("sonde.rows", description=ROWS)
        self._alarms = meter.create_counter("sonde.alarms", description=ALARMS)
        self._p = meter.create_histogram(
            "sonde.p_value", description=P_VALUES, explicit_bucket_boundaries_advisory=BUCKETS
        )

    def forward(self) -> None:
        """Count a forward pass."""
        self._forwards.add(1)

    def passed_by(self) -> None:
        """Count a forward pass that the guard does not score."""
        self._passed.add(1)

    def rows(self, key: Key, n: int, n_alarms: int, p_values: Iterable[float]) -> None:
        """Count the rows and alarms of a detector at a site."""
        where = {"method": key[0], "site": key[1]}
        self._rows.add(n, where)
        self._alarms.add(n_alarms, where)
        for p in p_values:
            self._p.record(p, where)
