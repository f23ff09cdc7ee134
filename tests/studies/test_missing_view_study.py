"""The worse view is chosen on rows that do not judge."""

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from sonde import Model
from sonde_studies._joined_streams import FIT, JUDGE, Streams, joined_at
from sonde_studies.missing_view import worse_and_better


@pytest.mark.truth("a view that is wrong on choosing rows, another that is wrong on judging rows")
def test_the_worse_view_is_chosen_on_choosing_rows():
    label = torch.arange(JUDGE + 200) % 10
    told, untold = one_hot(label, 10).float(), one_hot((label + 1) % 10, 10).float()
    up, down = told.clone(), told.clone()
    up[JUDGE:], down[FIT : FIT + 20] = untold[JUDGE:], untold[FIT : FIT + 20]
    nets = [Model(nn.Sequential(nn.Identity())) for _ in range(2)]
    assert worse_and_better(nets, (up, down), label) == ("down alone", "up alone")
    assert worse_and_better(nets, (down, up), label) == ("up alone", "down alone")


@pytest.mark.truth("labels of the judging rows, counted")
def test_accuracies_of_choosing_and_of_judging_rows_are_apart():
    draw = torch.Generator().manual_seed(0)
    views = torch.rand(2, JUDGE + 100, 32, generator=draw).unbind()
    label = torch.zeros(JUDGE + 100, dtype=torch.long)
    label[JUDGE:] = 1
    chosen, judged = joined_at((1,), (views[0], views[1]), label, 0, 60)
    assert chosen["both"] == 1
    assert judged["both"] == 0


@pytest.mark.truth("heads applied by hand to the last states")
def test_three_heads_answer_alone_and_together():
    draw = torch.Generator().manual_seed(0)
    views = torch.rand(2, 5, 32, generator=draw).unbind()
    net = Streams((0, 1, 2), three_heads=True)
    both, one = torch.tensor([[True, True]] * 5), torch.tensor([[True, False]] * 5)
    said, fused = net.answers((views[0], views[1]), both)
    assert torch.equal(net((views[0], views[1]), both), fused)
    alone, _ = net.answers((views[0], views[1]), one)
    assert torch.equal(net((views[0], views[1]), one), alone[0])
    assert not torch.equal(fused, said[0] + said[1])
    other = torch.rand(5, 32, generator=draw)
    assert torch.allclose(net((views[0], other), one), alone[0])
