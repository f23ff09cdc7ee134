import math

import numpy as np
import pytest
import torch

import independent_classes
from sonde.core.errors import InputError
from sonde.measure import AlignmentQuality, alignment_quality

A = [[0.0, 0.0], [0.0, 2.0], [6.0, 0.0], [6.0, 2.0]]
B = [[0.0, 0.0], [2.0, 2.0], [6.0, 0.0], [8.0, 2.0]]


@pytest.mark.truth("the four indices from distances of rows")
def test_known_values():
    result = alignment_quality({"a": A, "b": B}, [0, 0, 1, 1])
    parts = [independent_classes.alignment_quality(x, [0, 0, 1, 1]) for x in (A, B)]
    assert result.layers.tolist() == pytest.approx(np.mean(parts, 1).tolist(), rel=1e-9)
    assert result.value == pytest.approx(np.mean(parts), rel=1e-9)
    only = alignment_quality({"a": A}, [0, 0, 1, 1], weights=(0, 0, 0, 2))
    assert only.value == pytest.approx(parts[0][3], rel=1e-9)


@pytest.mark.truth("labels that say nothing, and a class that moves away with depth")
def test_layers_against_their_null():
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2
    noise = rng.standard_normal((200, 4))
    layers = {f"layer {i}": noise + label[:, None] * i for i in range(4)}
    result = alignment_quality(layers, label)
    assert torch.equal(result.layers.argsort(), torch.arange(4))
    assert result.layers[0] == pytest.approx(float(result.layer_nulls[0]), abs=0.03)
    assert result.layers[3] > result.layer_nulls[3] + 0.2
    assert result.null == pytest.approx(float(result.layer_nulls.mean()))
    assert len(result.chart()["data"]["values"]) == 6 * 4


@pytest.mark.essential
@pytest.mark.truth("the spread over fresh draws")
def test_error():
    rng = np.random.default_rng(1)
    label = np.arange(160) % 2
    found = [
        alignment_quality({"x": rng.standard_normal((160, 3)) + 2 * label[:, None]}, label)
        for _ in range(12)
    ]
    ratio = np.mean([float(torch.as_tensor(r.se)) for r in found])
    assert 0.5 < ratio / np.std([float(r) for r in found], ddof=1) < 2.0


def test_a_constant_layer_has_no_value():
    result = alignment_quality({"a": A, "b": np.ones((4, 2))}, [0, 0, 1, 1])
    assert math.isnan(float(result))
    assert "dead" in result.flags
    assert result.layers[0] == pytest.approx(0.8432432432)


def test_weights_are_checked():
    with pytest.raises(InputError, match="AlignmentQuality: expected four weights of at least 0"):
        AlignmentQuality(weights=(1.0, -1.0, 0.0, 0.0))


def test_layers_weigh_as_they_are_given():
    label = torch.arange(90) % 3
    source = torch.Generator().manual_seed(0)
    near = torch.nn.functional.one_hot(label, 4) + 0.5 * torch.randn(90, 4, generator=source)
    layers = [near, torch.randn(90, 6, generator=source), near[:, :2]]
    plain = alignment_quality(layers, label)
    found = alignment_quality(layers, label, layer_weights=(3.0, 0.0, 1.0))
    want = float(plain.layers @ torch.tensor([0.75, 0.0, 0.25], dtype=torch.float64))
    assert found.value == pytest.approx(want, rel=1e-12)
    assert plain.value == pytest.approx(float(plain.layers.mean()), rel=1e-12)
    assert plain.parts.mean(1).tolist() == pytest.approx(plain.layers.tolist(), rel=1e-12)
    with pytest.raises(InputError, match="a weight for each of 3 layers, got 2"):
        alignment_quality(layers, label, layer_weights=(1.0, 1.0))
    with pytest.raises(InputError, match="layer weights of at least 0, not all of them 0"):
        AlignmentQuality(layer_weights=(0.0, 0.0))
