from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sonde
from scan._zoo import SEEDS, Items, digit_net, digits, quiet
from sonde.core.stream import Stream
from sonde.detect import KNN, MSP, Mahalanobis
from sonde.findings.evidence.versus.comparison import versus_section
from sonde.findings.scan import scan_stream
from sonde.report import Report

pytestmark = pytest.mark.slow

SEED = 257
VERSUS = ("SND051", "SND052", "SND053")


def halves(seed: int) -> tuple[Tensor, Tensor]:
    x, order = digits()[0], torch.from_numpy(np.random.default_rng([SEED, seed]).permutation(1797))
    return x[order[:898]], x[order[898:]].clone()


def rows(x: Tensor, name: str) -> Items:
    return [{"x": row, "id": f"{name} {i}"} for i, row in enumerate(x)]


def compared(data: Tensor, other: Tensor, family: str = "relu-mlp") -> Report:
    net = digit_net(family, SEEDS[0], trained=True)[0]
    return sonde.scan(net, rows(data, "data"), rows(other, "other"), settings=quiet())


def states(report: Report) -> dict[str, str]:
    return {c["code"]: c["state"] for c in report.json()["checks"] if c["code"] in VERSUS}


def finding(report: Report, code: str) -> dict[str, Any]:
    return next(f for f in report.findings if f["code"] == code)


@pytest.mark.parametrize(
    ("seed", "family"), [(0, "relu-mlp"), (1, "relu-mlp"), (2, "relu-mlp"), (0, "residual-cnn")]
)
def test_two_halves_of_the_same_data_do_not_differ(family: str, seed: int) -> None:
    report = compared(*halves(seed), family)
    assert states(report) == dict.fromkeys(VERSUS, "clear")
    assert report.json()["verdict"]["error"] == 0
    section = report.json()["versus"]
    assert all(abs(s["auroc"] - 0.5) < 0.1 for s in section["sites"])
    assert section["alarm"]["rate"] < 0.03


def test_a_shift_of_one_pixel_is_seen_and_the_first_site_is_named() -> None:
    data, other = halves(0)
    report = compared(data, other.reshape(-1, 8, 8).roll(1, dims=2).reshape(-1, 64))
    found = finding(report, "SND051")
    assert found["level"] == "warning"
    assert found["figure"]["value"] > 0.9
    assert found["sites"][0] == "0:out"
    assert " 0" in found["sentence"]
    section = report.json()["versus"]
    assert section["sites"][0]["low"] > 0.75


def test_a_leak_is_seen_and_names_its_rows() -> None:
    data, other = halves(1)
    other[10:22] = data[100:112]
    report = compared(data, other)
    found = finding(report, "SND053")
    assert found["level"] == "warning"
    assert set(found["rows"]) == {f"other {i}" for i in range(10, 22)}
    assert states(report)["SND051"] == "clear"


def test_noise_images_are_unlike_anything_fitted() -> None:
    data, other = halves(2)
    noise = torch.rand(90, 64, generator=torch.Generator().manual_seed(SEED))
    other[:90] = noise
    report = compared(data, other)
    found = finding(report, "SND052")
    assert found["level"] == "warning"
    worst = [row["id"] for row in report.json()["versus"]["rows"]]
    assert len(set(worst) & {f"other {i}" for i in range(90)}) >= 0.8 * min(len(worst), 90)


@pytest.mark.truth("planted: noise in place of digits, and halves of the same data")
def test_chosen_detectors_are_shown_at_every_site() -> None:
    data, other = (half[:400] for half in halves(0))
    noise = torch.rand(300, 64, generator=torch.Generator().manual_seed(SEED))
    net = digit_net("relu-mlp", SEEDS[0], trained=True)[0]
    settings = replace(quiet(), detectors=(Mahalanobis(), KNN(k=5), MSP()))

    def section(there: Tensor) -> dict[tuple[str, str], dict[str, Any]]:
        report = sonde.scan(net, rows(data, "data"), rows(there, "other"), settings=settings)
        found = report.json()["versus"]
        assert found["alarm"]["detector"] == "Mahalanobis, KNN, MSP"
        return {(row["method"], row["site"]): row for row in found["detectors"]}

    far, near = section(noise), section(other)
    sites = {site for _, site in far}
    assert set(far) == set(near) == {
        *((method, site) for method in ("Mahalanobis", "KNN") for site in sites),
        ("MSP", max(site for site in sites)),
    }  # fmt: skip
    first = [far[method, min(sites)] for method in ("Mahalanobis", "KNN")]
    assert all(row["auroc"] > 0.99 and row["low"] > 0.95 for row in first)
    assert all(row["low"] < 0.5 < row["high"] for row in near.values())


@pytest.mark.truth("Gaussian rows, one variance of OTHER ten times larger in 300 of 2,100 units")
def test_a_site_too_wide_for_a_full_covariance_is_scored_by_variances() -> None:
    x = torch.randn(240, 2100, generator=torch.Generator().manual_seed(0))
    x[120:, :300] *= 10**0.5
    settings = replace(quiet(), detectors=(Mahalanobis(),))
    data, other = (Stream.of({"x": half}) for half in x.split(120))
    section = versus_section(scan_stream(data, other=other, settings=settings).evidence)
    assert section is not None
    (row,) = section["detectors"]
    assert (row["method"], row["site"]) == ("Mahalanobis(scatter=diag)", "x")
    assert row["auroc"] > 0.99
