"""Questions whether a goal is one arrow ahead, read back from their tokens."""

import pytest
import torch

from sonde.layers import LatentLoop
from sonde_studies._frontiers import (
    ARROWS,
    CELL,
    CELLS,
    GOALS,
    MARK,
    best_with_one,
    decoder,
    frontiers,
)
from sonde_studies.latent_belief import _word_as_long
from sonde_studies.worlds.learning import drawn


@pytest.mark.truth("arrows that are followed by hand")
def test_cells_ahead_and_goals_are_those_of_the_tokens():
    ids, cells, goal = frontiers(3)
    n = CELLS * ARROWS
    for row, ahead, found in zip(ids[:20].tolist(), cells.tolist(), goal.tolist(), strict=False):
        arrows = [divmod(token, CELLS) for token in row[:n]]
        assert len(set(arrows)) == n
        marks = dict(divmod(token - MARK, 2) for token in row[n:-1])
        assert sorted(marks) == list(range(CELLS))
        asked = row[-1] - CELL
        assert sorted(ahead) == sorted(b for a, b in arrows if a == asked)
        assert asked not in ahead
        assert found == [bool(marks[b]) for b in ahead]
        assert sum(marks.values()) == GOALS
    assert float(goal.any(1).double().mean()) == pytest.approx(0.4 / 3 + 0.7 * 2 / 3, abs=0.01)


@pytest.mark.truth("closed form over the mark of the asked cell: .8 and .7 of answers")
def test_what_one_cell_allows():
    """With one goal among five others .2 + .8 (3/4), with two .4 + .6 (1/2)."""
    ids, _, goal = frontiers(4)
    best = best_with_one(ids, goal).double()
    assert float(best.mean()) == pytest.approx(0.8 / 3 + 0.7 * 2 / 3, abs=0.005)
    for mark in (0, 1):
        own = (ids[:, -1 - CELLS : -1].gather(1, ids[:, -1:] - CELL)[:, 0] - MARK) % 2 == mark
        assert float(best[own].mean()) == pytest.approx(0.8 if mark else 0.7, abs=0.01)


def test_the_word_in_the_place_of_the_mix_is_as_long_and_says_only_the_word():
    ids, _, _ = frontiers(5)
    net = drawn(lambda: LatentLoop(decoder(), 1, mix="gate", feedback="expected_embedding"), 5)
    given: list[torch.Tensor] = []
    table, mix = net.model.get_input_embeddings(), net.latents(ids[:3])[:, 0]
    net.model.transformer.register_forward_pre_hook(
        lambda _, args, kw: given.append(kw["inputs_embeds"]), with_kwargs=True
    )
    words = _word_as_long(net, ids[:3], None, None)[0]
    last, word = given[-1][:, -1], table(words)[:, 0]
    torch.testing.assert_close(last.norm(dim=1), mix.norm(dim=1))
    torch.testing.assert_close(torch.cosine_similarity(last, word), torch.ones(3))
