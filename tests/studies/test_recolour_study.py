"""The picture that judges is none of those that train."""

import pytest
import torch
from sklearn.datasets import load_sample_images

from sonde_studies.recolour import pictures


@pytest.mark.truth("pixels of the photographs, by counting colours")
def test_each_stack_holds_patches_of_one_picture():
    stacks = pictures(torch.Generator().manual_seed(0), 2)
    colours = [_packed(torch.from_numpy(p.copy())) for p in load_sample_images().images]
    assert [len(s) for s in stacks] == [4, 4]
    for i, stack in enumerate(stacks):
        own = _packed((stack * 255).round().permute(0, 2, 3, 1))
        assert torch.isin(own, colours[i]).all()
        assert not torch.isin(own, colours[1 - i]).all()


def _packed(x):
    """Return each colour that occurs as one number."""
    return (x.long() * torch.tensor([65_536, 256, 1])).sum(-1).unique()
