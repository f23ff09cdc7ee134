"""Associative memories against closed forms: weights, energies, overlaps, one step of attention."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from sonde.core import InputError, ShapeError
from sonde.layers import (
    Hopfield,
    hebbian_couplings,
    hebbian_recall,
    hopfield_energy,
    keys_for_mass,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("weight e^beta / (e^beta + n - 1) of orthonormal patterns")
@pytest.mark.parametrize(
    ("n", "beta", "weight"), [(10, 4.0, 0.858486), (10, 8.0, 0.996990), (100, 8.0, 0.967857)]
)
def test_orthonormal_patterns_are_retrieved(n, beta, weight):
    patterns = torch.linalg.qr(normal(n + 3, n))[0].T
    layer = Hopfield(n + 3, "retrieve", beta=beta).double()
    found = layer(patterns[None, 2:3], patterns)[0, 0]
    assert float(found @ patterns[2]) == pytest.approx(weight, abs=1e-6)
    assert weight == pytest.approx(math.exp(beta) / (math.exp(beta) + n - 1), abs=1e-6)
    still = Hopfield(n + 3, "retrieve", beta=0.0).double()(patterns[None, :1], patterns)
    torch.testing.assert_close(still[0, 0], patterns.mean(0))


@pytest.mark.truth("scaled_dot_product_attention of torch, bit for bit")
def test_one_step_is_attention():
    x, memory = normal(2, 5, 4), normal(7, 4, seed=1)
    found = Hopfield(4, "retrieve").double()(x, memory)
    every = memory.expand(2, -1, -1)
    assert torch.equal(found, scaled_dot_product_attention(x, every, every, scale=0.5))
    layer = Hopfield.of(memory)
    assert torch.equal(layer(x), x)
    nn.init.normal_(layer.out.weight)
    torch.testing.assert_close(layer(x), x + layer.out(found))
    pool = Hopfield(4, "pool", n=3).double()
    share = (0.5 * pool.patterns @ x[0].T).softmax(1)
    torch.testing.assert_close(pool(x)[0], share @ x[0])


@pytest.mark.truth("the energy never rises, and is bounded below by 0")
def test_energies_fall_and_steps_stop():
    patterns, x = normal(9, 6, seed=2), normal(1, 4, 6, seed=3)
    energies = [hopfield_energy(x, patterns, 0.8)]
    for steps in range(1, 8):
        layer = Hopfield(6, "retrieve", beta=0.8, steps=steps, tolerance=0.0).double()
        energies.append(hopfield_energy(layer(x, patterns), patterns, 0.8))
    every = torch.stack(energies)
    assert bool((every[1:] <= every[:-1] + 1e-12).all())
    assert bool((every[0] - every[-1] > 0.1).all())
    assert bool((every >= 0).all())
    last = Hopfield(6, "retrieve", beta=0.8, steps=20, tolerance=0.0).double()(x, patterns)
    stopped = Hopfield(6, "retrieve", beta=0.8, steps=20, tolerance=1e-3).double()(x, patterns)
    assert 0 < float((last - stopped).abs().max()) < 0.01


@pytest.mark.truth("overlaps (1 - b) b^(k - 1) of diluted patterns, 1 of a whole one")
def test_a_diluted_memory_recalls_several_patterns_at_once():
    generator = torch.Generator().manual_seed(3)
    n, b = 4000, 0.3
    signs = torch.randint(0, 2, (3, n), generator=generator) * 2.0 - 1
    patterns = signs * (torch.rand(3, n, generator=generator) >= b)
    couplings = hebbian_couplings(patterns)
    assert float(couplings.diagonal().abs().max()) == 0.0
    start = torch.where(patterns[0] == 0, signs[1], patterns[0])
    found = hebbian_recall(couplings, start, steps=8)
    overlap = (patterns @ found / n).abs().sort(descending=True).values.tolist()
    theory = [(1 - b) * b**k for k in range(3)]
    assert overlap == pytest.approx(theory, abs=0.05)
    whole = hebbian_couplings(signs[:1, :200])
    noisy = signs[0, :200] * torch.where(torch.rand(200, generator=generator) < 0.2, -1.0, 1.0)
    assert float(hebbian_recall(whole, noisy) @ signs[0, :200]) / 200 == 1.0
    hot = hebbian_recall(whole, signs[0, :200], temperature=5.0, steps=5)
    assert abs(float(hot @ signs[0, :200])) / 200 < 0.5


@pytest.mark.essential
@pytest.mark.truth("mean field: m = tanh(m / T), which is 0 above T = 1")
@pytest.mark.parametrize(("temperature", "size"), [(0.6, 0.9073), (1.6, 0.0)])
def test_a_warm_memory_keeps_the_magnetisation_of_its_temperature(temperature, size):
    n = 1500
    couplings = (1 - torch.eye(n)) / n
    found = hebbian_recall(couplings, torch.ones(n), steps=20, temperature=temperature, seed=1)
    assert math.atanh(size) == pytest.approx(size / temperature, abs=1e-3)
    assert float(found.mean()) == pytest.approx(size, abs=0.1)


@pytest.mark.truth("counted by hand")
def test_keys_that_hold_a_share():
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.95, 0.0, 0.0], [0.25] * 4])
    assert keys_for_mass(probs).tolist() == [3, 1, 4]
    assert keys_for_mass(probs, 0.5).tolist() == [1, 1, 2]


def test_what_is_wrong_is_said():
    x = normal(2, 5, 4)
    with pytest.raises(InputError, match="with mode='retrieve', and no patterns with another mode"):
        Hopfield(4, "retrieve").double()(x)
    with pytest.raises(InputError, match="1 to 20 steps"):
        Hopfield(4, steps=21)
    with pytest.raises(InputError, match="a real item in every row"):
        Hopfield(4, "pool").double()(x, mask=torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"couplings of 3 units, got \(2, 2\)"):
        hebbian_recall(torch.eye(2), torch.ones(3))
