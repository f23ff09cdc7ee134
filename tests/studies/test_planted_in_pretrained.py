"""Faults that are planted in studies of a pretrained model, and the null arms that see them.

The tests run the studies' own code on the shipped model of bytes.
"""

from random import Random

import pytest
import torch

from sonde.compress import StreamingCache
from sonde_studies._cached import PROMPT, SmallerCaches
from sonde_studies._help_pages import language_model
from sonde_studies.cached_pretrained import page_tokens
from sonde_studies.clue_pretrained import DrawnAnswers, by_lot
from sonde_studies.sinks_pretrained import WINDOW, ChosenTokens
from sonde_studies.study import NULL_LEVEL, Outcome


def _seen(values, expected=0.0):
    """Whether a null arm of these figures is not as expected."""
    return not Outcome(tuple(values), expected, NULL_LEVEL).covers


@pytest.mark.slow
def test_a_cache_that_keeps_more_tokens_is_seen_by_random_tokens():
    model = language_model("smollm2", tiny=True)
    gains = {WINDOW: list[float](), PROMPT: list[float]()}
    for seed in range(12):
        caches = SmallerCaches(page_tokens(model, seed, 4), model)
        others = tuple(Random(seed).sample(range(8, PROMPT - WINDOW), 4))
        plain = caches.cost(StreamingCache(WINDOW, 0))[0]
        for budget, found in gains.items():
            found.append(plain - caches.cost(ChosenTokens(budget, others))[0])
    assert not _seen(gains[WINDOW])
    assert _seen(gains[PROMPT])


@pytest.mark.slow
def test_countries_that_judge_and_were_fitted_are_seen_by_labels_by_lot():
    """States are a country's own, with a little noise."""
    draw, names = torch.Generator().manual_seed(0), [str(i) for i in range(24)]
    for leaks in (False, True):
        areas: list[float] = []
        for seed in range(10):
            own = torch.randn(24, 4, generator=draw)
            fit, fresh = torch.arange(12).repeat(5), torch.arange(12).repeat(5) + 12 * (not leaks)
            halves = (
                DrawnAnswers(
                    {"block 0": own[part] + 0.1 * torch.randn(60, 4, generator=draw)},
                    torch.zeros(60), torch.zeros(60), [names[i] for i in part.tolist()],
                )
                for part in (fit, fresh)
            )  # fmt: skip
            areas.append(by_lot(*halves, Random(seed), 4))
        assert _seen(areas, 0.5) == leaks
