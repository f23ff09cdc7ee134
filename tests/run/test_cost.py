"""What a run takes beyond a forward for each example, against what it is seen to do."""

import time

import pytest
import torch
from torch import nn

import sonde
from sonde.detect import NAC, ODIN, Mahalanobis
from sonde.engine import progress
from sonde.measure import UnitEntropy
from sonde.run.passes.cost import DEEP, GRADIENT, MOVED, TWICE, cost_of
from sonde.run.scoring.score import score


class Counted(nn.Module):
    """A classifier that counts its forwards and backwards by the example."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        self.forwards = self.backwards = 0

    def forward(self, x):
        self.forwards += len(x)
        hidden = self.layer(x)
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: self._back(len(grad)))
        return self.head(hidden.relu())

    def _back(self, n):
        self.backwards += n


N, FIXED = 800, 31
"""Examples, and rows of checks before a fit: 15 of the data, 8 drawn ones twice."""
ITEMS = list(torch.randn(N, 6, generator=torch.Generator().manual_seed(0)))


def stream_of(net, **options):
    return sonde.read(net, ITEMS, sites="layer", batch_size=50, logits=True, **options)


@pytest.mark.parametrize(
    ("method", "options", "said", "forwards", "backwards"),
    [
        (Mahalanobis(), {}, "", 1, 0),
        (UnitEntropy(), {}, TWICE, 2, 0),
        (NAC(), {"objective": "kl_uniform"}, GRADIENT, 1, 1),
        (ODIN(), ODIN().reading(), MOVED, 3, 1),
    ],
    ids=["plain", "two passes", "gradient", "moved"],
)
@pytest.mark.truth("forwards and backwards that the model counts")
def test_the_cost_is_what_the_model_does(capsys, method, options, said, forwards, backwards):
    net = Counted().eval()
    stream = stream_of(net, **options)
    _ = stream.schema
    net.forwards = net.backwards = 0
    fitted = sonde.fit(method, stream, calibrate=0)
    told = capsys.readouterr().err
    assert told == (f"note: this run takes {said}.\n" if said else "")
    assert round(net.forwards / N, 1) == forwards
    assert net.forwards - forwards * N <= FIXED
    assert round(net.backwards / N, 1) == backwards
    if fitted.scorers:
        score(fitted, stream)
        assert (capsys.readouterr().err == told) == (said != TWICE)


def test_quiet_runs_say_nothing(capsys):
    sonde.fit(UnitEntropy(), stream_of(Counted().eval()), progress=False)
    assert capsys.readouterr().err == ""


def test_a_deep_scan_says_what_is_more():
    texts = sonde.read("sonde:stdlib", "sonde:stdlib/test", limit=8)
    images = sonde.read("sonde:digits", "sonde:digits/test", limit=8)
    assert cost_of(texts, deep=True) == DEEP
    assert (cost_of(texts), cost_of(images, deep=True)) == ("", "")


class SlowAtFirst(Counted):
    """A net whose first two forwards take nearly as long as all others together."""

    def forward(self, x):
        self.whole += len(x) == 10
        time.sleep(0.03 if len(x) < 10 or self.whole > 2 else 0.4)
        return super().forward(x)


@pytest.mark.truth("the clock")
def test_what_is_said_of_the_time_left_is_right_though_the_first_batches_are_slow(monkeypatch):
    told = []
    monkeypatch.setattr(progress, "LONG_SECONDS", 0.2)
    monkeypatch.setattr(progress, "duration", lambda s: told.append((time.monotonic(), s)) or "s")
    net = SlowAtFirst()
    net.whole = 0
    stream = sonde.read(net, ITEMS, sites="layer", batch_size=10)
    sonde.fit("covariance", stream, calibrate=0, unit_size=10)
    ((when, left),) = told
    assert left / 2 < time.monotonic() - when < 2 * left
