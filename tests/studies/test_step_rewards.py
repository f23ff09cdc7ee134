"""A word in place of a latent step, and the rewards that teach it."""

import pytest
import torch

from sonde.layers import LatentLoop
from sonde_studies._frontiers import CELL, NO, decoder, frontiers
from sonde_studies._step_rewards import learn_by_reward, looped, word_alone
from sonde_studies.worlds.learning import drawn


def loop(**given):
    return drawn(lambda: LatentLoop(decoder(), 1, feedback="expected_embedding", **given), 7)


@pytest.mark.truth("the model on each question with its word written behind it")
@torch.no_grad()
def test_a_word_alone_is_written_behind_the_question():
    ids, net = frontiers(6)[0][:5], loop(mix="gate")
    words, told, logits = word_alone(net, ids, None, torch.Generator().manual_seed(1))
    for row, word, chance, found in zip(ids, words, told, logits, strict=True):
        first = net.model(row[None]).logits[0, -1] / net.temperature
        torch.testing.assert_close(chance[0], (first - first.logsumexp(0))[word[0]])
        written = torch.cat([row, word])[None]
        torch.testing.assert_close(found, net.model(written).logits[0, -1])


@torch.no_grad()
def test_a_mean_of_embeddings_has_no_words():
    ids, net = frontiers(6)[0][:5], loop(mix="replace")
    words, told, logits = looped(net, ids)
    assert words.shape == told.shape == (5, 0)
    torch.testing.assert_close(logits, net(ids))


@pytest.mark.slow
def test_rewards_teach_an_answer():
    """A loop rewarded for right cells names three of four; one rewarded by lot names fewer."""
    ids, wanted = frontiers(8)[0][:4], CELL + torch.arange(4)
    right = {}
    for earned in (True, False):
        net = loop(mix="gate")
        learn_by_reward(net, lambda *x: _few(looped(*x)), ids, wanted - CELL,
                        updates=80, seed=9, earned=earned, questions=4)  # fmt: skip
        with torch.no_grad():
            right[earned] = float((_few(looped(net, ids))[2].argmax(1) == wanted - CELL).sum())
    assert right[True] >= 3 > right[False]


def _few(rolled):
    words, told, logits = rolled
    return words, told, logits[:, CELL:NO]
