"""Hidden positions: exact counts, what the loss may look at, and a loop over positions."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm

import models
import sonde
from sonde.core import InputError
from sonde.train import MaskedFeatures
from sonde.train.masked_features import _waves


def states(n=5, positions=6, dim=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, positions, dim, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize(("how", "count"), [("random", 5), ("block", 5), ("tube", 6)])
def test_the_count_is_exact_in_every_row(how, count):
    loss = MaskedFeatures(how=how, ratio=0.4, times=3 if how == "tube" else 1)
    hidden = loss.hidden(200, 12)
    assert bool((hidden.sum(1) == count).all())
    if how == "block":
        assert int((hidden[:, 1:] & ~hidden[:, :-1]).sum(1).max()) <= 1
    if how == "tube":
        assert torch.equal(hidden[:, :4], hidden[:, 8:])
    assert float(hidden.double().mean(0).min()) > 0.05
    assert not torch.equal(hidden, loss.hidden(200, 12))


@pytest.mark.truth("a loop over hidden positions with the rebuilder's own output")
def test_the_error_is_that_of_hidden_positions_alone():
    x, target = states(), states(dim=2, seed=1)
    loss = MaskedFeatures("pixels", rebuilder="conv", width=2)
    mask = loss.hidden(5, 6)
    found = loss(x, target, mask=mask)
    parts, gain = [], float(x.square().mean().sqrt())
    for i, j in mask.nonzero().tolist():
        angles = (j, j, j / 10_000**0.5, j / 10_000**0.5)
        place = [(math.sin, math.cos)[k % 2](a) for k, a in enumerate(angles)]
        made = loss.out(loss.rebuilder(loss.empty + gain * torch.tensor(place, dtype=x.dtype)))
        parts.append((made - target[i, j]).square().mean().item())
    assert found.item() == pytest.approx(sum(parts) / len(parts), rel=1e-10)
    moved = torch.where(mask[..., None], target, target + 7)
    assert torch.equal(loss(x, moved, mask=mask), found)
    flat = MaskedFeatures("pixels", rebuilder="conv", width=2, positions=6)
    assert torch.equal(flat(x.flatten(0, 1), target.flatten(0, 1), mask=mask), found)


def test_no_gradient_goes_to_the_target_and_hidden_values_are_not_seen():
    x = states(dim=5).requires_grad_()
    loss = MaskedFeatures()
    mask = loss.hidden(5, 6)
    loss(x, mask=mask).backward()
    assert float(x.grad[mask].abs().max()) == 0
    assert float(x.grad[~mask].abs().max()) > 0
    with pytest.raises(InputError, match="expected y, the codes"):
        MaskedFeatures("codes")(x)


def test_identity_on_unmasked_input_and_no_hidden_position():
    x = layer_norm(states(), (4,))
    loss = MaskedFeatures(rebuilder=nn.Identity())
    loss(x)
    loss.empty = nn.Parameter(x[0, 0].detach().clone())
    same = x[:1, :1].expand(3, 6, 4)
    assert loss(same).item() == pytest.approx(0, abs=1e-9)
    none = MaskedFeatures(ratio=0.0)(x)
    none.backward()
    assert none.item() == 0


@pytest.mark.truth("torch cross entropy of the rebuilder's own output")
def test_codes_and_a_task_head():
    x, codes = states(), torch.arange(30).reshape(5, 6) % 3
    head, label = (
        nn.Sequential(nn.Flatten(), nn.Linear(24, 2)).double(),
        torch.tensor([0, 1, 0, 1, 1]),
    )
    loss = MaskedFeatures("codes", width=3, head=head)
    mask = loss.hidden(5, 6)
    found = loss(x, codes, label, mask).item()
    whole = torch.where(mask[..., None], loss.empty, x)
    made = loss.rebuilder(whole + loss.gain * _waves(x))
    expected = cross_entropy(loss.out(made[mask]), codes[mask])
    rebuilt = torch.where(mask[..., None], made, x)
    assert found == pytest.approx((expected + cross_entropy(head(rebuilt), label)).item())
    assert not any(p is q for p in loss.parameters() for q in head.parameters())


@pytest.mark.essential
@pytest.mark.truth("planted: states that their position alone separates")
@pytest.mark.parametrize("rebuilder", ["transformer", "conv"])
def test_positions_are_told_apart(rebuilder):
    table = 3 * states(1, 8, 16, seed=2).float()
    loss = MaskedFeatures(rebuilder=rebuilder)
    loss(table.repeat(2, 1, 1))
    adam = torch.optim.Adam(loss.parameters(), 1e-2)
    for _ in range(200):
        adam.zero_grad()
        found = loss(table.repeat(16, 1, 1))
        found.backward()
        adam.step()
    assert float(found.detach()) < 0.1  # 1 if all hidden positions are rebuilt alike


def test_a_training_gives_states_with_their_positions():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(5, 6, 3)
    with sonde.training(net, {"0": MaskedFeatures()}) as terms:
        net(x)
        found = terms.loss()
    assert torch.equal(found, MaskedFeatures()(net[0](x)))


def real_positions() -> torch.Tensor:
    """Return which positions are no padding: on the right, on the left, and everywhere."""
    at = torch.arange(12)
    return torch.stack([at < 7, at >= 4, at < 12])


@pytest.mark.truth("counts of real positions, and the rows without their padding")
@pytest.mark.parametrize("how", ["random", "block"])
def test_padding_is_neither_hidden_nor_seen(how):
    real, x = real_positions(), states(3, 12, 8)
    loss = MaskedFeatures(how=how, ratio=0.4)
    hidden = loss.hidden(3, 12, real)
    assert not bool((hidden & ~real).any())
    assert hidden.sum(1).tolist() == [3, 3, 5]  # of 7, 8 and 12
    found = loss(x, mask=hidden, real=real)
    x[~real] = 1e3
    torch.testing.assert_close(loss(x, mask=hidden, real=real), found)
    alone = [loss(x[i : i + 1, r], mask=hidden[i : i + 1, r]).detach() for i, r in enumerate(real)]
    torch.testing.assert_close(found.detach(), torch.stack(alone).mean())
    assert loss.hidden(3, 12, torch.ones(3, 12).bool()).sum(1).tolist() == [5, 5, 5]
    none = loss(x, mask=hidden & False, real=real & False)
    none.backward()
    assert none.item() == 0


@pytest.mark.truth("the vector put into the forward by hand")
def test_the_layers_above_do_not_see_what_is_hidden():
    torch.manual_seed(0)
    net, ids = models.llama().train(), torch.randint(5, 30, (3, 7))
    mask = torch.ones(3, 7).long()
    mask[1, 4:] = 0
    loss, other = MaskedFeatures(ratio=0.5), MaskedFeatures(ratio=0.5)
    seen = []
    net.model.layers[1].register_forward_pre_hook(lambda *a: seen.append(a[1][0].detach().clone()))
    with sonde.training(net, {"layers.0": loss}) as terms:
        net(ids, attention_mask=mask)
        found = terms.loss()
        with torch.no_grad():
            net(ids, attention_mask=mask)
        value = terms.evaluate([((ids, {"attention_mask": mask}), {})])
    masked, plain = seen[:2]
    hidden = (masked == loss.empty).all(-1)
    assert torch.equal(masked[~hidden], plain[~hidden])
    assert hidden.sum(1).tolist() == [4, 2, 4]
    assert not bool((hidden & (mask == 0)).any())
    expected = other(plain, mask=hidden, real=mask.bool())
    torch.testing.assert_close(found, expected)
    assert value["MaskedFeatures(model.layers.0:out)"] > 0
    found.backward()
    for still in (MaskedFeatures(in_forward=False), MaskedFeatures()):
        again = copy.deepcopy(net)
        if still.in_forward:
            again.eval()
        with sonde.training(again, {"layers.0": still}) as terms:
            again(ids, attention_mask=mask)
            assert torch.equal(seen[-1], plain)
            torch.testing.assert_close(terms.loss(), other_value(still, plain, mask))


def other_value(loss: MaskedFeatures, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the loss of the rows by a new copy, which draws the same positions."""
    again = MaskedFeatures(in_forward=loss.in_forward)
    return again(rows, real=mask.bool())
