"""Scenes of ``dense-levels``: what each level shows, marks elsewhere, and nets of equal size."""

import pytest
import torch
from torch.nn.functional import adaptive_max_pool2d

from sonde_studies import dense_levels as study
from sonde_studies.dense_levels import FusedNet, level_scenes


@pytest.mark.truth("the scene's own codes, found again where noise is off")
def test_the_level_that_says_so_shows_the_object(monkeypatch):
    monkeypatch.setattr(study, "NOISE", 0.0)
    scenes = level_scenes(400, study.FEW, 3)
    draw = torch.Generator().manual_seed(3)
    codes = torch.nn.functional.normalize(torch.randn(study.FEW, study.CODES, generator=draw))
    turn = torch.linalg.qr(torch.randn(study.WIDTH, study.WIDTH, generator=draw)).Q
    maps = [x.movedim(1, 3) @ turn.T for x in scenes.maps]
    for row in range(100):
        for place, name in zip(scenes.place[row].tolist(), scenes.name[row].tolist(), strict=True):
            high, wide = divmod(place, study.MIDDLE)
            fine = maps[0][row, 2 * high : 2 * high + 2, 2 * wide : 2 * wide + 2].flatten(0, 1)
            shown = [*fine, maps[1][row, high, wide], maps[2][row, high // 2, wide // 2]]
            told = [v[: study.CODES] for v in shown if v[study.CODES] > 0.5]
            assert len(told) == 1
            torch.testing.assert_close(told[0], codes[name], rtol=0, atol=1e-5)
    marks = torch.stack([x[..., study.CODES + 2].flatten(1).sum(1) for x in maps]).sum(0)
    moved = (scenes.changed - scenes.name) % study.FEW
    assert torch.equal(moved, (marks > 0).long()[:, None].expand(-1, study.OBJECTS))
    assert set(marks.round().tolist()) == {-1.0, 1.0}


def test_all_nets_are_as_large():
    for names in (study.FEW, study.MANY):
        nets = [FusedNet(kind, names) for kind in (*study.KINDS, "refined")]
        sizes = [study._size(net) for net in nets]
        assert max(sizes) < 1.01 * min(sizes)


@pytest.mark.truth("means over levels by torch's own functions")
@torch.no_grad()
def test_the_plain_arm_meets_the_mean_of_all_levels():
    torch.manual_seed(0)
    fusion = FusedNet("mean", study.FEW).fusion
    for part in fusion.maps.children():
        part.weight.normal_()
    x = [torch.randn(2, study.DIM, s, s) for s in study.SIZES]
    up = x[2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    mean = (adaptive_max_pool2d(x[0], 4) + x[1] + up) / 3
    torch.testing.assert_close(fusion(*x)[1], x[1] + fusion.maps[1](mean))
