"""A cascade of two models, row by row."""

import numpy as np
import pytest

from sonde.metrics import Cascade


def drawn(n=37):
    draw = np.random.default_rng(3)
    return draw.random(n) < 0.5, draw.random(n) < 0.8, draw.random(n)


@pytest.mark.truth("rows passed on one by one")
def test_accuracy_and_gain_are_those_of_rows_passed_on_one_by_one():
    weak, strong, doubt = drawn()
    cascade, n = Cascade(weak, strong, doubt), len(weak)

    def by_hand(rank, k):
        passed = sorted(range(n), key=lambda i: -rank[i])[:k]
        return np.mean([strong[i] if i in passed else weak[i] for i in range(n)])

    shares = [0.0, 0.3, 0.8, 1.0]
    for share, got in zip(shares, cascade.accuracy(shares), strict=True):
        assert got == pytest.approx(by_hand(doubt, round(share * n)))
    worth = strong * 1.0 - weak
    line = np.linspace(0, 1, 5)
    random = [(1 - s) * weak.mean() + s * strong.mean() for s in line]
    own, best = ([by_hand(r, round(s * n)) for s in line] for r in (doubt, worth))
    assert cascade.gain(5) == pytest.approx(np.subtract(own, random).sum()
                                            / np.subtract(best, random).sum())  # fmt: skip


@pytest.mark.truth("every threshold tried")
@pytest.mark.parametrize("keep", [0.7, 0.95, 1.0])
def test_the_threshold_is_the_highest_that_keeps_enough(keep):
    weak, strong, doubt = drawn()
    found = Cascade(weak, strong, doubt).threshold(keep)

    def kept(bar):
        return np.where(doubt >= bar, strong, weak).sum() >= keep * strong.sum()

    assert kept(found)
    assert not any(kept(bar) for bar in doubt if bar > found)


@pytest.mark.truth("the law of the draws: rows of a known accuracy")
def test_the_accuracy_is_kept_on_new_rows_as_often_as_promised():
    def world(draw, n):
        doubt = draw.random(n)
        return draw.random(n) < 1 - 0.8 * doubt**2, draw.random(n) < 0.95, doubt

    held, sent = [], []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        bar = Cascade(*world(draw, 900)).threshold(0.95, 0.95)
        new = Cascade(*world(draw, 20_000))
        held.append(new.kept(bar)[0] >= 0.95)
        sent.append(new.at(bar)[0])
    assert np.mean(held) >= 0.95
    assert np.mean(sent) < 0.8
