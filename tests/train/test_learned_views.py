"""Learned views: the value by hand, and views that the margin keeps apart."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from sonde.core import InputError
from sonde.train import Contrast, LearnedViews


@pytest.mark.truth("the contrast of four views, and the hinge, by hand")
def test_four_views_and_the_margin():
    torch.manual_seed(1)
    loss, x = LearnedViews(3, width=5, margin=-0.5, weight=0.4), torch.randn(8, 3)
    own = [loss.maps[i](x[4 * i : 4 * i + 4]) for i in range(2)]
    wanted = Contrast(0.1)(torch.cat([x, *own]), label=torch.arange(4).repeat(4))
    hinge = max(0.0, cosine_similarity(*own).mean().item() + 0.5)
    found = loss(x, torch.tensor([0, 1]).repeat_interleave(4))
    assert hinge > 0
    assert found.item() == pytest.approx(wanted.item() + 0.4 * hinge, rel=1e-5)


@pytest.mark.essential
@pytest.mark.truth("planted: without the margin the two maps come out alike")
def test_the_margin_keeps_learned_views_apart():
    found = {}
    for weight in (0.0, 20.0):
        torch.manual_seed(0)
        x, view = torch.randn(64, 4), torch.tensor([0, 1]).repeat_interleave(32)
        x[32:] = x[:32] + 0.1 * torch.randn(32, 4)
        loss = LearnedViews(4, 0.5, width=16, margin=0.2, weight=weight)
        optimiser = torch.optim.Adam(loss.parameters(), 0.01)
        for _ in range(150):
            optimiser.zero_grad()
            loss(x, view).backward()
            optimiser.step()
        made = [f(h) for f, h in zip(loss.maps, x.chunk(2), strict=True)]
        found[weight] = cosine_similarity(*made).mean().item()
    assert found[0.0] > 0.8
    assert found[20.0] < 0.5


def test_one_view_and_margins_of_no_cosine_are_refused():
    for margin in (1.5, -1.5):
        with pytest.raises(InputError, match=rf"a margin in \[-1, 1\], got 0.1 and {margin}"):
            LearnedViews(2, margin=margin)
    with pytest.raises(InputError, match="expected two views"):
        LearnedViews(2)(torch.randn(4, 2))
