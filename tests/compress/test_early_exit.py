"""Rows that are sure leave early, and disagree with the model no more than was promised."""

import math

import pytest
import torch
from scipy.stats import binom
from torch import nn

import models
from sonde import Model
from sonde.compress import EarlyExit, exit_threshold
from sonde.compress.early_exit import _pooled
from sonde.core import InputError, SiteError
from sonde.data import open_inputs


@pytest.mark.truth(
    "binomial tails: the first threshold, from the safest, that fails ends the search"
)
def test_the_threshold_is_the_last_that_passes():
    draw = torch.Generator().manual_seed(3)
    sure = torch.rand(400, generator=draw)
    wrong = torch.rand(400, generator=draw) < 0.4 * (1 - sure)
    found = exit_threshold(sure, wrong, 0.2, 0.05)
    assert 0 < found < 0.9
    grid = [t for t in (1 - torch.logspace(-4, 0, 65, dtype=torch.float64)).tolist() if t >= found]
    for threshold in grid:
        n, k = int((sure >= threshold).sum()), int(wrong[sure >= threshold].sum())
        # a share of .2 would give so few wrong ones in one case of twenty at most
        assert n < 50 or binom.cdf(k, n, 0.2) <= 0.05
    assert exit_threshold(sure, wrong, 0.0, 0.05) == math.inf
    assert exit_threshold(sure[:13], wrong[:13] & False, 0.2, 0.05) == math.inf
    assert exit_threshold(sure[:14] * 0 + 1, wrong[:14] & False, 0.2, 0.05) == 0.0


@pytest.mark.truth("two hundred draws from a known law, with the exact risk above each threshold")
def test_fresh_rows_disagree_no_more_than_promised():
    draw = torch.Generator().manual_seed(8)
    misses = exits = 0
    for _ in range(200):
        sure = torch.rand(300, generator=draw)
        wrong = torch.rand(300, generator=draw) < 0.5 * (1 - sure)
        found = exit_threshold(sure, wrong, 0.1, 0.1)
        if found < math.inf:
            exits += 1
            misses += 0.25 * (1 - found) > 0.1  # the mean of .5 (1 - u) above the threshold
    assert exits > 100
    assert misses <= binom.ppf(0.999, 200, 0.1)


def digits(n: int, seed: int):
    """Return images whose class is their brightest quarter; noise makes some hard."""
    draw = torch.Generator().manual_seed(seed)
    x = 0.9 * torch.randn(n, 3, 24, 24, generator=draw)
    label = torch.arange(n) % 4
    for i, k in enumerate(label.tolist()):
        x[i, :, 12 * (k // 2) : 12 * (k // 2) + 12, 12 * (k % 2) : 12 * (k % 2) + 12] += (
            1.5 * torch.rand(1, generator=draw)
        )
    return x, label


@pytest.fixture(scope="module")
def trained():
    net = models.vit()
    net.classifier = nn.Linear(32, 4)
    x, label = digits(512, 1)
    descent = torch.optim.Adam(net.parameters(), 3e-3)
    net.train()
    for step in range(60):
        at = slice(64 * step % 512, 64 * step % 512 + 64)
        loss = nn.functional.cross_entropy(net(x[at]).logits, label[at])
        descent.zero_grad()
        loss.backward()
        descent.step()
    return Model(net.eval())


def test_rows_leave_are_counted_and_agree(trained):
    exits = EarlyExit(0.03, 0.1).fit(
        trained, open_inputs(trained, digits(300, 2)[0]), open_inputs(trained, digits(400, 3)[0])
    )
    assert len(exits.sites) == 2
    assert min(exits.thresholds) < math.inf
    x = digits(256, 4)[0]
    calls: list[int] = []
    block = trained.module.get_submodule(exits.sites[-1])
    handle = block.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    found = exits.answer(trained, x)
    handle.remove()
    with torch.no_grad():
        whole = trained.module(x).logits
    left = found.depth < 2
    assert 0 < int(left.sum()) < 256
    assert calls == [256 - int((found.depth == 0).sum())]
    torch.testing.assert_close(found.logits[~left], whole[~left], rtol=1e-4, atol=1e-5)
    wrong = int((found.logits.argmax(1) != whole.argmax(1))[left].sum())
    assert wrong <= binom.ppf(0.999, int(left.sum()), 0.03)
    alone = [exits.answer(trained, x[i : i + 1]) for i in range(6)]
    assert [int(a.depth) for a in alone] == found.depth[:6].tolist()
    easy = found.depth == 0
    if bool(easy.any()):
        one = exits.answer(trained, x[easy][:3])
        torch.testing.assert_close(one.logits, found.logits[easy][:3], rtol=1e-4, atol=1e-5)


@pytest.mark.truth("a loop over the real tokens of each row")
def test_one_vector_of_the_real_tokens_of_a_row():
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]).bool()
    real = [row[keep] for row, keep in zip(x, mask, strict=True)]
    for pool, of in {
        "mean": lambda r: r.mean(0),
        "last": lambda r: r[-1],
        "first": lambda r: r[0],
    }.items():
        torch.testing.assert_close(_pooled(x, mask, pool), torch.stack([of(r) for r in real]))
        torch.testing.assert_close(_pooled(x, None, pool), torch.stack([of(r) for r in x]))
    torch.testing.assert_close(_pooled(x.unsqueeze(3), None, "mean"), x.mean(2))


def test_no_tolerance_never_exits_and_convolutions_are_named(trained):
    train, held = (open_inputs(trained, digits(60, s)[0]) for s in (5, 6))
    never = EarlyExit(0.0).fit(trained, train, held)
    assert set(never.thresholds) == {math.inf}
    x = digits(8, 7)[0]
    with torch.no_grad():
        assert torch.equal(never.answer(trained, x).logits, trained.module(x).logits)
    net = Model(models.cnn(3, 4))
    images = digits(90, 9)[0]
    exits = EarlyExit(0.5, 0.4, sites=("act1",)).fit(
        net, open_inputs(net, images[:40]), open_inputs(net, images[40:])
    )
    assert exits.weights[0].shape == (8, 4)
    assert exits.answer(net, images).logits.shape == (90, 4)


def test_inputs_in_both_parts_and_unknown_sites_are_refused(trained):
    data = open_inputs(trained, digits(20, 5)[0])
    with pytest.raises(InputError, match="got inputs that occur in both"):
        EarlyExit().fit(trained, data, data)
    with pytest.raises(SiteError, match="'nowhere'"):
        EarlyExit(sites=("nowhere",)).fit(trained, data, open_inputs(trained, digits(20, 6)[0]))
