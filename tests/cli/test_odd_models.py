"""What cannot work ends in one line that says where it is and what to do, and exit code 2."""

import re
import sys

import numpy as np
import pytest

NETS = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.ReLU()).eval())


class Sparse(nn.Module):
    def forward(self, x):
        return x.to_sparse()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act, self.c = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)
        self.sparse = Sparse()

    def forward(self, x):
        if (x > 100).any():
            raise ValueError("a value above 100")
        h = self.act(self.a(x))
        self.sparse(h)
        return self.act(self.c(h))


class InPlace(Net):
    def forward(self, x):
        y = self.a(x).exp()
        return self.c(y.add_(1))


class Checkpointed(Net):
    def forward(self, x):
        return self.c(checkpoint(self.act, self.a(x), use_reentrant=True))


def net():
    return Net().eval()


def in_place():
    return InPlace().eval()


def checkpointed():
    return Checkpointed().eval()
"""

CASES = {
    "fit mahalanobis nets:scripted x.npz": r"TorchScript\): its inner modules run without hooks",
    "fit mahalanobis nets:net x.npz --sites sparse": (
        r"expected a dense output, got an output of layout sparse_coo .*at sparse:out"
    ),
    "fit mahalanobis nets:net x.npz --sites act@all": (
        r"calls of 'act@all:out' give rows of \[4, 8\] features.* Read them separately: @0, @1"
    ),
    "fit mahalanobis nets:checkpointed x.npz --sites act:grad --objective max_logit": (
        r"no gradient reached 'act:grad': .* switch checkpointing off"
    ),
    "fit odin nets:in_place x.npz": r"by an inplace operation.*forward on 64 examples from",
    "fit mahalanobis nets:net late.npz --sites a": (
        r"ValueError: a value above 100 \(in the model's forward on 64 examples from \w+ on; "
    ),
    "scan x.npz nets:net": r"expected a model, got the data file x\.npz\. The model comes first",
    "fit knn, msp nets:net x.npz": r"got 'knn,' and 'msp'\. Write knn,msp\.",
    "fit mahalanobis nets:net x.npz --device gpu": "a GPU of NVIDIA or AMD is called cuda",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(300, 6)).astype("f4")
    np.savez(tmp_path / "x.npz", x=x)
    x[250] = 900
    np.savez(tmp_path / "late.npz", x=x)
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("words", CASES)
def test_what_cannot_work_is_told_in_one_line(run, here, words):
    line = run(*words.split(), "-o", "a.html" if words.startswith("scan") else "a.sonde").error()
    assert re.search(CASES[words], line), line
