"""The promised rate within each value of a column, which is read again when rows are scored."""

import numpy as np
import pytest
import torch
from scipy.stats import betabinom
from torch import nn

from sonde.core import Stream
from sonde.core.errors import InputError, StateError
from sonde.detect import Mahalanobis, MassMean
from sonde.run.fitting.calibrations import merge_calibrations
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.read import read
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score

SCALES = {"north": 1.0, "south": 3.0}
ALPHA = 0.1


@pytest.fixture(scope="module")
def net():
    return nn.Sequential(nn.Identity(), nn.Linear(4, 2))


def items(n, seed, column="region"):
    """Rows of two regions, of which one varies three times as much."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    names = [("north", "south")[i % 3 == 0] for i in range(n)]
    made = zip(x, names, strict=True)
    return [
        {"x": row * SCALES[name], "id": f"{seed} {i}", column: name}
        for i, (row, name) in enumerate(made)
    ]


@pytest.fixture(scope="module")
def fitted(net):
    return fit(Mahalanobis(), read(net, items(300, 0), sites="0"), calibrate=0, progress=False)


def rates(bundle, net, column="region"):
    """Return the alarms and the rows of each region."""
    new = items(900, 2, column)
    table = score(bundle, net, new, progress=False)
    alarm = dict(zip(table["id"].to_pylist(), (table["p"].to_numpy() <= ALPHA), strict=True))
    return {
        name: (sum(alarm[i["id"]] for i in mine), len(mine))
        for name in SCALES
        if (mine := [i for i in new if i[column] == name])
    }


def band(n_held, n):
    """Return between which numbers the alarms of ``n`` rows lie, but for one time in 2,000."""
    rank = int(ALPHA * (n_held + 1) + 1e-9)
    law = betabinom(n, rank, n_held + 1 - rank)
    return law.ppf(0.00025), law.ppf(0.99975)


@pytest.mark.slow
@pytest.mark.truth("the beta-binomial band of alarms after one calibration")
@pytest.mark.parametrize("column", ["region", "group"])
def test_the_rate_is_kept_in_every_value_of_a_column(net, fitted, tmp_path, column):
    found = calibrate(fitted, net, items(600, 1, column), by=column, progress=False)
    found.save(tmp_path / "by.sonde")
    for bundle in (found, Fitted.load(tmp_path / "by.sonde")):
        for name, (n_alarms, n) in rates(bundle, net, column).items():
            low, high = band(200 if name == "south" else 400, n)
            assert low <= n_alarms <= high, name
    plain = rates(calibrate(fitted, net, items(600, 1), progress=False), net)
    assert plain["north"][0] == 0
    assert plain["south"][0] > band(200, 300)[1]


@pytest.mark.truth("counts of the rows")
def test_the_values_are_named(net, fitted):
    found = calibrate(fitted, net, items(600, 1), by="region", progress=False)
    calibration = found.result("mahalanobis").calibration
    names = [found.label_names[k] for k in calibration.labels.tolist()]
    sizes = {name: one.n for name, one in zip(names, calibration.each, strict=True)}
    assert sizes == {"north": 400, "south": 200}


@pytest.mark.truth("counts of the rows; the p-values of a table without labels")
def test_labels_stay_what_they_are_beside_a_column(net):
    def labelled(n, seed):
        return [{**row, "failed": i % 2} for i, row in enumerate(items(n, seed))]

    options = {"label_column": "failed", "progress": False}
    stream = read(net, labelled(300, 0), sites="0", label_column="failed",
                  ignore_columns=["region"])  # fmt: skip
    probe = fit(MassMean(), stream, calibrate=0, progress=False)
    found = calibrate(probe, net, labelled(600, 1), by="region", **options)
    calibration = found.result("mass_mean").calibration
    names = [found.label_names[k] for k in calibration.labels.tolist()]
    sizes = {name: one.n for name, one in zip(names, calibration.each, strict=True)}
    assert sizes == {"north": 200, "south": 100}  # half of 400 and of 200 did not fail
    new = labelled(60, 2)
    table = score(found, net, new, **options)
    plain = [{k: v for k, v in row.items() if k != "failed"} for row in new]
    want = score(found, net, plain, progress=False)
    assert np.array_equal(table["p"].to_numpy(), want["p"].to_numpy())
    assert len({p is None for p in table["p"].to_pylist()}) == 1


def test_another_column_may_be_asked_for(net, fitted):
    found = calibrate(fitted, net, items(300, 1), by="region", progress=False)
    elsewhere = items(60, 3, "place")
    table = score(found, net, elsewhere, label_column="place", progress=False)
    want = score(found, net, items(60, 3), progress=False)
    assert np.array_equal(table["p"].to_numpy(), want["p"].to_numpy())
    with pytest.raises(InputError, match="region"):
        score(found, net, elsewhere, progress=False)


def test_what_is_refused(net, fitted):
    with pytest.raises(InputError, match=r"by='region' names a column of a table"):
        calibrate(fitted, Stream.of(torch.randn(40, 4)), by="region", progress=False)
    with pytest.raises(InputError, match="elsewhere"):
        calibrate(fitted, net, items(60, 1), by="elsewhere", progress=False)
    one = calibrate(fitted, net, items(60, 1), by="region", progress=False)
    other = calibrate(fitted, net, items(60, 4, "place"), by="place", progress=False)
    with pytest.raises(StateError, match="the classes of different columns"):
        merge_calibrations(one, other)
