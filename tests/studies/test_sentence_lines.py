"""Texts with strange endings, the heads that read them, and a planted leak."""

import numpy as np
import pytest

from sonde import InputError
from sonde_studies.parts.heads import LinesHead
from sonde_studies.sentence_lines import (
    ARMS,
    WIDTH,
    Endings,
    by_lot,
    embedded,
    minilm,
    pages_in_sentences,
    told,
)
from sonde_studies.study import NULL_LEVEL, Outcome


def test_half_of_the_texts_end_strangely_and_whole_texts_are_their_sentences():
    world = Endings.drawn(0, True)
    assert world.x.shape == (120, 4 * WIDTH)
    assert world.strange.sum() == 60
    assert world.strange[: world.n_fit].sum() == 30
    page = next(page for page in pages_in_sentences() if len(page) > 5)
    one, two = embedded([page[0], page[1]], True)
    assert np.abs(one - two).max() > 0


def test_nets_have_about_as_many_parameters():
    x, label = np.zeros((6, 4 * WIDTH)), np.arange(6) % 2
    sizes = {}
    for arm, (head, columns) in ARMS.items():
        if head is not None:
            fresh = LinesHead(head.widths, head.dim, head.apart, steps=1)
            sizes[arm] = fresh.fit(x[:, columns], label).size
    assert max(sizes.values()) < 1.05 * min(sizes.values())


def _planted(strange_from):
    """Return random texts with a planted mark of the ending in some columns."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((160, 4 * WIDTH))
    strange = np.arange(160) % 2 > 0
    x[:, strange_from : strange_from + 30] += 1.5 * strange[:, None]
    return Endings(x, strange, 100)


@pytest.mark.slow
def test_a_planted_ending_is_told_by_the_arms_that_read_it():
    world = _planted(0)
    assert told(world, *ARMS["own layers"], 0) > 0.85
    assert told(world, *ARMS["joined"], 0) > 0.85
    assert told(world, *ARMS["whole text"], 0) < 0.75
    assert told(_planted(3 * WIDTH), *ARMS["whole text"], 0) > 0.85


@pytest.mark.slow
def test_texts_that_were_learned_are_seen_by_endings_by_lot():
    worlds = [Endings.drawn(seed, True) for seed in range(5)]
    for leaks in (False, True):
        found = [by_lot(world, seed, leaks) for seed, world in enumerate(worlds)]
        assert Outcome(tuple(found), 0.0, NULL_LEVEL).covers != leaks


def test_an_encoder_that_was_not_fetched_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    minilm.cache_clear()
    with pytest.raises(InputError, match=r"MiniLM, a pretrained encoder.*Run `make field`"):
        minilm()
