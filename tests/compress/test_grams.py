"""Moments of layers' inputs: against rows that were written down by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from edit.fact_model import tiny
from sonde import Model
from sonde.compress import LayerGrams, layer_grams
from sonde.compress.grams import gram_of, layers_of_weight
from sonde.core.errors import InputError, StateError
from sonde.data import open_inputs


class Branches(nn.Module):
    """Two layers read one tensor; one is called twice; two share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 5)
        self.twice, self.tied = nn.Linear(5, 5), nn.Linear(5, 5)
        self.tied.weight = self.twice.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.left(x).relu() + self.right(x).tanh()
        y += 1.0
        z = self.twice(self.twice(y).relu())
        z += y
        return self.tied(z)


def branches() -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    return Branches().eval(), torch.randn(9, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.truth("the rows of each call, written down in plain torch")
def test_layers_share_are_called_twice_and_are_tied():
    net, x = branches()
    grams = layer_grams(net, open_inputs(Model(net), x), progress=False)
    with torch.no_grad():
        y = net.left(x).relu() + net.right(x).tanh() + 1.0
        first = net.twice(y).relu()
        last = net.twice(first) + y
    assert grams.names == ("left&right#0", "tied#0", "twice#0")
    rows = torch.cat([y, first, last]).double()
    readers = layers_of_weight(net, "tied")
    assert readers == ["twice", "tied"]
    found = gram_of(grams, readers, 0)
    torch.testing.assert_close(found, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gram_of(grams, ["left"], 0), x.double().T @ x.double() / 9, rtol=1e-6, atol=1e-7
    )


@pytest.mark.truth("the convolution as a product with the windows")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_windows_of_a_convolution_give_its_output(mode):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), (1, 2), groups=2, padding_mode=mode)
    net = nn.Sequential(layer, nn.Flatten())
    x = torch.randn(5, 4, 7, 6, generator=torch.Generator().manual_seed(1))
    grams = layer_grams(net, open_inputs(Model(net), x), layers=("0",), progress=False)
    assert layer.bias is not None
    out = (layer(x) - layer.bias[:, None, None]).detach().double()
    for group in range(2):
        weight = layer.weight.detach().double()[3 * group : 3 * group + 3].flatten(1)
        energy = torch.einsum("oi,ij,oj->", weight, gram_of(grams, ["0"], group), weight)
        made = out[:, 3 * group : 3 * group + 3].movedim(1, -1).flatten(0, -2)
        assert float(energy) == pytest.approx(float(made.square().sum(1).mean()), rel=1e-5)


def test_padding_is_left_out_and_parts_merge_to_the_whole(tmp_path):
    model = tiny()
    texts = ["def f(x):", "a", "while True: pass", "import numpy"]
    data = open_inputs(model, texts, batch_size=4)
    alone = open_inputs(model, texts, batch_size=1)
    whole, single = (layer_grams(model, d, progress=False) for d in (data, alone))
    assert whole.counts == single.counts
    parts = [
        layer_grams(model, alone, start=a, stop=b, progress=False) for a, b in ((0, 3), (3, 4))
    ]
    parts[0].save(tmp_path / "part.sonde")
    merged = parts[1].merge(LayerGrams.load(tmp_path / "part.sonde"))
    for name, state in whole.states.items():
        for other in (single, merged):
            torch.testing.assert_close(
                other.states[name].scatter, state.scatter, rtol=1e-4, atol=1e-4
            )


def test_what_cannot_be_used_is_refused():
    net, x = branches()
    other, _ = branches()
    other.left.bias.data += 1
    inputs = open_inputs(Model(net), x)
    one, two = (layer_grams(m, inputs, progress=False) for m in (net, other))
    with pytest.raises(StateError, match="got layers of two models"):
        one.merge(two)
    with pytest.raises(StateError, match="expected rows of gone"):
        one.of_layers(["gone"])
    broken = open_inputs(Model(net), torch.full((3, 6), float("nan")))
    with pytest.raises(InputError, match="none that is finite at left and 3 more"):
        layer_grams(net, broken, progress=False)
    with pytest.raises(InputError, match="no layer matches 'lefd'"):
        layer_grams(net, inputs, layers=("lefd",))


@pytest.mark.essential
@pytest.mark.truth("the same sums from products in float64")
def test_products_in_float32_lose_no_more_than_their_digits():
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(300, 4)).eval()
    mixing = torch.randn(300, 300, generator=torch.Generator().manual_seed(1))
    rows = torch.randn(2500, 300, generator=torch.Generator().manual_seed(2)) @ mixing + 50
    inputs = open_inputs(Model(net), rows)
    whole = rows.double() - rows.double().mean(0)
    for exact, most in ((False, 1e-6), (True, 1e-8)):
        (found,) = layer_grams(net, inputs, exact=exact, progress=False).scatters
        expected = whole.T @ whole
        assert float((found - expected).norm() / expected.norm()) < most
