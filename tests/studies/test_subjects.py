"""Subjects on other grounds, and what is read of images that should show them."""

import pytest
import torch

from sonde_studies.worlds.learning import drawn
from sonde_studies.worlds.painter import BLOCKS, GROUND, colours_of, studio
from sonde_studies.worlds.subjects import (
    FIRST,
    LAST,
    LEVELS,
    SubjectEncoder,
    asked,
    injected,
    kept,
    subject_encoder,
)

N = 60


@pytest.mark.truth("mixtures of two grounds that were painted")
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_ground_that_is_carried_over_is_read_back(share):
    at, of = studio(0, 0), asked(0, N)
    ink = of.seen.ink[:, :, None, None] * of.amount[:, None]
    ground = share * of.seen.ground + (1 - share) * of.wanted.ground
    found = kept(at, ink + GROUND * (1 - of.amount[:, None]) * ground[:, :, None, None], of)
    assert found["carried"] == pytest.approx(share, abs=1e-3)
    assert found["subject"] == pytest.approx(1.0, abs=0.05)
    assert (found["ground"] > 0.99) == (share == 0.0)


def test_another_ink_is_not_the_subject():
    at, of = studio(0, 0), asked(0, N)
    ink = of.seen.ink.roll(1, 0)[:, :, None, None] * of.amount[:, None]
    ground = GROUND * (1 - of.amount[:, None]) * of.wanted.ground[:, :, None, None]
    assert kept(at, ink + ground, of)["subject"] < 0.5


def test_what_is_asked_is_the_subject_on_the_ground_of_the_words():
    of = asked(3, N)
    draw = torch.Generator()
    assert torch.equal(of.wanted.ground, colours_of(of.words[:, 2], draw))
    assert torch.equal(of.seen.ground, colours_of(of.named[:, 2], draw))
    assert torch.equal(of.seen.ink, colours_of(of.named[:, 1], draw))
    assert torch.equal(of.wanted.ink, of.seen.ink)
    assert bool((of.words[:, 1] == -1).all())
    drawn = of.amount > 0.99
    near = of.wanted.picture.movedim(1, 3)[drawn] - of.seen.picture.movedim(1, 3)[drawn]
    assert float(near.abs().max()) < 0.01


@pytest.mark.truth("the painter run block by block, with the states added by hand")
@torch.no_grad()
def test_states_are_added_after_their_blocks():
    at, of = studio(0, 0), asked(0, 5)
    torch.manual_seed(0)
    net = SubjectEncoder()
    states = net(of.seen.picture)
    sources = net.sources(states)
    said = torch.stack([w(i + 1) for w, i in zip(at.painter.words, of.words.T, strict=True)], 1)
    x = at.painter.places.expand(5, -1, -1)
    for i in range(BLOCKS):
        x = at.painter.blocks[i](x, said, None)
        x = x + sources[FIRST] if i == 0 else x
    x = x + sources[LAST]
    wanted = at.painter.last(x).transpose(1, 2).unflatten(2, (10, 10))
    torch.testing.assert_close(injected(at, of.words, sources), wanted)
    assert LEVELS["both levels"] == LEVELS["global"] + LEVELS["local"]
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    moved = (net.sources(states, mask)[FIRST] - sources[FIRST]).abs().amax((1, 2)) > 0
    assert torch.equal(moved, mask.bool())


def test_training_leaves_the_generator_alone():
    at = studio(0, 0)
    before = [p.clone() for p in at.painter.parameters()]
    nets = [subject_encoder(at, 0, 2, ground_states=on, separates=on) for on in (False, True)]
    assert all(map(torch.equal, at.painter.parameters(), before))
    start = drawn(SubjectEncoder, 0).into[2].weight  # of the ground's states
    assert torch.equal(nets[0].into[2].weight, start)
    assert not torch.equal(nets[1].into[2].weight, start)


@torch.no_grad()
def test_an_encoder_of_places_alone_brings_no_global_states():
    at, of = studio(0, 0), asked(0, 5)
    with torch.enable_grad():
        net = subject_encoder(at, 0, 2, whole=False)
    start = drawn(SubjectEncoder, 0)
    trained = dict(net.named_parameters())
    moved = {k for k, p in start.named_parameters() if not torch.equal(p, trained[k])}
    heads = [{f"{part}.{i}.{kind}" for part in ("heads", "into") for kind in ("weight", "bias")}
             for i in range(3)]  # fmt: skip
    assert not moved & heads[0]
    assert heads[1] | heads[2] <= moved
    sources = net.sources(net(of.seen.picture))
    assert not sources[FIRST].any()
    local = injected(at, of.words, sources, LEVELS["local"])
    torch.testing.assert_close(injected(at, of.words, sources), local)
