"""Maps whose channels move together in places that tell the label, and nothing but noise."""

import pytest
import torch
from torch import nn

from sonde import InputError, Model
from sonde_studies.parts.regions import coherence, nodes_of
from sonde_studies.recipes.channel_regions import GRAPH, MEAN, PLAIN, channel_regions

CONVOLUTION = nn.Conv2d(6, 6, 1, bias=False)
nn.init.dirac_(CONVOLUTION.weight)
MODEL = Model(nn.Sequential(CONVOLUTION, nn.Flatten(), nn.Linear(6 * 20, 2)).eval())


def pictures(told: bool, n=150):
    """Return maps with a blob of three channels above or below, and of three others anywhere."""
    draw = torch.Generator().manual_seed(4)
    label = torch.randint(0, 2, (n,), generator=draw)
    maps = 0.3 * torch.randn(n, 6, 4, 5, generator=draw)
    for row, c in zip(maps, label.tolist(), strict=True):
        first, second = torch.randint(0, 2, (2,), generator=draw).tolist()
        row[0::2, 2 * (c if told else first) :][:, :2] += 2.0
        row[1::2, 2 * second :][:, :2] += 2.0
    return [{"x": m, "label": int(c)} for m, c in zip(maps, label, strict=True)]


@pytest.mark.slow
@pytest.mark.truth("maps in which the place is the label, and every mean is alike")
@pytest.mark.parametrize("told", [True, False])
def test_regions_tell_what_the_mean_cannot(told):
    options = {"site": "0", "regions": 2, "steps": 120, "seed": 3, "progress": False}
    found = channel_regions(MODEL, pictures(told), **options)
    score = {row["read from"]: row["accuracy"] for row in found.rows}
    assert abs(score[MEAN] - 0.5) < 0.2
    assert (min(score[PLAIN], score[GRAPH]) > 0.9) == told
    assert found.verdict == ("regions say more" if told else "the label is not told")
    near = {row["read from"]: row["Moran's I"] for row in found.rows}
    assert near[GRAPH] > near["groups by lot"]


@pytest.mark.truth("Moran's I summed pair by pair")
def test_coherence_is_morans_i():
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 4, 5, 2, generator=draw)
    group = torch.tensor([0, 1, 1, 0])
    nodes = nodes_of(maps, group)
    want = []
    for picture in maps:
        for k in (0, 1):
            x = picture[group == k].mean(0).double()
            x = x - x.mean()
            down = [x[i, j] * x[i + 1, j] for i in range(4) for j in range(2)]
            right = [x[i, 0] * x[i, 1] for i in range(5)]
            want.append((sum(down) / 8 + sum(right) / 5) / 2 / x.square().mean())
    assert coherence(nodes, 5) == pytest.approx(float(sum(want) / len(want)))


def test_a_site_without_maps_is_named():
    with pytest.raises(InputError, match=r"expected maps .* at 2.*Name a convolution"):
        channel_regions(MODEL, pictures(True, 80), site="2", progress=False)
