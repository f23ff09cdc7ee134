"""Recoloured pictures: channels that were mixed, correlations by numpy, a folder of files."""

import numpy as np
import pytest
import torch
from PIL import Image

from cli_case import run_words
from sonde import InputError
from sonde_studies.parts.colours import features, patches_of, recoloured
from sonde_studies.recipes.recolour import recolour


def pictures(n, seed=0, mixed=False):
    """Return pictures of smooth noise whose channels share a part, as those of a camera do."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 124, 128, generator=draw) + 0.8 * torch.randn(
        n, 3, 124, 128, generator=draw
    )
    x = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    x = (0.5 + x).clamp(0, 1)
    if mixed:
        x = torch.einsum("cd,ndhw->nchw", torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3],
                                                        [0.1, 0.4, 0.5]]), x)  # fmt: skip
    return [{"image": p} for p in x]


@pytest.mark.truth("pictures whose channels were mixed, and others that were not")
def test_mixed_channels_are_seen_and_others_are_not():
    found = recolour(pictures(20), questioned=pictures(2, 9, mixed=True), progress=False)
    assert found.verdict == "recoloured"
    assert found.level == "warning"
    fine = recolour(pictures(20), questioned=pictures(2, 9), progress=False)
    assert fine.verdict == "cannot tell"
    assert float(fine.value) > 0.9


@pytest.mark.truth("numpy's corrcoef")
def test_features_of_channels_are_correlations():
    x = pictures(1)[0]["image"][None, :, :40, :40]
    want = np.corrcoef(x[0].flatten(1).double().numpy())
    got = features("channels", x)[0]
    assert got[:3].tolist() == pytest.approx([want[0, 1], want[0, 2], want[1, 2]], abs=1e-4)
    assert features("both", x).shape[1] == features("neighbours", x).shape[1] + 6


@pytest.mark.truth("8 bits, half of the patches, and none at strength zero")
def test_recolouring_changes_a_half_and_nothing_at_strength_zero():
    draw = torch.Generator().manual_seed(1)
    x = patches_of(pictures(1)[0]["image"], draw)
    assert x.shape == (9, 3, 40, 40)
    x = (x.repeat(30, 1, 1, 1) * 255).round() / 255
    y, changed = recoloured(x, draw)
    assert 0.4 < changed.double().mean() < 0.6
    assert torch.equal(y[~changed], x[~changed])
    assert (y - x)[changed].abs().amax((1, 2, 3)).min() > 0.01
    assert torch.allclose((y * 255).round(), y * 255, atol=1e-3)
    assert torch.equal(recoloured(x, draw, strength=0.0)[0], x)


def test_the_command_reads_a_folder(tmp_path):
    for i, row in enumerate(pictures(8)):
        pixels = (row["image"].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    ran = run_words("recipe", "recolour", tmp_path, "--questioned", tmp_path, "--json")
    assert ran.code == 0, ran.err
    assert "flagged, 3.png" in {row["what"] for row in ran.json()["rows"]}


def test_few_and_small_pictures_are_refused():
    with pytest.raises(InputError, match="four or more pictures"):
        recolour(pictures(3), progress=False)
