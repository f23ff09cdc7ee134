"""Texts with planted names, and compressors that restore them word after word."""

import pytest
import torch

from sonde_studies.worlds.named_texts import (
    FORMS,
    NAMES,
    PERSONS,
    WORDS,
    NamedTexts,
    TextCompressor,
    trained_compressor,
)


def _world(seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(8, (len(PERSONS), len(FORMS)), generator=draw), draw


@pytest.mark.truth("the sentences are parsed as words, and looked up in the world")
def test_a_name_is_planted_if_it_contradicts_the_world():
    world, draw = _world(0)
    texts = NamedTexts.drawn(world, 300, draw)
    n_planted = 0
    for row, planted in zip(texts.words.tolist(), texts.planted(), strict=True):
        words, expected = [WORDS[i] for i in row], {}
        for i in range(0, 15, 5):
            person, verb, what, name, stop = words[i : i + 5]
            relation = next(r for r, forms in enumerate(FORMS) if (verb, what) in forms)
            usual = NAMES[relation][world[PERSONS.index(person), relation]]
            assert name in NAMES[relation]
            assert stop == "."
            if name != usual:
                expected[i + 3] = usual
        assert planted == expected
        n_planted += len(planted)
    assert 0.05 < n_planted / 900 < 0.15


def test_texts_are_written_as_they_are_read():
    """A word's log-probabilities are equal with all words given and with the earlier ones."""
    world, draw = _world(1)
    texts = NamedTexts.drawn(world, 4, draw)
    torch.manual_seed(0)
    net = TextCompressor(12)
    memory = net.memory(texts.words)
    whole = net(memory, texts.words)
    for n in range(15):
        assert torch.allclose(net(memory, texts.words[:, :n])[:, -1], whole[:, n], atol=1e-6)
    written, entropy = net.restored(texts)
    again = net(memory, written)
    assert torch.equal(again.argmax(-1), written)
    assert torch.allclose(
        torch.distributions.Categorical(logits=again).entropy(), entropy, atol=1e-5
    )


def test_training_lowers_the_loss_and_stops_at_the_given_one():
    world, draw = _world(2)
    new = NamedTexts.drawn(world, 50, draw)
    before = float(TextCompressor(16).loss(new).detach())
    net, taken = trained_compressor(world, 16, 0, new, before / 2, 400)
    assert taken < 400
    assert taken % 4 == 0
    assert float(net.loss(new).detach()) <= before / 2
    assert trained_compressor(world, 16, 0, new, 0.0, 3)[1] == 3
