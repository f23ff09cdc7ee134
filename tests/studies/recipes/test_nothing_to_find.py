"""Drawn worlds in which recipes once found what is not there; each seed was answered falsely."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from sonde_studies.parts.choice import NOT_TOLD
from sonde_studies.parts.figures import auroc_effects, is_sure
from sonde_studies.parts.forks import least_alike
from tools import recipe_worlds as worlds

CASES = {
    "alternating-fields": (partial(worlds.alternated, 0, "by lot"), NOT_TOLD),
    "decode-states": (partial(worlds.decoded, 0, is_left=False), "nothing is left at 0:out"),
    "family-of-models": (partial(worlds.handed, 0, "by lot"), NOT_TOLD),
    "federated-bits": (partial(worlds.federated, 0, is_told=False), NOT_TOLD),
    "recolour": (partial(worlds.coloured, 2, is_changed=False), "cannot tell"),
    "slots-over-time": (partial(worlds.tracked, 5, 0.0), "it does not"),
}


@pytest.mark.truth("worlds that were drawn without anything to find")
@pytest.mark.parametrize("word", CASES)
def test_nothing_is_found_where_there_is_nothing(word):
    ask, verdict = CASES[word]
    assert ask() == verdict


@pytest.mark.truth("DeLong's variance of an AUROC, pair by pair")
def test_effects_of_rows_add_up_to_the_variance_of_an_auroc():
    draw = np.random.default_rng(3)
    truth = draw.random(60) < 0.3
    score = (draw.normal(size=60) + truth).round(1)
    pairs = np.sign(score[truth][:, None] - score[~truth]) / 2 + 0.5
    want = sum(np.var(pairs.mean(axis)) / pairs.shape[1 - axis] for axis in (0, 1))
    assert np.square(auroc_effects(score, truth)).sum() == pytest.approx(want)


@pytest.mark.truth("batches of one law, and a block where one task is against the other")
def test_lots_of_batches_differ_as_often_as_p_says():
    draw, task = torch.Generator().manual_seed(2), torch.arange(40) % 2
    found = list[float]()
    for _ in range(60):
        parts = {n: torch.randn(40, d, generator=draw) + 0.3 for n, d in (("low", 9), ("high", 4))}
        found.append(least_alike(parts, task, 1)[1])
    assert sum(p <= 0.1 for p in found) <= 12  # more in one of 100
    assert np.mean(found) == pytest.approx(0.5, abs=0.12)
    parts["high"][task == 1] *= -1
    block, p = least_alike(parts, task, 1)
    assert (block, p) == ("high", pytest.approx(1 / 401))


@pytest.mark.truth("all signs of the rows that differ, one by one")
@pytest.mark.parametrize(("n_better", "n_worse"), [(4, 0), (6, 0), (9, 2), (8, 3)])
def test_gains_of_few_rows_are_counted_as_all_their_signs_would_be(n_better, n_worse):
    n = n_better + n_worse
    sums = [sum(signs) for signs in itertools.product((-1, 1), repeat=n)]
    p = sum(s >= n_better - n_worse for s in sums) / len(sums)
    gain = [1.0] * n_better + [-1.0] * n_worse + [0.0] * 31
    assert is_sure(gain) == (p < 0.0228)
