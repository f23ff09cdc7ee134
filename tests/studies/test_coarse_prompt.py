"""Dressed digits, and what a painter of them is told."""

import pytest
import torch

from sonde_studies.coarse_prompt import (
    ARMS,
    FIT,
    PEOPLE,
    Wardrobe,
    error,
    learned_painter,
    painter,
    pretrained,
    shirt_told,
)
from sonde_studies.study import NULL_LEVEL, Outcome


@pytest.mark.truth("pixels of a person by hand")
def test_a_person_is_painted_in_shirt_trousers_and_ground():
    world = Wardrobe.drawn(0)
    person = int((world.pattern == 1).nonzero()[0])
    (picture,) = world.painted(torch.tensor([person]), torch.tensor([7]))
    shirt, trousers, ground = world.colour[person]
    for line, cloth in ((2, shirt), (3, 0.4 * shirt), (6, trousers)):
        for column in range(8):
            ink = world.shape[7, line, column]
            wanted = ink * cloth + (1 - ink) * ground
            torch.testing.assert_close(picture[:, line, column], wanted)


def test_people_and_shapes_that_judge_are_not_trained_on():
    world = Wardrobe.drawn(1)
    known, others = world.pairs(True, 0), world.pairs(False, 0)
    assert int(known.person.max()) < PEOPLE <= int(others.person.min())
    for fit, judge in ((known.source, others.source), (known.target, others.target)):
        assert int(fit.max()) < FIT <= int(judge.min())


def test_painters_have_about_as_many_parameters():
    sizes = [sum(p.numel() for p in painter(arm, 0).parameters()) for arm in ARMS]
    assert max(sizes) < 1.02 * min(sizes)


@pytest.mark.slow
def test_a_source_that_is_no_stranger_is_seen_by_the_shirt_of_strangers():
    found = {0: list[float](), 1: list[float]()}
    for seed in range(4):
        world = Wardrobe.drawn(seed)
        encoder = pretrained(world, 150, seed)
        net, rows = learned_painter("biases", world, encoder, 150, seed), world.pairs(False, seed)
        assert error(net, encoder, world, rows) < 0.05
        for shift, told in found.items():
            told.append(shirt_told(net, encoder, world, rows, shift))
    for shift, told in found.items():
        assert Outcome(tuple(told), 0.0, NULL_LEVEL).covers == (shift == 1)
