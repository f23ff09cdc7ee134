"""Encoders of subjects, what adapters read of them, and a leak of another canvas."""

import pytest
import torch

from sonde_studies._subject_codes import (
    TOKENS,
    Adapted,
    adapter,
    encoder,
    patches,
    strangers_ink,
    twins,
)
from sonde_studies.study import NULL_LEVEL, Outcome
from sonde_studies.worlds.learning import digit_images
from sonde_studies.worlds.painter import DIM, studio
from sonde_studies.worlds.subjects import asked


@pytest.mark.truth("pixels that are all ink, and all ground")
def test_twins_share_the_ink_and_not_the_ground():
    images, digit = (x[:40] for x in digit_images(0))
    one, two = twins(images, digit, torch.Generator().manual_seed(0))
    whole = (images / images.amax((1, 2, 3), keepdim=True)) == 1
    ink = torch.nn.functional.pad(whole.expand(-1, 3, -1, -1), [1] * 4)
    torch.testing.assert_close(one[ink], two[ink])
    corner = (one[:, :, 0, 0] - two[:, :, 0, 0]).abs().amax(1)
    assert float((corner > 0.01).float().mean()) > 0.9


def test_patches_are_the_squares_of_a_picture():
    picture = torch.randn(2, 3, 10, 10)
    cut = patches(picture)
    assert cut.shape == (2, TOKENS, 12)
    assert torch.equal(cut[1, 6], picture[1, :, 2:4, 2:4].flatten())


def test_training_an_adapter_leaves_generator_and_encoder_alone():
    at, net = studio(0, 0), encoder(0, "recognise", 2)
    before = [p.clone() for p in (*at.painter.parameters(), *net.parameters())]
    trained = adapter(at, 0, [net], 2, shuffled=0.5)
    assert all(map(torch.equal, (*at.painter.parameters(), *net.parameters()), before))
    start = Adapted(at, [net], 0)
    moved = {k for k, p in start.named_parameters() if not torch.equal(p, _at(trained, k))}
    parts = {"joins", "into"}
    assert {k.split(".")[0] for k in moved} == {*parts, "painter"}
    assert trained.tokens(asked(0, 5).seen.picture).shape == (5, TOKENS, DIM)


def _at(net, name):
    return dict(net.named_parameters())[name]


@pytest.mark.slow
def test_the_picture_of_another_canvas_is_seen():
    found: dict[int, list[float]] = {0: [], 1: []}
    for seed in range(5):
        net = adapter(studio(seed, 60), seed, [encoder(seed, "recognise", 60)], 100)
        for late, figures in found.items():
            figures.append(strangers_ink(net, asked(seed, 500), late))
    for late, figures in found.items():
        assert Outcome(tuple(figures), 0.0, NULL_LEVEL).covers == (late == 0), figures
