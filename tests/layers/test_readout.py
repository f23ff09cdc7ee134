"""Many sites, few vectors."""

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError, ShapeError
from sonde.layers import Readout


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(layer):
    layer = layer.double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return layer


def normed(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


def attend(state, tokens, layer):
    keys = tokens @ layer.key.weight.T + layer.key.bias
    values = tokens @ layer.value.weight.T + layer.value.bias
    return (state @ keys.T / state.shape[-1] ** 0.5).softmax(-1) @ values


SITES = draw(2, 5, 4), draw(2, 7, 3, seed=1)


@pytest.mark.truth("sites mapped, averaged and mixed by hand")
def test_weights_and_concat():
    layer = filled(Readout((4, 3), 6))
    means = [m(normed(x)).mean(1) for m, x in zip(layer.maps, SITES, strict=True)]
    a, b = layer.weights().tolist()
    torch.testing.assert_close(layer(*SITES)[:, 0], a * means[0] + b * means[1])
    with torch.no_grad():
        layer.logits.copy_(torch.tensor([4.0, 4.0]))
    torch.testing.assert_close(layer(*SITES)[:, 0], (means[0] + means[1]) / 2)
    joined = filled(Readout((4, 3), 6, "concat"))
    means = [m(normed(x)).mean(1) for m, x in zip(joined.maps, SITES, strict=True)]
    torch.testing.assert_close(joined(*SITES)[:, 0], joined.join(torch.cat(means, 1)))


@pytest.mark.truth("attention by hand, row by row")
@pytest.mark.parametrize("order", ["first_to_last", "last_to_first"])
def test_queries_and_recurrence(order):
    wide = filled(Readout((4, 3), 6, "queries", n_queries=2))
    deep = filled(Readout((4, 3), 6, "recurrent", n_queries=2, order=order))
    masks = torch.arange(5).expand(2, 5) < torch.tensor([[3], [5]]), torch.ones(2, 7).bool()
    for row in range(2):
        for layer in (wide, deep):
            parts = [
                (m(normed(x[row])) + mark)[real[row]]
                for m, x, mark, real in zip(layer.maps, SITES, layer.marks, masks, strict=True)
            ]
            state = layer.queries
            if layer is wide:
                state = attend(state, torch.cat(parts), layer)
            else:
                for tokens in parts if order == "first_to_last" else parts[::-1]:
                    state = state + layer.gate * attend(state, tokens, layer)
            torch.testing.assert_close(layer(*SITES, mask=masks)[row], state)


def test_a_hidden_token_has_no_influence():
    layer, x = filled(Readout((4,), 6, "queries", n_queries=2)), SITES[0].clone().requires_grad_()
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    (grad,) = torch.autograd.grad(layer(x, mask=mask).square().sum(), x)
    assert float(grad[0, [2, 4]].abs().max()) == 0.0
    assert float(grad[0, [0, 1, 3]].abs().min()) > 0.0
    with pytest.raises(InputError, match="real token in every row, got none in row 1"):
        layer(x, mask=torch.tensor([[True] * 5, [False] * 5]))
    with pytest.raises(InputError, match="one token of row 1 at site 1"):
        Readout((4, 4), 6).double()(x, x, mask=(mask, torch.tensor([[True] * 5, [False] * 5])))
    with pytest.raises(ShapeError, match="expected 1 sites"):
        layer(x, x)


@pytest.mark.truth("the vectors of highest score, averaged by hand")
def test_selection():
    layer = filled(Readout((4,), 6, "queries", n_queries=5, select=2))
    slots = layer.gathered(SITES[0])
    best = layer.score(slots).squeeze(-1).topk(2, dim=1).indices
    wanted = torch.stack([slots[i, best[i]].mean(0, keepdim=True) for i in range(2)])
    torch.testing.assert_close(layer(SITES[0]), wanted)
    told = layer.teller(wanted[:, 0]).reshape(2, 5, 6)
    errors = [
        (told[i, j] - slots[i, j]).square().mean()
        for i in range(2)
        for j in range(5)
        if j not in best[i].tolist()
    ]
    torch.testing.assert_close(layer.guess(SITES[0]), torch.stack(errors).mean())
    with pytest.raises(InputError, match="select from 1 to 5"):
        Readout((4,), 6, "queries", n_queries=5, select=6)


@pytest.mark.essential
@pytest.mark.truth("planted structure: one of nine layers carries the label")
def test_the_informative_layer_is_found():
    torch.manual_seed(0)
    y = torch.arange(256) % 2
    layer, head = Readout([8] * 9, 4), nn.Linear(4, 2)
    others = [*layer.maps.parameters(), *head.parameters()]
    groups = [{"params": [layer.logits], "lr": 0.5}, {"params": others, "lr": 0.03}]
    optimiser = torch.optim.Adam(groups)
    for _ in range(120):
        sites = [torch.randn(256, 1, 8) for _ in range(9)]
        sites[6][:, 0, :4] += 0.7 * (2.0 * y[:, None] - 1.0)
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(layer(*sites)[:, 0]), y).backward()
        optimiser.step()
    assert float(layer.weights()[6].detach()) > 0.9


@pytest.mark.truth("attention by hand, row by row")
def test_finer_features_are_biases_of_the_coarse_prompt():
    layer = filled(Readout((4,), 6, "queries", n_queries=2, biases=(3, 5)))
    coarse, fine = SITES[0], (SITES[1], draw(2, 9, 5, seed=2))
    prompt = layer(coarse)
    wanted = prompt.clone()
    for row in range(2):
        for part, out, x in zip(layer.fine, layer.outs, fine, strict=True):
            wanted[row] += attend(prompt[row], part(normed(x[row])), layer) @ out.weight.T
    torch.testing.assert_close(layer(coarse, fine=fine), wanted)
    fresh = Readout((4,), 6, "queries", n_queries=2, biases=(3, 5)).double()
    torch.testing.assert_close(fresh(coarse, fine=fine), fresh(coarse))
    with pytest.raises(ShapeError, match="fine tokens of 2 sites, got 1"):
        layer(coarse, fine=fine[:1])
    with pytest.raises(InputError, match=r"biases only for 'queries'.*'concat'"):
        Readout((4,), 6, "concat", biases=(3,))
