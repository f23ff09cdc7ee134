"""Every detector behind ``--detectors``: served in the pass of a scan, or refused."""

import inspect
from dataclasses import replace
from typing import Any

import pytest

import sonde
from scan._zoo import SEEDS, Items, digit_net, digits, quiet
from sonde import detect
from sonde.core import InputError
from sonde.core.instrument import Detector
from sonde.core.stream import Stream
from sonde.detect import KNN, ViM
from sonde.findings.scan import scan_stream

REFUSED = {
    "CLUE": "uses several sites at once",
    "ContrastProbe": "scores by side",
    "FOD": "learns in several passes",
    "FeatureGaps": "uses several sites at once",
    "NAC": "takes gradients",
    "PAWN": "uses several sites at once",
    "PaDiM": "scores by position",
    "SimpleNet": "learns in several passes",
    "TokenStatistics": "scores tokens by how they were predicted",
    "TrajectoryVerifier": "learns in several passes",
}
DETECTORS = {
    name: found
    for name in detect.__all__
    if inspect.isclass(found := getattr(detect, name)) and issubclass(found, Detector)
}
HEAD = {name for name, d in DETECTORS.items() if d().reading().get("sites") == "logits:in"}
EVERYWHERE = {"DictLookup", "KNN", "LinearProbe", "Mahalanobis", "MassMean", "PatchCore",
              "RelativeMahalanobis"}  # fmt: skip


@pytest.fixture(scope="module")
def halves() -> tuple[Items, Items]:
    x, label = digits()
    odd = 1.0 - x[300:600]  # dark on light
    return (
        [{"x": x[i], "label": int(label[i]), "id": f"a {i}"} for i in range(300)],
        [{"x": odd[i], "id": f"b {i}"} for i in range(300)],
    )


@pytest.mark.slow
@pytest.mark.truth("planted: digits in dark on light")
def test_every_detector_that_one_pass_serves_has_a_figure(halves: tuple[Items, Items]) -> None:
    net = digit_net("relu-mlp", SEEDS[0], trained=True)[0]
    served = [d(**d.examples[0]) for name, d in DETECTORS.items() if name not in REFUSED]
    settings = replace(quiet(), detectors=tuple(served))
    section = sonde.scan(net, *halves, settings=settings).json()["versus"]
    found: dict[str, dict[str, Any]] = {}
    for row in section["detectors"]:
        found.setdefault(row["method"], {})[row["site"]] = row["auroc"]
    assert set(found) == set(DETECTORS) - set(REFUSED)
    sites = {s["site"] for s in section["sites"]}
    for name, by_site in found.items():
        assert all(0.0 <= auroc <= 1.0 for auroc in by_site.values()), name
        assert set(by_site) == sites if name in EVERYWHERE else len(by_site) == 1, name
    assert {site for name in HEAD for site in found[name]} == {"7:out"}  # what 8, the last, reads
    assert found["Mahalanobis"][min(sites)] > 0.99
    assert found["ViM"].popitem()[1] > 0.9


@pytest.mark.slow
def test_the_input_of_the_final_layer_is_read_where_no_site_has_it(
    halves: tuple[Items, Items],
) -> None:
    net = digit_net("relu-mlp", SEEDS[0], trained=True)[0]
    settings = replace(quiet(), detectors=(ViM(), KNN(m=64)))
    section = sonde.scan(net, *halves, settings=settings, sites="0").json()["versus"]
    found = {(row["method"], row["site"]) for row in section["detectors"]}
    assert found == {("ViM", "8:in"), ("KNN", "0:out"), ("KNN", "8:in")}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_others_are_refused_with_the_command(halves: tuple[Items, Items], name: str) -> None:
    net = digit_net("relu-mlp", SEEDS[0], trained=False)[0]
    settings = replace(quiet(), detectors=(DETECTORS[name](),))
    with pytest.raises(InputError, match=rf"{name} {REFUSED[name]};.*`sonde fit [a-z_]+ MODEL"):
        sonde.scan(net, halves[0][:60], halves[1][:60], settings=settings)


def test_rows_without_a_model_have_no_final_layer() -> None:
    x = digits()[0][:200]
    data, other = (Stream.of({"x": half}) for half in x.split(100))
    with pytest.raises(InputError, match="ViM reads the input of the model's final linear layer"):
        scan_stream(data, other=other, settings=replace(quiet(), detectors=(ViM(),)))
