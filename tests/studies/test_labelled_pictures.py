"""Labels of pictures against what the pictures show, and views."""

import pytest
import torch

from sonde_studies._joint_arms import PatchNet, learn
from sonde_studies._labelled_pictures import (
    DIGITS,
    MARKS,
    changed,
    labelled_pictures,
    patches,
)
from sonde_studies.worlds.learning import drawn


def images(n=40):
    """Return even images, brighter from one to the next, with a slanted line in every third."""
    x = torch.linspace(0.01, 0.6, n)[:, None, None] * torch.ones(n, 8, 8)
    x[::3] += 0.05 * torch.eye(8)
    return x.flatten(1), torch.arange(n) % DIGITS


@pytest.mark.truth("images whose brightness and slant are known, and marks searched for")
def test_labels_are_true_of_the_pictures():
    x, label = images()
    found = labelled_pictures(x, label, 3, 200)
    for picture, facts, digit in zip(*found, strict=True):
        kinds, marks, quarters, shape = facts.split((2, len(MARKS), 4, 2))
        row = int((x.reshape(-1, 8, 8) == picture).sum((1, 2)).argmax())
        assert digit == label[row]
        assert kinds.tolist() == [float(digit < 5), float(digit % 2)]
        assert marks.sum() == quarters.sum() == 1
        mark = MARKS[marks.argmax()]
        places = [(a, b) for a in range(6) for b in range(6)
                  if torch.equal(picture[a : a + 3, b : b + 3], mark)]  # fmt: skip
        assert len(places) == 1
        (line, column), ink = places[0], x.sum(1)
        assert quarters.argmax() == 2 * (line > 2) + (column > 2)
        assert shape.tolist() == [float(ink[row] > ink.quantile(0.6)), float(row % 3 == 0)]


def test_patches_are_squares_and_views_are_moved_and_noisy_pictures():
    picture = 0.5 + torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(patches(picture)[:, 6], picture[:, 2:4, 4:6].flatten(1))
    with torch.random.fork_rng(devices=[]):
        views = list[torch.Tensor]()
        for noise in (0.0, 0.2):
            torch.manual_seed(1)
            views.append(changed(picture, noise))
    plain, noisy = views
    moves = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    light = [(plain / picture.roll(move, (1, 2))).flatten(1) for move in moves]
    spread = [float((one.amax(1) - one.amin(1)).max()) for one in light]
    assert min(spread) < 1e-5
    assert 0.6 <= light[spread.index(min(spread))].mean() <= 1.4
    assert float((noisy - plain).std()) == pytest.approx(0.2, rel=0.2)


def test_a_part_moves_what_its_loss_reads():
    """Masked pixels train the embedding and the layers; no training at all leaves them."""
    x, label = images()
    fit = labelled_pictures(x, label, 3, 60)
    for arms in (["pixels"], ["contrast"], ["labels"], ["pixels", "contrast", "labels"]):
        net, before = (drawn(PatchNet, 4) for _ in range(2))
        learn(net, arms, fit.picture, fit.facts, 0.3, seed=5, steps=2)
        pairs = zip(net.parameters(), before.parameters(), strict=True)
        assert not any(torch.equal(new, old) for new, old in pairs)
