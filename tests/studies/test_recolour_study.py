"""The picture that judges is none of those that train."""

from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_sample_images

from sonde_studies.recolour import pictures


@pytest.mark.truth("pixels of the photographs, by counting colours")
def test_each_stack_holds_patches_of_one_picture():
    stacks = pictures(torch.Generator().manual_seed(0), 8)
    colours = [{tuple(c) for c in p.reshape(-1, 3).tolist()} for p in load_sample_images().images]
    assert [len(s) for s in stacks] == [16, 16]
    for stack, own in zip(stacks, colours, strict=True):
        pixels = (stack * 255).round().int().permute(0, 2, 3, 1).reshape(-1, 3).tolist()
        assert {tuple(c) for c in pixels} <= own
    assert all(a != b for a, b in pairwise(colours))
