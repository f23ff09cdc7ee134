"""A planted shortcut beside the object, its twin without one, and the silhouette that tells."""

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.explain import Baseline, MaskSensitivity
from sonde.explain.mask_sensitivity import _gone

N = 120
LABELS = torch.arange(N) % 2


class Corner(nn.Module):
    """Looks at one pixel of the corner alone."""

    def forward(self, x):
        level = 20 * (x[:, 0, 0, 0] - 0.5)
        return torch.stack((-level, level), dim=1)


class Offset(nn.Module):
    """Adds to every pixel of every picture."""

    def forward(self, x):
        return x + 100


class Back(nn.Module):
    """Takes it away, and looks at the corner."""

    def forward(self, x):
        return Corner()(x - 100)


class Middle(nn.Module):
    """Looks at the middle alone, where the object lies."""

    def forward(self, x):
        level = 20 * (x[:, 0, 3:6, 3:6].mean((1, 2)) - 0.5)
        return torch.stack((-level, level), dim=1)


class Hole(nn.Module):
    """Counts the black pixels of the middle: it reads the shape of what was cut out."""

    def forward(self, x):
        level = 5 * ((x[:, 0, 2:7, 2:7] == 0).sum((1, 2)) - 7.0)
        return torch.stack((-level, level), dim=1)


def pictures(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 + 0.1 * torch.rand(N, 1, 8, 8, generator=generator)
    region = torch.zeros(N, 8, 8, dtype=torch.bool)
    region[:, 3:6, 3:6] = True
    x[:, 0, 3:6, 3:6] += 0.4 * LABELS[:, None, None]
    x[:, 0, 0, 0] = 0.2 + 0.6 * LABELS
    return x, region


@pytest.mark.truth("planted: the answer lies in a pixel outside the object, or in the object")
def test_a_shortcut_is_found_and_its_twin_is_clear():
    x, region = pictures()
    net = nn.Sequential(nn.Identity(), Corner())
    shortcut = MaskSensitivity().judge(net, x, region, labels=LABELS, site="0")
    by_name = dict(zip(shortcut.conditions, shortcut.auroc.tolist(), strict=True))
    assert by_name["box removed"] == by_name["region removed"] == shortcut.value == 1.0
    assert by_name["region only"] == 0.5
    assert shortcut.has_shortcut
    assert float(shortcut.cosine[0]) == pytest.approx(1.0)
    assert float(shortcut.cosine[2]) < 1.0
    offset = nn.Sequential(Offset(), Back())
    assert MaskSensitivity().judge(offset, x, region, labels=LABELS, site="0").cosine.tolist() == (
        pytest.approx(shortcut.cosine.tolist(), abs=1e-3)
    )
    honest = MaskSensitivity().judge(Middle(), x, region, labels=LABELS)
    by_name = dict(zip(honest.conditions, honest.auroc.tolist(), strict=True))
    assert by_name["full"] == by_name["region only"] == by_name["other box removed"] == 1.0
    assert by_name["box removed"] == 0.5
    assert not honest.has_shortcut
    assert honest.accuracy.tolist()[0] == 1.0
    assert bool(honest.cosine.isnan().all())


@pytest.mark.truth("planted: silhouettes of two sizes in boxes of one size")
def test_the_silhouette_tells_and_its_box_does_not():
    x, region = pictures()
    region[LABELS == 1, 4, 3:5] = False  # a ring with a gap: fewer pixels, the same box
    zero = Baseline("zero")
    found = MaskSensitivity(zero).judge(Hole(), x, region, labels=LABELS)
    by_name = dict(zip(found.conditions, found.auroc.tolist(), strict=True))
    assert by_name["region removed"] == 0.0  # the hole of class 0 is larger: told without fail
    assert by_name["box removed"] == 0.5
    assert not found.has_shortcut


def test_boxes_and_bad_regions():
    _, region = pictures()
    region[0] = False
    region[0, 0, 0] = region[0, 1, 2] = True
    _, only, _, box, other = _gone(region, 0)
    assert box[0, :2, :3].all()
    assert int(box[0].sum()) == int(other[0].sum()) == 6
    assert not (box & other)[0].any()
    assert torch.equal(only, ~region)
    x = torch.rand(N, 1, 8, 8)
    with pytest.raises(InputError, match="none in 1"):
        MaskSensitivity().judge(
            Corner(), x, region & (torch.arange(N) > 0)[:, None, None], labels=LABELS
        )
    with pytest.raises(InputError, match="two classes"):
        MaskSensitivity().judge(Corner(), x, region, labels=LABELS * 0)
