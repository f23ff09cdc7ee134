import pytest
import torch

from sonde.explain import SkipTranscoder
from sonde.stats.training import generator

HOW = {"k": 4, "batch": 256, "mixed": 1, "passes": 12, "rate": 2e-2}


@pytest.mark.truth("a linear layer, by least squares")
def test_a_skip_transcoder_without_features_explains_a_linear_layer():
    x = torch.randn(600, 5, generator=generator("x")) * 3 + 1
    weight = torch.randn(4, 5, generator=generator("w"))
    y = x @ weight.T + 2
    found = SkipTranscoder(features=0, **{**HOW, "passes": 1, "rate": 1e-6}).fit(x, y=y)
    assert found.value < 1e-8
    torch.testing.assert_close(found.skip, weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.rebuild(x), y, rtol=1e-3, atol=1e-3)
