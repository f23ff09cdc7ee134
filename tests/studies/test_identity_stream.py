"""A null arm of pictures of other canvases, and a leak of them."""

import pytest

from sonde_studies.identity_stream import strangers_ink, trained_on_subjects
from sonde_studies.study import NULL_LEVEL, Outcome
from sonde_studies.worlds.painter import studio
from sonde_studies.worlds.subjects import asked


@pytest.mark.slow
def test_the_picture_of_another_canvas_is_seen():
    found: dict[int, list[float]] = {0: [], 1: []}
    for seed in range(4):
        net = trained_on_subjects(studio(seed, 60), seed, 150, 0.0)
        for late, figures in found.items():
            figures.append(strangers_ink(net, asked(seed, 200), late))
    for late, figures in found.items():
        assert Outcome(tuple(figures), 0.0, NULL_LEVEL).covers == (late == 0), figures
