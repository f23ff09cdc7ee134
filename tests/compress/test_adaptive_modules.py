"""Modules as sums of learners, with a gate for each token."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from sonde import Model
from sonde.compress import AdaptiveModules, enough, gated_learners
from sonde.compress.adaptive_modules import _entropy
from sonde.core import InputError, SiteError
from sonde.data import open_inputs


def rows(n=400, seed=2):
    """Rows of unlike variances, and a linear map of them."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=draw).double() @ torch.randn(6, 6, generator=draw).double() + 1
    return x, torch.randn(6, 8, generator=draw).double()


@pytest.mark.truth("the least error of each rank: singular values of the whitened fit")
def test_the_first_learners_are_the_reduced_rank_regression():
    x, w = rows()
    y = x @ w + 0.5 * torch.randn(400, 8, generator=torch.Generator().manual_seed(3)).double()
    found = gated_learners(x, y, 3)
    zx, zy = x - x.mean(0), y - y.mean(0)
    fit = zx @ torch.linalg.lstsq(zx, zy).solution
    residual, singular = (zy - fit).square().sum(), torch.linalg.svdvals(fit)
    with torch.no_grad():
        errors = (found.partial(x) - y[:, None]).square().sum((0, 2))
    for k, rank in enumerate((0, 2, 4, 6)):
        expected = residual + singular[rank:].square().sum()
        torch.testing.assert_close(errors[k], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.truth("the module itself: a linear map needs all of its learners and no more")
def test_all_learners_are_a_linear_module():
    x, w = rows()
    found = gated_learners(x, x @ w, 4)
    with torch.no_grad():
        torch.testing.assert_close(found.partial(x)[:, -1], x @ w, rtol=1e-6, atol=1e-6)
        found.gate.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]))
        found.gate.weight.zero_()
        out = found.eval()(x.reshape(4, 100, 6))
    torch.testing.assert_close(out, (x @ w).reshape(4, 100, 8), rtol=1e-6, atol=1e-6)


@pytest.mark.truth("partial sums, picked by the gate's choice")
def test_only_the_learners_that_a_token_needs_run():
    x, w = rows()
    found = gated_learners(x, x @ w, 4).eval()
    with torch.no_grad():
        found.gate.weight.copy_(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))
        out, every = found(x), found.partial(x)
    assert found.number is not None
    assert len(set(found.number.tolist())) > 2
    torch.testing.assert_close(out, every[torch.arange(400), found.number])


def test_a_learner_too_many_is_one_that_gains_too_little():
    error = torch.tensor([[8.0, 4.0, 2.0, 1.9], [8.0, 7.9, 1.0, 0.1], [5.0, 1.0, 0.5, 0.1]])
    assert enough(error, 0.1).tolist() == [2, 0, 3]


@pytest.mark.truth("torch's entropies of categories")
def test_entropies_of_gates():
    p = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)).double().softmax(2)
    torch.testing.assert_close(_entropy(p), torch.distributions.Categorical(p).entropy())
    assert _entropy(torch.tensor([0.0, 1.0])) == 0


class Texts(nn.Module):
    """A classifier of rows with one module to replace."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(x + self.mlp(x))


@pytest.mark.slow
def test_a_larger_budget_runs_more_learners_and_costs_less_divergence():
    torch.manual_seed(4)
    model = Model(Texts().eval())
    with torch.no_grad():
        for p in model.module.parameters():
            p.mul_(2)
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(5))
    shares, lost = [], []
    method: Any = None
    found: Any = None
    for budget in (0.1, 0.9):
        method = AdaptiveModules(("mlp",), 4, budget, steps=150, rate=3e-3, weights=(2, 0.05, 0))
        found = method.fit(model, open_inputs(model, x))
        with torch.no_grad():
            p, q = (m(x).log_softmax(1) for m in (model.module, found.module))
        shares.append(float(found.module.mlp.number.double().mean()) / 4)
        lost.append(float((p.exp() * (p - q)).sum(1).mean()))
    assert shares[0] < 0.4 < 0.6 < shares[1]
    assert lost[1] < lost[0]
    again = deepcopy(method.fit(model, open_inputs(model, x)).module)  # it holds no graph
    with torch.no_grad():
        assert torch.equal(again(x), found.module(x))


def test_unknown_modules_and_budgets_are_refused():
    model = Model(Texts().eval())
    with pytest.raises(SiteError, match="'nowhere'"):
        AdaptiveModules(("nowhere",)).fit(model, open_inputs(model, torch.randn(4, 6)))
    with pytest.raises(InputError, match="budget in"):
        AdaptiveModules(("mlp",), budget=2.0)
