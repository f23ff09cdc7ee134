"""Distances and gates of heads whose attention is known."""

import pytest
import torch
from torch import nn

from sonde_studies.attention_patterns import PatchNet
from sonde_studies.leaving_locality import gate_of, reach_of
from sonde_studies.worlds.learning import drawn

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_even_attention_looks_at_the_mean_distance_of_two_patches():
    net = drawn(lambda: PatchNet("all", ""), 0)
    for mix in net.mixing:
        nn.init.zeros_(mix.maps["query"].weight)
        nn.init.zeros_(mix.maps["query"].bias)
    places = [(i, j) for i in range(4) for j in range(4)]
    far = [((a - c) ** 2 + (b - d) ** 2) ** 0.5 for a, b in places for c, d in places]
    assert reach_of(net, X) == pytest.approx(sum(far) / len(far), rel=1e-5)


def test_a_sharp_prior_with_open_gates_looks_at_the_patch_itself():
    net = drawn(lambda: PatchNet("position", ""), 0)
    for mix in net.mixing:
        nn.init.zeros_(mix.centre)
        nn.init.constant_(mix.sharpness, 50.0)
        nn.init.constant_(mix.gate, 50.0)
    assert gate_of(net) == pytest.approx(1)
    assert reach_of(net, X) == pytest.approx(0, abs=1e-5)
    for mix in net.mixing:
        nn.init.constant_(mix.gate, -50.0)
    assert gate_of(net) == pytest.approx(0)
    assert reach_of(net, X) > 1
