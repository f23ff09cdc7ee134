"""States of another run brought into this one: means, spreads, and what stays outside a region."""

import numpy as np
import pytest
import torch
from torch import nn

from sonde.core import EditContext, InputError, ShapeError, Site
from sonde.edit import Inject, increment_penalty
from sonde.tap import Tap, editing

SITE = Site("0")


def rows(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def apply(edit, x, source, mask=None):
    return edit.apply(x, SITE, EditContext(mask=mask, others={"source": source}))


@pytest.mark.truth("numpy's means and standard deviations")
def test_means_and_spreads_become_those_of_the_source_at_real_tokens():
    x, source = rows(0, 2, 6, 3), 4 + 2 * rows(1, 2, 9, 3)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    moved = apply(Inject(), x, source, mask)
    for i, n in enumerate((6, 4)):
        old, new = x[i, :n].numpy(), moved[i, :n].numpy()
        np.testing.assert_allclose(new.mean(0), source[i].numpy().mean(0), atol=1e-12)
        np.testing.assert_allclose(new - new.mean(0), old - old.mean(0), atol=1e-12)
    styled = apply(Inject("adain"), x, source)
    np.testing.assert_allclose(styled.numpy().std(1), source.numpy().std(1), rtol=1e-4)


def test_states_are_added_place_by_place_or_by_their_mean():
    x, source = rows(0, 2, 3, 4, 5), rows(1, 2, 3, 4, 5)
    local = apply(Inject("add", "local", strength=0.5), x, source)
    assert torch.equal(local, x + 0.5 * source)
    added = apply(Inject("add"), x, source) - x
    torch.testing.assert_close(added[1, 2, 3], source[1].reshape(-1, 5).mean(0))


def test_what_does_not_fit_is_refused():
    x = rows(0, 2, 3, 4)
    with pytest.raises(InputError, match=r"sonde\.editing\(others="):
        Inject().apply(x, SITE, EditContext())
    with pytest.raises(ShapeError, match="aligned by example"):
        apply(Inject(), x, rows(1, 3, 3, 4))
    with pytest.raises(InputError, match="its level is global"):
        Inject("adain", "local")


@pytest.mark.truth("a sum over places, one by one")
def test_the_penalty_counts_what_moves_outside_the_region_alone():
    before, after = rows(0, 2, 3, 4, 4), rows(1, 2, 3, 4, 4)
    inside = torch.zeros(2, 8, 8)
    inside[:, :4, :4] = 1
    found = float(increment_penalty(after, before, inside))
    gap = (after - before).square().sum(1)
    outside = gap[:, 2:].sum() + gap[:, :2, 2:].sum()
    assert found == pytest.approx(float(outside) / (2 * 12))
    changed = before.clone()
    changed[:, :, :2, :2] += 5
    assert float(increment_penalty(changed, before, inside)) == 0.0
    with pytest.raises(InputError, match="covers everything"):
        increment_penalty(after, before, torch.ones(2, 8, 8))


@pytest.mark.truth("the mean of the whole source, taken by hand")
@pytest.mark.parametrize("length", [2, 9])
def test_a_source_of_another_length_is_taken_whole(length):
    torch.manual_seed(0)
    net, x, other = nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 5, 3), torch.randn(2, length, 3)
    with torch.no_grad():
        with Tap(net, "0") as tap:
            net(other)
        with editing(net, Inject(), "0", others={"source": tap.rows}):
            got = net(x)
        torch.testing.assert_close(got.mean(1), net(other).mean(1))
        local = Inject("add", "local")
        if length < 5:
            refused = pytest.raises(InputError, match="a state for each of")
            with refused, editing(net, local, "0", others={"source": tap.rows}):
                net(x)
