from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor

import independent_pairs
from fixture_rows import X, Y
from narrow import expect
from sonde.core.errors import InputError
from sonde.measure import LayerCKA, cka, layer_cka
from sonde.stats import HashSample


def _brute(x, y):
    """Debiased linear CKA from whole Gram matrices, by the definition."""

    def hsic(k, m):
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        rest = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
        return (np.sum(k * m) + rest) / (n * (n - 3))

    k, m = (np.asarray(v, dtype=float) @ np.asarray(v, dtype=float).T for v in (x, y))
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def _value(result):
    return expect(Tensor, result.value)


def _layers(seed, n=300, dims=(8, 20, 3)):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, 5))
    mix = np.random.default_rng(99).standard_normal((5, sum(dims)))
    mixed = base @ mix + rng.standard_normal((n, sum(dims)))
    return np.split(mixed, np.cumsum(dims)[:-1], axis=1)


@pytest.mark.truth("whole matrices of inner products in numpy")
def test_known_value():
    result = layer_cka([X, Y])
    want = independent_pairs.debiased_cka(X, Y)
    assert float(_value(result)[0, 1]) == pytest.approx(want, abs=1e-6)
    assert _value(result).diagonal().tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.truth("whole Gram matrices by the definition")
@pytest.mark.parametrize("n", [5, 31, 63, 64, 300])
def test_brute_force(n):
    layers = _layers(n, n)
    value = _value(layer_cka(layers))
    for i, x in enumerate(layers):
        for j, y in enumerate(layers):
            assert float(value[i, j]) == pytest.approx(_brute(x, y), abs=2e-5)


def test_agrees_with_the_sums_over_all_rows():
    layers = _layers(1)
    assert float(_value(layer_cka(layers))[0, 1]) == pytest.approx(
        cka(layers[0], layers[1]).value, abs=1e-5
    )


@pytest.mark.truth("spread over fresh draws of the data")
def test_errors():
    results = [layer_cka(_layers(seed, 200)) for seed in range(16)]
    spread = np.std([float(_value(r)[0, 1]) for r in results], ddof=1)
    errors = [float(expect(Tensor, r.se)[0, 1]) for r in results]
    assert np.mean(errors) / spread == pytest.approx(1.0, abs=0.35)


@pytest.mark.truth("null of the unbiased criterion, by simulation")
def test_null_with_more_dimensions_than_rows():
    rng = np.random.default_rng(0)
    results = [
        layer_cka([rng.standard_normal((60, 200)), rng.standard_normal((60, 100))])
        for _ in range(16)
    ]
    values = [float(_value(r)[0, 1]) for r in results]
    assert abs(np.mean(values)) < 4 * np.std(values) / 16**0.5
    assert "few_rows" in results[0].flags


def test_rows_of_one_group_are_alike_and_only_one_of_them_counts():
    values = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        effects = [np.repeat(rng.standard_normal((40, 4)), 8, axis=0) for _ in range(2)]
        x, y = (e + 0.1 * rng.standard_normal((320, 4)) for e in effects)
        result = layer_cka([x, y], group=np.repeat(np.arange(40), 8))
        assert result.n == 40
        values.append(float(_value(result)[0, 1]))
    assert abs(np.mean(values)) < 4 * np.std(values) / 12**0.5


@pytest.mark.truth("the same layers in float64 without the offset")
def test_nearly_constant_layers_are_right_and_flagged():
    layers = [torch.from_numpy(x) for x in _layers(2)]
    want = layer_cka(layers).value
    near = [layers[0], 1e3 + 1e-2 * layers[1], layers[2]]
    torch.testing.assert_close(layer_cka(near).value, want, atol=1e-4, rtol=0)
    single = layer_cka([v.float() for v in near])
    assert "low_precision" not in single.flags
    worse = layer_cka([layers[0].float(), (1e3 + 1e-4 * layers[1]).float()])
    assert {"low_precision", "lost_precision"} & set(worse.flags)
    assert bool(torch.isfinite(_value(worse)).all())


def test_a_constant_layer_is_nan_and_dead_never_0_or_1():
    layers = [*_layers(3), np.ones((300, 4))]
    result = layer_cka(layers)
    assert "dead" in result.flags
    assert result.dead.tolist() == [False, False, False, True]
    assert bool(torch.isnan(_value(result)[3]).all())
    assert bool(torch.isfinite(_value(result)[:3, :3]).all())


def test_layers_are_joined_on_the_rows_that_all_of_them_kept():
    layers = [torch.from_numpy(x) for x in _layers(4)]
    broken = layers[1].clone()
    broken[::3] = float("nan")
    keep = torch.ones(300, dtype=torch.bool)
    keep[::3] = False
    got = LayerCKA().fit({"a": layers[0], "b": broken, "c": layers[2]}, ids=range(300))
    assert got.n == 200
    for i, j in ((0, 1), (0, 2), (1, 2)):
        want = _brute(layers[i][keep], layers[j][keep])
        assert float(got.value[i, j]) == pytest.approx(want, abs=2e-5)


@pytest.mark.truth("whole Gram matrices by the definition")
def test_many_layers_in_several_blocks(monkeypatch):
    monkeypatch.setattr(import_module("sonde.measure.layer_cka"), "BUFFER_ENTRIES", 20_000)
    layers = _layers(5, 200, (4, 6, 9, 5))
    value = _value(layer_cka(layers))
    assert float(value[1, 3]) == pytest.approx(_brute(layers[1], layers[3]), abs=2e-5)


def test_chart_has_a_cell_for_each_pair():
    assert len(layer_cka(_layers(6)).chart()["data"]["values"]) == 9


def test_needs_the_sample_of_each_site():
    assert LayerCKA(m=64).reads() == {"samples": HashSample(64)}
    with pytest.raises(InputError, match="LayerCKA: expected m of at least 4"):
        LayerCKA(m=3)
    with pytest.raises(InputError, match="expected at least one array, got none"):
        layer_cka([])
