"""Metrics of a guard, as the real clients of Prometheus and OpenTelemetry give them back."""

from typing import Any

import pytest
import torch
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

import sonde
from models import mlp
from sonde.run.watching.metrics import BUCKETS, OpenTelemetryMetrics, PrometheusMetrics

ROWS = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
BATCHES = (ROWS[:5], torch.full((2, 8), 60.0))


@pytest.fixture(scope="module")
def net():
    return mlp()


@pytest.fixture(scope="module")
def probe(net):
    stream = sonde.read(net, list(ROWS), sites=["0", "2"])
    return sonde.fit(["mahalanobis", "knn"], stream, progress=False)


def watched(net, probe, metrics):
    """Return the p-values of two forwards, and how many alarms they raised."""
    p_values = []
    with sonde.Guard(net, probe, alpha=0.05, metrics=metrics) as guard:
        for batch in BATCHES:
            net(batch)
            p_values.append(guard.p_values)
    both = {key: torch.cat([step[key] for step in p_values]) for key in p_values[0]}
    return both, guard.n_alarms


@pytest.mark.truth("the guard's own p-values and alarms, read back by prometheus_client's parser")
def test_prometheus_counts_rows_alarms_and_p_values(net, probe):
    metrics = PrometheusMetrics()
    p_values, n_alarms = watched(net, probe, metrics)
    samples = [
        s for family in text_string_to_metric_families(metrics.text()) for s in family.samples
    ]
    found = {
        (s.name, s.labels.get("method"), s.labels.get("site"), s.labels.get("le")): s.value
        for s in samples
    }
    assert found["sonde_forwards_total", None, None, None] == 2
    assert n_alarms > 0
    assert sum(v for k, v in found.items() if k[0] == "sonde_alarms_total") == n_alarms
    for key, p in p_values.items():
        assert found["sonde_rows_total", *key, None] == 7
        for edge in BUCKETS:
            assert found["sonde_p_value_bucket", *key, str(edge)] == int((p <= edge).sum())


@pytest.mark.truth("the guard's own p-values, read back by OpenTelemetry's reader")
def test_opentelemetry_gets_the_same(net, probe):
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    p_values, n_alarms = watched(net, probe, OpenTelemetryMetrics(meter))
    data: Any = reader.get_metrics_data()
    (scope,) = data.resource_metrics[0].scope_metrics
    metrics = {m.name: m.data.data_points for m in scope.metrics}
    assert metrics["sonde.forwards"][0].value == 2
    assert sum(point.value for point in metrics["sonde.alarms"]) == n_alarms
    for point in metrics["sonde.p_value"]:
        p = p_values[point.attributes["method"], point.attributes["site"]]
        assert point.count == 7
        assert point.sum == pytest.approx(float(p.sum()))
        edges = torch.tensor(point.explicit_bounds, dtype=p.dtype)
        assert (
            list(point.bucket_counts)
            == torch.bincount(torch.bucketize(p, edges), minlength=len(edges) + 1).tolist()
        )
