"""What explainers are given and cannot use: a clear error, or a flag."""

import re

import pytest
import torch
from torch import nn

import models
from cache_name import CACHE
from sonde.core import InputError, ShapeError
from sonde.explain import (
    Baseline,
    ExpectedGradients,
    GradTimesInput,
    IntegratedGradients,
    MaskSensitivity,
    Occlusion,
    Probe,
    Relevance,
    Saliency,
    Shapley,
    SmoothGrad,
    SparseAutoencoder,
    Tcav,
)
from sonde.tap import cache_of

DRAW = torch.Generator().manual_seed(0)
ROWS = torch.randn(60, 4, generator=DRAW)
ALIKE = torch.ones(60, dtype=torch.long)
FEW = torch.tensor([1] * 5 + [0] * 15 + [-1] * 40)
X, PICTURES = ROWS[:5], torch.rand(6, 1, 8, 8, generator=DRAW)
KINDS = torch.arange(6) % 2
WRONG = Baseline("values", values=torch.zeros(7))
METHODS = (
    Saliency(),
    GradTimesInput(),
    IntegratedGradients(4),
    SmoothGrad(3),
    ExpectedGradients(torch.zeros(3, 3), n=4),
    Relevance(),
    Occlusion(),
    Shapley(),
)


class Aside(nn.Module):
    """A branch that no answer comes from."""

    def __init__(self):
        super().__init__()
        self.used, self.ignored = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        self.ignored(x)
        return self.used(x)


@pytest.fixture(scope="module")
def aside():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Aside()


@pytest.mark.truth("a branch that no answer comes from: its effect is 0")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_site_that_the_answer_ignores_is_zero_and_flagged(aside, method):
    found = method.explain(aside, X, site="ignored")
    assert found.flags == ("unused",)
    assert float(torch.as_tensor(found.value).abs().max()) < 1e-6


@pytest.mark.parametrize("method", METHODS[:2] + METHODS[-2:], ids=lambda m: type(m).__name__)
def test_an_answer_that_is_no_number_is_flagged(aside, method):
    assert "nonfinite" in method.explain(aside, X * float("nan")).flags


REFUSED = {
    "baseline of another shape": (
        lambda: IntegratedGradients(baseline=WRONG).explain(nn.Linear(4, 2), X),
        ShapeError,
        "4 features",
    ),
    "the same, by parts": (
        lambda: Shapley(baseline=WRONG).explain(nn.Linear(4, 2), X),
        ShapeError,
        "4 features",
    ),
    "masks without a region": (
        lambda: MaskSensitivity().judge(nn.Flatten(), PICTURES, PICTURES[:, 0] > 2, labels=KINDS),
        InputError,
        "region in each picture, got none in 6",
    ),
    "masks of another shape": (
        lambda: MaskSensitivity().judge(
            nn.Flatten(), PICTURES, PICTURES[:, 0, :4] > 0, labels=KINDS
        ),
        ShapeError,
        "(6, 1, 8, 8), regions (6, 4, 8)",
    ),
    "concept set of five rows": (
        lambda: Tcav().fit(ROWS, label=FEW, grad=ROWS),
        InputError,
        "10 rows of each concept",
    ),
    "probe with one class": (lambda: Probe().fit(ROWS, label=ALIKE), InputError, "two classes"),
    "probe with a label for each row": (
        lambda: Probe().fit(ROWS, label=torch.arange(60)),
        InputError,
        "a different label for each",
    ),
    "more active features than there are": (
        lambda: SparseAutoencoder(features=8, k=9).fit(ROWS),
        InputError,
        "k of at most the 8 features",
    ),
    "dictionary wider than its rows": (
        lambda: SparseAutoencoder(features=512).fit(ROWS),
        InputError,
        "a row for each of 512 features",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_clear_line(name):
    run, kind, said = REFUSED[name]
    with pytest.raises(kind, match=re.escape(said)) as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("site", ["input", "transformer.h.0"])
def test_a_cache_in_use_is_refused(site):
    net, ids = models.gpt2(), torch.randint(3, models.VOCABULARY, (1, 5), generator=DRAW)
    with torch.no_grad():
        cache = cache_of(net(ids, use_cache=True))
    with pytest.raises(InputError, match="without a cache"):
        Saliency().explain(net, {"input_ids": ids[:, -1:], CACHE: cache}, site=site)
    assert cache.get_seq_length() == 5


@pytest.mark.truth("weights before the step: those of a training of no step")
def test_a_training_that_diverges_names_its_step_and_keeps_the_weights_before():
    rows = torch.randn(2000, 16, generator=DRAW)
    found = SparseAutoencoder(features=64, k=4, rate=1e30, batch=256).fit(rows)
    assert "diverged" in found.flags
    assert isinstance(found.conventions["diverged at step"], int)
    assert found.decoder.isfinite().all()
