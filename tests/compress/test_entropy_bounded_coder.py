"""Messages of bounded entropy, against all partitions."""

import numpy as np
import pytest
import torch

from sonde.compress import EntropyBoundedCoder
from sonde.core import InputError


def entropy(p):
    p = np.asarray(p, float).ravel()
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def leaked(p, rate):
    """The most that the best partition tells with one symbol apart at times, on a grid."""
    fits = [one for one in labels(len(p)) if entropy(np.bincount(one, p)) <= rate + 1e-12]
    cells = np.array(max(fits, key=lambda one: entropy(np.bincount(one, p))))
    told = [entropy(np.bincount(cells, p))]
    for i in range(len(p)):
        for share in np.linspace(0, 1, 400):
            sent = np.append(np.bincount(cells, p), share * p[i])
            sent[cells[i]] -= share * p[i]
            if entropy(sent) <= rate:
                told.append(entropy(sent) - p[i] * entropy([share, 1 - share]))
    return max(told)


def labels(n, used=0):
    """Every labelling of n symbols, each partition once."""
    if n == 0:
        yield []
        return
    for first in range(used + 1):
        for rest in labels(n - 1, max(used, first + 1)):
            yield [first, *rest]


def best(p, rate):
    found = (entropy(np.bincount(one, p)) for one in labels(len(p)))
    return max(h for h in found if h <= rate + 1e-12)


def checked(p, rate):
    code = EntropyBoundedCoder(rate).code(p)
    joint = (np.asarray(p) / np.sum(p))[:, None] * code.channel.numpy()
    np.testing.assert_allclose(code.channel.sum(1), 1.0)
    assert code.entropy == pytest.approx(entropy(joint.sum(0)))
    told = entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint)
    assert code.information == pytest.approx(told, abs=1e-9)
    assert code.information <= code.entropy + 1e-9
    assert code.entropy <= rate + 1e-9
    return code


@pytest.mark.essential
@pytest.mark.truth("all partitions of seven symbols, and each symbol apart at times")
def test_no_partition_tells_more():
    draw = np.random.default_rng(0)
    for n in (2, 3, 5, 7):
        for share in (0.0, 0.35, 0.8, 1.2):
            p = draw.dirichlet(np.ones(n))
            rate = share * entropy(p)
            code = checked(p, rate)
            assert code.information >= best(p, rate) - 1e-9
            assert code.information >= leaked(p, rate) - 1e-9
            if share >= 1:
                assert code.channel.shape == (n, n)
                assert code.information == pytest.approx(entropy(p))
            elif share > 0:
                assert code.information > best(p, rate) + 1e-6  # the rest is used by chance
                assert code.entropy == pytest.approx(rate, abs=1e-6)


@pytest.mark.essential
@pytest.mark.truth("the rate, which nothing exceeds, and all partitions of nine symbols")
def test_larger_alphabets_come_close_to_the_rate():
    draw = np.random.default_rng(1)
    gaps = [best(p, 1.1) - checked(p, 1.1).information for p in draw.dirichlet(np.ones(9), 3)]
    assert max(gaps) < 0.02
    for n in (24, 120):
        p = draw.dirichlet(np.ones(n))
        assert 2.0 - checked(p, 2.0).information < 0.01


@pytest.mark.truth("merges by hand, the two least likely cells first")
@pytest.mark.parametrize(
    ("rate", "masses"), [(1.3, [0.4, 0.3, 0.2, 0.1]), (1.2, [0.4, 0.3, 0.3]), (0.7, [0.6, 0.4])]
)
def test_greedy_merging(rate, masses):
    p = [0.1, 0.4, 0.2, 0.3]
    code = EntropyBoundedCoder(rate, rule="greedy").code(p)
    sent = (torch.tensor(p).double()[:, None] * code.channel).sum(0)
    assert sorted(sent.tolist(), reverse=True) == pytest.approx(masses)
    assert code.information == pytest.approx(entropy(masses)) == pytest.approx(code.entropy)
    assert EntropyBoundedCoder(rate).code(p).information >= code.information - 1e-9


def test_messages_are_drawn_as_the_channel_says():
    code = EntropyBoundedCoder(0.8).code([5, 3, 1, 1])
    symbols = torch.arange(4).repeat(5_000)
    sent = code.send(symbols, seed=1)
    for s in range(4):
        found = torch.bincount(sent[symbols == s], minlength=code.channel.shape[1]) / 5_000
        torch.testing.assert_close(found.double(), code.channel[s], rtol=0, atol=0.03)
    assert code.send(symbols, seed=1).equal(sent)


def test_what_is_no_distribution_is_refused():
    with pytest.raises(InputError, match="rate of at least 0, got -1"):
        EntropyBoundedCoder(-1)
    with pytest.raises(InputError, match=r"probabilities or counts, got shape \(2,\)"):
        EntropyBoundedCoder(1).code([0.5, -0.1])
