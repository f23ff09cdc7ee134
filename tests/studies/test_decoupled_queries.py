"""Scenes of things and stuff, and unseen classes that leak, which the null arm sees."""

import pytest

from sonde_studies.decoupled_queries import (
    KNOWN,
    Arm,
    Net,
    Scenes,
    judged,
    learn,
    pretrained_encoder,
)
from sonde_studies.worlds.learning import drawn


def test_stripes_are_those_of_their_class():
    world = Scenes.drawn(3)
    rows = world.fitted(KNOWN)
    assert (world.label["thing"][rows] < 7).all()
    assert (world.label["stuff"][rows] < 6).all()
    assert len(world.codes["stuff"].unique(dim=0)) == 8
    darkest = world.patches.amin(1).reshape(-1, 4, 4)  # where no digit covers the stripes
    upright = world.codes["stuff"][world.label["stuff"], 0] > 0
    across, down = darkest.var(2).mean(1), darkest.var(1).mean(1)
    assert ((across > down) == upright).double().mean() > 0.99


@pytest.mark.slow
def test_classes_that_were_learned_are_seen_by_descriptions_dealt_by_lot():
    above = {"fresh": list[float](), "leaked": list[float]()}
    for seed in range(2):
        world, encoder = Scenes.drawn(seed), pretrained_encoder(seed, 60)
        for name, known in {"fresh": KNOWN, "leaked": {"thing": 10, "stuff": 8}}.items():
            net = drawn(lambda: Net(encoder, Arm(lot=1), seed), seed)  # noqa: B023
            learn(net, world, seed, 150, known)
            above[name].append(judged(net, world)["unseen, above chance"])
    assert sum(above["leaked"]) / 2 > 0.3 > sum(above["fresh"]) / 2 + 0.05
