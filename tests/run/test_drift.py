import math

import numpy as np
import pytest
import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.detect import KNN, MMD, FourierMMD, Frechet, Hotelling, Mahalanobis, UnitShift
from sonde.measure import Covariance, Norms
from sonde.run.comparing.drift import Drift, drift
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.read import read
from sonde.stats import ClassMomentsState, adjusted_p


def _rows(seed, n=200, dim=4):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)))


def _fit(instruments, rows, **columns):
    return fit(instruments, Stream.of(rows, **columns), progress=False)


@pytest.mark.truth("the same shifts on the plain arrays")
def test_bundles_say_what_plain_arrays_say(tmp_path):
    shifts = [Hotelling(), UnitShift(test="mean"), Frechet(permutations=49)]
    sites = [{"a": _rows(0), "b": _rows(1)}, {"a": _rows(2), "b": _rows(3) + 1}]
    paths = [tmp_path / f"{i}.sonde" for i in range(2)]
    for path, rows in zip(paths, sites, strict=True):
        _fit(shifts, rows).save(path)
    first, second = (Fitted.load(path) for path in paths)
    found = drift(first, second, shifts)
    assert len(found) == 6
    assert found.left_out == {}
    for key in ("a", "b"):
        for shift, word in zip(shifts, ("hotelling", "unit_shift", "frechet"), strict=True):
            want = shift.between(sites[0][key], sites[1][key])
            got = found[word, key]
            assert float(got) == pytest.approx(float(want), rel=1e-9)
            assert got.sides == (200, 200)
            exact = 1e-9 if word == "hotelling" else 0.08  # the others shuffle rows, in any order
            assert got.p == pytest.approx(want.p, rel=1e-6, abs=exact)
    assert {site for _, site in found.moved()} == {"b"}
    p = torch.tensor([c.p for _, c in found], dtype=torch.float64)
    assert list(found.adjusted().values()) == adjusted_p(p).tolist()


def test_states_fitted_for_something_else_are_used():
    rows = _rows(0), _rows(1) + 0.5
    a = _fit([Covariance(), Mahalanobis()], rows[0])
    b = _fit([Covariance()], rows[1])
    found = drift(a, b)
    assert ("hotelling", "x") in found.moved(0.001)
    want = Hotelling().between(*rows)
    assert found["hotelling", "x"].p == pytest.approx(want.p, rel=1e-6)


def test_rows_of_one_group_count_once():
    group = [f"document {i // 8}" for i in range(320)]
    a, b = (_fit(Hotelling(), _rows(s, 40).repeat_interleave(8, 0), group=group) for s in (0, 1))
    found = drift(a, b)["hotelling", "x"]
    assert found.sides == (40, 40)
    assert found.n == 640


def test_equal_rows_without_groups_count_each():
    coarse = [_rows(s, 200, 1).round() for s in (0, 1)]
    first, second = (_fit(MMD(permutations=99), x) for x in coarse)
    found = drift(first, second, MMD(permutations=99))
    assert found["mmd", "x"].sides == (200, 200)


def test_widths_found_apart_agree_or_the_reason_is_given():
    shift = FourierMMD(m=16)
    a, b, wide = (_fit(shift, _rows(s) * scale) for s, scale in ((0, 1), (1, 1), (2, 20)))
    assert drift(a, b, shift)["fourier_mmd", "x"].p > 0.01
    refused = drift(a, wide, shift)
    assert len(refused) == 0
    assert "first.shift.fit" in refused.left_out["fourier_mmd", "x"]


def test_other_widths_are_left_out_with_the_reason():
    found = drift(_fit(Hotelling(), _rows(0)), _fit(Hotelling(), _rows(1, 200, 5)), Hotelling())
    assert "got dim=4 and dim=5" in found.left_out["hotelling", "x"]


def test_states_that_are_not_there_are_named():
    bundles = [_fit(Norms(), _rows(s)) for s in (0, 1)]
    asked = drift(bundles[0], bundles[1], Hotelling())
    assert "fit both bundles with it" in asked.left_out["hotelling", "x"]
    with pytest.raises(InputError, match="expected bundles that both hold the states of a shift"):
        drift(bundles[0], bundles[1], [])


def test_bundles_without_a_common_site_are_refused():
    a, b = (_fit(Hotelling(), {name: _rows(0)}) for name in ("left", "right"))
    with pytest.raises(InputError, match=r"share a site, got \['left'\] and \['right'\]"):
        drift(a, b)


def test_a_comparison_that_says_nothing_has_not_moved():
    wide = [_fit(Hotelling(), _rows(s, 6, 20)) for s in (0, 1)]
    found = drift(wide[0], wide[1], Hotelling())
    assert isinstance(found, Drift)
    assert math.isnan(found["hotelling", "x"].p)
    assert found.moved(1.0) == []


@pytest.mark.truth("the same shifts on the plain rows that a detector holds back, or fits on")
def test_a_detector_leaves_enough():
    sides = [_rows(s, 300) + (0.6 * s) for s in (0, 1)]
    label = np.arange(300) % 3
    bundles = [_fit(Mahalanobis(), x, label=label) for x in sides]
    found = drift(bundles[0], bundles[1])
    assert not found.left_out
    assert {method for method, _ in found.found} >= {"hotelling", "unit_shift", "frechet", "mmd"}
    fitted = [
        next(s for s in b.states.values() if isinstance(s, ClassMomentsState)) for b in bundles
    ]
    rows = [s.n_rows for s in fitted]
    assert found["hotelling", "x"].sides == tuple(rows)
    assert found["mmd", "x"].sides == tuple(300 - n for n in rows)
    assert found.basis["hotelling", "x"] == ("rows not held out",) * 2
    means = [s.total.mean for s in fitted]
    pooled = sum(s.total.scatter for s in fitted) / (sum(rows) - 2)
    gap = means[1] - means[0]
    want = float(gap @ torch.linalg.inv(pooled) @ gap)
    assert float(found["hotelling", "x"]) == pytest.approx(want, rel=1e-9)


def test_a_bundle_of_nearest_neighbours_answers_from_its_sample():
    bundles = [_fit(KNN(), _rows(s, 200)) for s in (0, 1)]
    found = drift(bundles[0], bundles[1])
    assert "sampled" in found.basis["hotelling", "x"][0]
    assert found.moved(0.01) == []


@pytest.mark.truth("scipy.stats.ttest_rel on one unit, whose squared t Hotelling's is")
def test_the_same_rows_under_two_models_are_compared_one_by_one():
    x = _rows(5, 400, 1)
    y = x + 0.01 * _rows(6, 400, 1).abs()
    ids = [f"row {i}" for i in range(400)]
    back = list(range(399, -1, -1))
    a = _fit([Covariance(), Hotelling()], x, ids=ids)
    b = _fit([Covariance(), Hotelling()], y[back], ids=[ids[i] for i in back])
    found = drift(a, b)
    assert found.rows == "same"
    assert found["hotelling", "x"].p < 1e-9  # of 1,999 changes of signs none reaches
    apart = Hotelling().between(x, y)
    assert apart.p > 0.5  # what independent rows would have said
    where = found.directions["x"]
    assert where.length == pytest.approx(float((y - x).mean()), rel=1e-6)
    noise = float((y - x).var()) / 400
    assert where.beyond_noise == pytest.approx(1 - noise / where.length**2, rel=1e-5)


@pytest.mark.slow
@pytest.mark.truth("a planted move at one site of sixty")
def test_one_site_of_many_is_found_by_either_test_of_pairs_alone():
    ids = [f"row {i}" for i in range(100)]
    x = {f"s{k}": _rows(20 + k, 100, 2) for k in range(60)}
    y = {key: rows + 0.3 * _rows(90 + k, 100, 2) for k, (key, rows) in enumerate(x.items())}
    y["s7"] += 1
    a, b = (_fit(Covariance(), rows, ids=ids) for rows in (x, y))
    found = drift(a, b, [Hotelling(), UnitShift()])
    assert found.rows == "same"
    assert set(found.moved(0.01)) == {("hotelling", "s7"), ("unit_shift", "s7")}


def test_the_same_rows_without_a_sample_have_no_p_value():
    ids = [f"row {i}" for i in range(50)]
    x = _rows(7, 50)
    a, b = (_fit(Hotelling(), rows, ids=ids) for rows in (x, x + 1e-3))
    b.header["data"]["fingerprint"] = a.header["data"]["fingerprint"]  # arrays are their own data
    found = drift(a, b)
    assert found.rows == "same"
    assert np.isnan(found["hotelling", "x"].p)
    assert "paired" in found["hotelling", "x"].flags
    assert found.moved(0.99) == []


def test_pairs_that_other_seeds_tear_apart_have_no_p_value():
    x = _rows(8, 3000, 2)
    ids = [f"row {i}" for i in range(3000)]
    a, b = (_fit(Covariance(), r, ids=ids, seed=s) for s, r in ((0, x), (1, x + 1e-4)))
    b.header["data"]["fingerprint"] = a.header["data"]["fingerprint"]
    found = drift(a, b, MMD(m=256, permutations=19))
    assert "paired" in found["mmd", "x"].flags


def test_a_bundle_against_itself_and_with_some_rows_shared():
    x, y = _rows(9, 120), _rows(10, 120)
    a, b = _fit(Covariance(), x), _fit(Covariance(), torch.cat([x[:40], y[:80]]))
    same = drift(a, a)
    assert same.identical
    assert same.rows == "same"
    assert all(c.p == 1.0 for _, c in same)
    assert drift(a, b).rows == "some"
    assert drift(a, _fit(Covariance(), y)).rows == "other"


@pytest.mark.slow
@pytest.mark.truth("a planted move of two units")
def test_the_direction_names_the_units():
    x, y = _rows(11, 500), _rows(12, 500)
    y[:, 1] += 3
    y[:, 3] -= 4
    where = drift(_fit(Covariance(), x), _fit(Covariance(), y)).directions["x"]
    assert [unit for unit, _ in where.units(2)] == [3, 1]
    assert float(where.vector.norm()) == pytest.approx(1)
    assert where.units(2)[0][1] == pytest.approx(-0.8, abs=0.03)
    assert where.length == pytest.approx(5, abs=0.2)
    assert where.deviations == pytest.approx(5, abs=0.5)
    assert where.beyond_noise == pytest.approx(1, abs=0.01)


def _fisher(a, n, b, m):
    """Return the two-sided p-value of two counts, by all tables with these margins."""
    k = a + b
    ways = [math.comb(n, i) * math.comb(m, k - i) / math.comb(n + m, k) for i in range(k + 1)]
    return sum(way for way in ways if way <= ways[a] * (1 + 1e-9))


@pytest.mark.truth("the hypergeometric distribution by counting")
def test_rows_that_no_shift_sees_are_counted_on_both_sides():
    x, y = _rows(0, 90), _rows(1, 110)
    x[:2, 1], y[::5, 3] = math.nan, math.inf
    found = drift(_fit(Covariance(), x), _fit(Covariance(), y))
    moved = found["nonfinite", "x"]
    assert float(moved) == pytest.approx(22 / 110 - 2 / 90)
    assert moved.p == pytest.approx(_fisher(2, 90, 22, 110))
    assert found.moved() == [("nonfinite", "x")]
    whole = drift(_fit(Covariance(), _rows(0)), _fit(Covariance(), _rows(1)))
    assert ("nonfinite", "x") not in whole.found


@pytest.mark.truth("the hypergeometric distribution by counting")
def test_broken_tokens_of_one_document_count_once():
    x, y = _rows(0, 90), _rows(1, 120)
    y[::4, 3] = math.nan
    sides = [_fit(Covariance(), v, group=[i // 3 for i in range(len(v))]) for v in (x, y)]
    moved = drift(*sides)["nonfinite", "x"]
    assert moved.sides == (30, 40)
    assert moved.p == pytest.approx(_fisher(0, 30, 10, 40))


@pytest.mark.truth("the hypergeometric distribution by counting")
@pytest.mark.parametrize("hole", ["", "nan"])
def test_missing_values_of_a_column_move(tmp_path, hole):
    bundles = []
    for seed, (name, every) in enumerate((("a", 40), ("b", 3))):
        rows = [f"{u:.9f},{hole if i % every == 1 else v}" for i, (u, v) in
                enumerate(_rows(seed, 80, 2).tolist())]  # fmt: skip
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["u,v", *rows]))
        torch.manual_seed(0)
        net = nn.Linear(2, 3).eval()
        bundles.append(fit(Covariance(), read(net, path, skip_bad=True), progress=False))
    found = drift(*bundles)
    moved = found["missing", "column v"]
    assert moved.p == pytest.approx(_fisher(2, 80, 27, 80))
    assert ("missing", "column v") in found.moved()
    assert ("missing", "column u") not in found.found
    assert bundles[0].merge(bundles[1]).header["data"]["missing"]["columns"] == {"v": 29}
