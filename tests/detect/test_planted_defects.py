"""Detectors of places from a live net to maps over pixels, against the planted mask."""

import functools

import pytest
import torch
from torch import nn

from detect.planted import maps_of, stream_of, textures, with_defects
from sonde.core.errors import InputError
from sonde.detect import DictLookup, PaDiM, PatchCore
from sonde.metrics import aupro, pixel_auroc
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.read import read
from sonde.run.scoring.score import score

pytestmark = pytest.mark.essential

DETECTORS = [
    (PaDiM(), 0.95, 0.85),
    (PatchCore(m=256), 0.88, 0.65),
    (PatchCore(m=256, window=1), 0.88, 0.65),
    (DictLookup(m=512), 0.8, 0.5),
    (DictLookup(m=512, generators="trained", passes=1), 0.8, 0.5),
]


@functools.cache
def fitted_on_usual(detector):
    return fit(detector, stream_of(textures(50, 0), detector), calibrate=0.25, progress=False)


@pytest.fixture(scope="module")
def planted():
    return with_defects(12, 1)


@pytest.mark.truth("the planted mask")
@pytest.mark.parametrize(("detector", "least_auroc", "least_overlap"), DETECTORS)
def test_planted_defects_are_found_and_located(detector, least_auroc, least_overlap, planted):
    images, masks = planted
    fitted = fitted_on_usual(detector)
    ((method, _),) = fitted.scorers
    maps = maps_of(fitted.result(method).scorer, stream_of(images, detector))
    assert pixel_auroc(maps, list(masks), resamples=0).value > least_auroc
    assert aupro(maps, list(masks), resamples=0).value > least_overlap
    elsewhere = masks.roll(5, 0)
    assert pixel_auroc(maps, list(elsewhere), resamples=0).value < 0.75  # places of other images
    table = score(fitted, stream_of(images, detector), progress=False)
    assert fitted.result(method).reduction == "max"
    assert sorted(table["p"].to_pylist())[6] <= 1 / 10
    for position, mask in zip(table["position"].to_pylist(), masks, strict=True):
        top, left = 2 * (position // 16), 2 * (position % 16)
        near = mask[max(0, top - 3) : top + 5, max(0, left - 3) : left + 5]
        assert bool(near.any())


@pytest.mark.truth("the planted mask")
def test_averaged_maps_of_both_windows_locate_better_than_the_worse_one(planted):
    images, masks = planted
    each = []
    for window in (1, 3):
        detector = DictLookup(m=512, window=window)
        scorer = fitted_on_usual(detector).result("dict_lookup").scorer
        each.append(maps_of(scorer, stream_of(images, detector)))
    both = [torch.stack(pair).mean(0) for pair in zip(*each, strict=True)]
    found = [pixel_auroc(maps, list(masks), resamples=0).value for maps in (*each, both)]
    assert found[2] > min(found[:2]) + 0.005
    assert found[2] > 0.8


@pytest.mark.parametrize("detector", [DETECTORS[i][0] for i in (0, 1, 4)], ids=repr)
def test_a_saved_bundle_scores_the_same(detector, tmp_path):
    fitted = fit(detector, stream_of(textures(12, 0), detector), progress=False)
    fitted.save(tmp_path / "probe.sonde")
    new = stream_of(textures(5, 2), detector)
    tables = [
        score(b, new, progress=False) for b in (fitted, Fitted.load(tmp_path / "probe.sonde"))
    ]
    assert tables[0].equals(tables[1])


@pytest.mark.truth("the promised rate of false alarms on fresh usual images")
def test_usual_images_seldom_raise_an_alarm():
    fitted = fit(PaDiM(), stream_of(textures(120, 0), PaDiM()), calibrate=0.4, progress=False)
    n = fitted.result("padim").calibration.n
    table = score(fitted, stream_of(textures(80, 2), PaDiM()), progress=False)
    false = sum(p <= 0.1 for p in table["p"].to_pylist())
    assert false / 80 < 0.1 + 3.5 * (0.09 * (1 / n + 1 / 80)) ** 0.5


class Patchify(nn.Module):
    """Cuts images into patches of 16 pixels, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 16, 16)

    def forward(self, x):
        return self.patches(x).mean((2, 3))


def test_images_smaller_than_a_patch_are_an_error():
    torch.manual_seed(0)
    net = Patchify().eval()
    small = list(torch.randn(30, 1, 8, 8))
    with pytest.raises(InputError, match=r"shape x \(\d+, 1, 8, 8\).*Kernel size"):
        fit(PaDiM(), read(net, small, sites="patches", reducer="patches"), progress=False)
    usual = read(net, list(torch.randn(30, 1, 32, 32)), sites="patches", reducer="patches")
    fitted = fit(PaDiM(), usual, progress=False)
    with pytest.raises(InputError, match=r"shape x \(\d+, 1, 8, 8\).*Kernel size"):
        score(fitted, read(net, small, sites="patches", reducer="patches"), progress=False)


def test_images_of_another_size_are_an_error():
    fitted = fit(PaDiM(), stream_of(textures(20, 0), PaDiM()), progress=False)
    with pytest.raises(InputError, match="expected 256 patches of every image"):
        score(fitted, stream_of(torch.randn(2, 1, 40, 40), PaDiM()), progress=False)
