"""Maps of classes in scenes: areas by hand, and a bar of chance that is not one."""

import pytest
import torch

from sonde.explain import aligned_map
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.aligned_maps import (
    FIT,
    area_on_digits,
    by_lot,
    class_maps,
    coloured_scenes,
    trained_net,
)
from sonde_studies.study import NULL_LEVEL, Outcome


@pytest.mark.truth("pairs of tokens by hand")
def test_the_area_of_a_map_counts_pairs_of_tokens():
    maps = torch.tensor([[[3.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 9.0]]])
    on = torch.tensor([[[True, False], [True, False], [False, False], [False, False]]])
    assert area_on_digits(maps, on) == (1 + 1 + 0.5 + 1) / 4


@pytest.mark.slow
def test_tokens_that_are_not_put_by_lot_are_seen():
    found: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(5):
        x, label = shuffled_digits(seed)
        net = trained_net(x[:FIT], label[:FIT], seed, 200)
        scenes = coloured_scenes(x[FIT:], label[FIT:], seed, 100)
        maps, given = class_maps(net, scenes)
        maps = aligned_map(maps, colours=given["colours"])
        for lots, areas in found.items():
            areas.append(area_on_digits(maps, by_lot(scenes.on, seed) if lots else scenes.on))
    for lots, areas in found.items():
        assert Outcome(tuple(areas), 0.5, NULL_LEVEL).covers == lots, areas
