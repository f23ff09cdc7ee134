"""Axes of one size that cannot be told apart are asked for, and named with --axes or --reducer."""

import sys

import numpy as np
import pytest
import torch

import sonde

NET = """
import torch
from torch import nn

class Mixing(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.steps, self.units = nn.Linear(n, n), nn.Linear(n, n)

    def forward(self, x):
        x = x + self.steps(x.transpose(1, 2)).relu().transpose(1, 2)
        return x + self.units(x).relu()

class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 9, 4, 4)
        self.blocks = nn.ModuleList([Mixing(9), Mixing(9)])
        self.head = nn.Linear(9, 3)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))

def make():
    torch.manual_seed(0)
    return Mixer().eval()
"""
WORDS = ["net_that_mixes:make", "x.npz", "--sites", "blocks"]
NAMED = {
    ("--axes", "row patch dim"): 1,
    ("--axes", "row dim patch"): 2,
    ("--axes", "blocks.*=row,patch,dim", "row dim patch"): 1,
    ("--reducer", "mean(axis=2)"): 1,
}


@pytest.fixture
def images(tmp_path, monkeypatch) -> np.ndarray:
    (tmp_path / "net_that_mixes.py").write_text(NET)
    x = np.random.default_rng(0).normal(size=(30, 1, 12, 12)).astype("f4")
    np.savez(tmp_path / "x.npz", x=x)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return x


@pytest.mark.slow
@pytest.mark.truth("plain torch: the block's output, averaged over the other axis")
@pytest.mark.parametrize("flags", NAMED)
def test_named_axes_are_the_ones_that_are_read(run, images, flags):
    ran = run("read", *WORDS, *flags, "-o", "acts")
    assert ran.code == 0, ran.err
    rows = torch.cat([batch.rows["blocks.0:out"] for batch in sonde.read("acts")])
    net = sys.modules["net_that_mixes"].make()
    with torch.no_grad():
        raw = net.blocks[0](net.stem(torch.from_numpy(images)).flatten(2).transpose(1, 2))
    torch.testing.assert_close(rows, raw.mean(NAMED[flags]))


@pytest.mark.slow
def test_a_bundle_keeps_the_axes_that_it_was_fitted_with(run, images):
    ran = run("fit", "knn", *WORDS, "--axes", "row dim patch", "-o", "a.sonde", "--json")
    assert ran.code == 0, ran.err
    assert run("score", "a.sonde", *WORDS[:2], "--json").code == 0
    assert {s["axes"] for s in sonde.Fitted.load("a.sonde").header["sites"]} == {"row dim patch"}


@pytest.mark.slow
def test_two_axes_of_one_size_are_asked_for(run, images):
    line = run("fit", "knn", *WORDS, "-o", "a.sonde").error()
    assert "--axes 'row dim patch' or 'row patch dim'" in line
    assert "--axes" in run("fit", "--help").out


@pytest.mark.parametrize(
    ("sites", "axes", "said"),
    [
        ("blocks", "row patches dim", "Did you mean patch"),
        ("blocks", "row patch", "expected row and dim once each"),
        ("blocks", "row pos dim", "expected 'row patch dim' at blocks.0:out"),
        ("stem", "row patch dim", "expected outputs of 3 axes at '*', got only stem (row dim h w)"),
    ],
)
def test_axes_that_are_not_there_are_refused(run, images, sites, axes, said):
    words = [*WORDS[:3], sites, "--axes", axes]
    assert said in run("fit", "knn", *words, "-o", "a.sonde").error()
