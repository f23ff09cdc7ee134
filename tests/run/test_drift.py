import math

import numpy as np
import pytest
import torch

from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.detect import MMD, FourierMMD, Frechet, Hotelling, Mahalanobis, UnitShift
from sonde.measure import Covariance, Norms
from sonde.run.drift import Drift, drift
from sonde.run.fit import fit
from sonde.run.fitted import Fitted
from sonde.stats import adjusted_p


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
            if word != "frechet":
                assert got.p == pytest.approx(want.p, rel=1e-6)
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
    assert "fit both with it" in asked.left_out["hotelling", "x"]
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
