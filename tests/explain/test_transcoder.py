import pytest
import torch

from sonde.explain import Transcoder
from sonde.stats.training import generator

HOW = {"k": 4, "batch": 256, "mixed": 1, "passes": 12, "rate": 2e-2}


@pytest.mark.essential
@pytest.mark.truth("a planted layer of units that are on or off")
def test_a_transcoder_finds_the_units_of_a_layer():
    source = generator("layer")
    w_in = torch.linalg.qr(torch.randn(8, 8, generator=source))[0]
    w_out = torch.nn.functional.normalize(torch.randn(8, 6, generator=source), dim=1)
    z = (torch.rand(4096, 8, generator=source) < 0.25) * (1 + torch.rand(4096, 8, generator=source))
    x = z @ w_in
    y = (x @ w_in.T).relu() @ w_out
    found = Transcoder(features=8, **{**HOW, "passes": 24}).fit(x, y=y)
    assert found.value < 0.1
    cosines = torch.nn.functional.normalize(found.decoder, dim=1) @ w_out.T
    assert float(cosines.max(0).values.median()) > 0.85
