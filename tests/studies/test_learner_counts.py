"""Sums of learners: divergence, numbers for each row, and requests that need them."""

import pytest
import torch

from sonde.compress import gated_learners
from sonde_studies._learner_counts import (
    always,
    microseconds,
    nats_if_dealt,
    nats_of,
    with_number_for_all,
)
from sonde_studies._table_of_digits import TableNet, digit_table, needs_table, requests_of
from sonde_studies.worlds.learning import drawn


def nets():
    """Return a net, a copy whose module is a sum of learners, and rows."""
    draw = torch.Generator().manual_seed(0)
    digits, label = torch.rand(30, 64, generator=draw), torch.randint(10, (30,), generator=draw)
    x, _ = requests_of(digits, label, digit_table(1), 80, draw)
    net, made = drawn(TableNet, 2).eval(), drawn(TableNet, 2).eval()
    with torch.no_grad():
        net.mlp[2].weight.mul_(40)  # the module of an untrained net hardly matters
        h = net.norm(net.states(x))
        made.mlp = gated_learners(h, net.mlp(h), 4)  # pyright: ignore[reportAttributeAccessIssue]
    return net, made.eval(), x


@pytest.mark.truth("torch's divergence of categories")
def test_the_divergence_of_answers():
    net, made, x = nets()
    with torch.no_grad():
        both = [torch.distributions.Categorical(logits=each(x)) for each in (net, made)]
    wanted = float(torch.distributions.kl_divergence(*both).mean())
    assert nats_of(net, made, x) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.truth("each row alone, with its number for all rows")
def test_numbers_that_are_dealt_are_run():
    net, made, x = nets()
    number = torch.arange(len(x)) % 5
    wanted = torch.zeros(())
    for k in range(5):
        always(made.mlp, k)
        wanted += nats_of(net, made, x[number == k]) * int((number == k).sum()) / len(x)
    assert nats_if_dealt(net, made, x, number) == pytest.approx(float(wanted), rel=1e-4)


def test_two_learners_for_each_row_learn():
    net, made, x = nets()
    same = with_number_for_all(net, made, x, 2, 0, 0)
    start = nats_of(net, same, x)
    assert set(same.mlp.number.tolist()) == {2}  # pyright: ignore
    assert nats_of(net, with_number_for_all(net, made, x, 2, 60, 0), x) < start
    found = microseconds(net.mlp, made.mlp, torch.randn(50, 48), 2)
    assert {*found} == {"module", "gated", "all"}


@pytest.mark.truth("the labels of the drawn digits, found again by their pixels")
def test_requests_are_answered_by_the_digit_or_the_table():
    draw = torch.Generator().manual_seed(3)
    digits, label = torch.rand(20, 64, generator=draw), torch.randint(10, (20,), generator=draw)
    table = digit_table(4)
    x, y = requests_of(digits, label, table, 200, draw)
    assert 60 < int(needs_table(x).sum()) < 140
    for row, answer in zip(x, y, strict=True):
        first, second = (label[(digits == row[a:b]).all(1)].item() for a, b in ((1, 65), (65, 129)))
        wanted = table[first, second] if row[0] == 1 else torch.tensor(first)
        assert int(answer) == int(wanted)
