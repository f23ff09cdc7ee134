"""Planted posts, and nets over several sources."""

import pytest
import torch

from sonde_studies._cell_ensembles import Cells, cells_right, entropies, readings
from sonde_studies._posts import PAIR, PostNet, dealt, posts, told
from sonde_studies.fused_sources import by_lot
from sonde_studies.study import NULL_LEVEL, Outcome


def _with(words, pair):
    return ((words[:, :-1] == pair[0]) & (words[:, 1:] == pair[1])).any(1)


def test_half_of_the_posts_are_false_and_signs_are_in_false_ones():
    some = posts(3)
    false = some.false == 1
    assert abs(int(false.sum()) - len(false) / 2) <= 0.5
    turned, plain = _with(some.words, PAIR[::-1]), _with(some.words, PAIR)
    assert torch.equal(turned, ~plain)
    assert not (turned & ~false).any()
    assert 0.5 < float(turned[false].float().mean()) < 0.7
    lengths, cries = some.of_text.T
    assert float(lengths[false].mean()) < float(lengths[~false].mean())
    assert float(cries[false].mean()) > float(cries[~false].mean())
    again = dealt(some, 0)
    assert torch.equal(again.words, some.words)
    assert float((again.false == some.false).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_a_net_of_known_states_answers_as_the_net_of_posts():
    some, net = posts(0)[:9], PostNet("text picture numbers", 5, 4).eval()
    torch.testing.assert_close(net(some), net.of_states(net.states(some), some))
    assert sum(w for w in net.fusion.widths) == 2 * 5 + 2 * 2
    assert not PostNet("text", 5, 4).states(some).keys() - {"text"}


@pytest.mark.truth("entropies of lines and columns by loops")
def test_readings_and_entropies():
    x = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    lines, columns, squares = readings(x)
    assert torch.equal(lines[1, 2], x[1, 16:24])
    assert torch.equal(columns[1, 2], x[1, 2::8])
    assert squares[1, 5].tolist() == [float(x[1, i]) for i in (18, 19, 26, 27)]
    for i in range(8):
        for at, rows in ((i, lines), (8 + i, columns)):
            share = (rows[2, i] + 1e-6) / (rows[2, i] + 1e-6).sum()
            wanted = -sum(float(p * p.log()) for p in share) - 1.3
            assert float(entropies(x)[2, at]) == pytest.approx(wanted, abs=1e-5)


def test_frozen_cells_are_those_that_were_trained_apart():
    draw = torch.Generator().manual_seed(0)
    x, label = torch.rand(40, 64, generator=draw), torch.randint(10, (40,), generator=draw)
    how = {"width": 3, "dim": 4, "epochs": 1}
    for one in ("shared", "apart", "frozen"):
        assert 0 <= cells_right((x, label), (x, label), 0, how=one, **how) <= 1
    net = Cells((0, 2), 3, 4, numbers=True)
    assert net.fusion.widths == (3, 3, 16)
    assert net.loss(x, label, net.states(x), 1.0) > net.loss(x, label, net.states(x), 0.0)


@pytest.mark.slow
def test_posts_that_were_learned_are_seen_by_truth_by_lot():
    for leaks in (False, True):
        found = [by_lot(posts(s), 200, s, 150, 0 if leaks else 600) - 0.5 for s in range(5)]
        seen = not Outcome(tuple(found), 0.0, NULL_LEVEL).covers
        assert seen == leaks, found


def test_a_net_learns_planted_posts():
    some = posts(1)
    assert told(some[:300], some[300:], "text numbers", 0, 120, 8, 8) > 0.55
