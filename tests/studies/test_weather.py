"""Haze, rain and snow over patches of two photographs that stay apart."""

import pytest
import torch
from sklearn.datasets import load_sample_images

from sonde_studies import adverse_weather
from sonde_studies._weather import LEAST_SPAN, SIDE, patches_of, photographs, weathered


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.truth("windows of the photograph, searched one by one")
def test_patches_are_windows_stretched_to_one():
    pictures = photographs()
    part = pictures[0][:, 80:140, 100:180]
    patches = patches_of(part, 3, drawn())
    assert [tuple(p.shape) for p in pictures] == [(3, 213, 320)] * 2
    photo = load_sample_images().images[0].astype(float)
    corner = torch.tensor(photo[:2, :2].mean((0, 1)) / 255).float()
    torch.testing.assert_close(pictures[0][:, 0, 0], corner)
    assert patches.amin((1, 2, 3)).tolist() == [0, 0, 0]
    assert patches.amax((1, 2, 3)).tolist() == [1, 1, 1]
    windows = part.unfold(1, SIDE, 1).unfold(2, SIDE, 1).permute(1, 2, 0, 3, 4)
    windows = windows.reshape(-1, 3 * SIDE**2)
    low, high = windows.amin(1, keepdim=True), windows.amax(1, keepdim=True)
    stretched = (windows - low) / (high - low).clamp(min=1e-6)
    for patch in patches.flatten(1):
        gap, at = (stretched - patch).abs().amax(1).min(0)
        assert gap < 1e-6
        assert high[at] - low[at] >= LEAST_SPAN


@pytest.mark.truth("two planted pictures, a red one and a blue one")
def test_the_photograph_that_judges_did_not_train(monkeypatch):
    red, blue = torch.zeros(2, 3, 40, 40).unbind()
    red[0], blue[2] = torch.rand(2, 40, 40, generator=drawn())
    monkeypatch.setattr(adverse_weather, "photographs", lambda: [red, blue])
    for seed, train, test in ((1, 0, 2), (2, 2, 0)):
        (_, clean), (_, truth) = adverse_weather._pairs(seed, tiny=True)
        for patches, channel in ((clean, train), (truth, test)):
            assert (patches.std((2, 3)) > 1e-4).all(0).tolist() == [channel == c for c in range(3)]
        assert {*clean[:, 1].flatten().tolist()} == {0.0, 1.0}  # half of them are inverted
        assert not truth[:, 1].any()


@pytest.mark.truth("closed form: haze is affine; rain and snow only brighten, where they fall")
def test_each_kind_of_weather():
    x = patches_of(photographs()[0], 8, drawn()) * 0.4
    hazy = weathered(x, "haze", drawn(1))
    slope = (hazy.amax((1, 2, 3)) - hazy.amin((1, 2, 3))) / (x.amax((1, 2, 3)) - 0)
    torch.testing.assert_close(
        hazy, hazy.amin((1, 2, 3), True) + slope[:, None, None, None] * x, rtol=0, atol=1e-6
    )
    assert ((slope >= 0.3) & (slope <= 0.7)).all()
    for kind, low, high in (("rain", 0.02, 0.5), ("snow", 0.04, 0.4)):
        made = weathered(x, kind, drawn(1))
        hit = (made != x).any(1)
        assert low < hit.float().mean() < high
        assert (made >= x - 1e-6).all()
        assert made.max() <= 1
    rain = weathered(torch.zeros(8, 3, SIDE, SIDE), "rain", drawn(1))[:, 0]
    assert rain.flatten(1).unique(dim=1).shape[1] > 1
    assert (rain[:, 1:] * rain[:, :-1] > 0).float().mean() > 0.3 * (rain > 0).float().mean()
