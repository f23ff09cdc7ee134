"""Measures beside the checks of a scan."""

from typing import Any

import pytest
import torch
from torch import nn

import sonde
from sonde.core.errors import InputError
from sonde.findings.measures import DEEP
from sonde.findings.settings import ScanSettings
from sonde.report import load_report
from sonde.run.reading.read import read


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU()).eval()


ROWS = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
LABEL = (ROWS[:, 0] > 0).long()


def lines(report: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(line["method"], line["site"]): line for line in report.json()["measures"]}


@pytest.mark.slow
@pytest.mark.truth("sonde.fit of the same measures on the same rows")
def test_measures_are_those_of_fit_in_one_pass_and_in_two(net) -> None:
    words = "two_nn,unit_entropy(n_bins=8)"
    settings = ScanSettings(measures=(words,), progress=False)
    found = lines(sonde.scan(net, (ROWS, LABEL), settings=settings))
    fitted = dict(sonde.fit(words, read(net, (ROWS, LABEL)), calibrate=0, progress=False))
    assert found.keys() == fitted.keys()
    for key, result in fitted.items():
        assert found[key]["value"] == float(result.value)
        assert found[key]["se"] == (None if result.se is None else float(result.se))
        assert found[key]["flags"] == list(result.flags)


@pytest.mark.slow
def test_a_deep_scan_says_what_it_leaves_out_and_draws_the_rest(net, tmp_path) -> None:
    report = sonde.scan(net, ROWS, settings=ScanSettings(deep=True, progress=False))
    document = report.json()
    left = {one["method"]: one["reason"] for one in document["not_measured"]}
    assert left.keys() == {"neural_collapse", "cluster_indices", "v_information"}
    assert all("needs labels" in reason for reason in left.values())
    assert {m for m, _ in lines(report)} == set(DEEP.split(",")) - left.keys()
    assert "measure-two_nn" in report.figures
    page = tmp_path / "deep.html"
    report.save(page)
    assert "Left out: neural_collapse: it needs labels" in page.read_text()
    assert load_report(page)["measures"] == document["measures"]


def test_one_that_was_asked_for_and_cannot_be_computed_is_an_error(net) -> None:
    for word, said in (("neural_collapse", "needs labels"), ("knn", "detector")):
        with pytest.raises(InputError, match=f"--measures {word}: it .*{said}"):
            sonde.scan(net, ROWS, settings=ScanSettings(measures=(word,), progress=False))


@pytest.mark.slow
def test_beside_a_second_data_set_all_rows_of_the_first_are_measured(net) -> None:
    settings = ScanSettings(measures=("two_nn",), progress=False)
    other = torch.randn(200, 8, generator=torch.Generator().manual_seed(2))
    alone = lines(sonde.scan(net, ROWS, settings=settings))
    beside = lines(sonde.scan(net, ROWS, other, settings=settings))
    assert alone.keys() == beside.keys()
    assert all(alone[k]["n"] == beside[k]["n"] == 300 for k in alone)
    assert all(beside[k]["value"] == pytest.approx(alone[k]["value"]) for k in alone)


@pytest.mark.slow
def test_each_measure_says_its_cost_once_before_the_pass_and_no_value_is_lost(net, capsys) -> None:
    words = "two_nn,two_nn,mle_dimension(k=5),mle_dimension(k=10),unit_entropy"
    found = lines(sonde.scan(net, ROWS, settings=ScanSettings(measures=(words,), only=("SND011",))))
    methods = {"two_nn", "mle_dimension(k=5)", "mle_dimension(k=10)", "unit_entropy"}
    sites = {site for _, site in found}
    assert found.keys() == {(method, site) for method in methods for site in sites}
    said = [line for line in capsys.readouterr().err.splitlines() if " of states, " in line]
    assert [line.split(": ")[1] for line in said] == [
        "two_nn", "mle_dimension(k=5)", "mle_dimension(k=10)", "unit_entropy",
    ]  # fmt: skip
    assert all(f": {len(sites)} sites, " in line for line in said)
    assert [line.endswith("computed while the scan reads the data.") for line in said] == [
        True,
        True,
        True,
        False,
    ]


def test_what_turns_out_not_to_be_computable_is_said(net, capsys) -> None:
    report = sonde.scan(net, ROWS[:3], settings=ScanSettings(measures=("cka",), only=("SND011",)))
    reasons = {m["method"]: m["reason"] for m in report.json()["not_measured"]}
    assert reasons.keys() == {f"cka at {a}:out & {a + 1}:out" for a in range(3)}
    told = capsys.readouterr().err
    for what, reason in reasons.items():
        assert f"note: {what} is left out: {reason}.\n" in told
