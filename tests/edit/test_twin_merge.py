"""Shared weights with branches: whole experts, mixtures of parameters, rows of one batch apart."""

import copy
from typing import Any

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

import models
from sonde.core.errors import InputError, ShapeError, StateError
from sonde.edit import LinearRouter, TaskArithmetic, TwinMerge
from sonde.stats import ClassMoments
from tap_inputs import Arrays


def experts_of(base, n=3):
    found = []
    for seed in range(n):
        torch.manual_seed(seed)
        model = copy.deepcopy(base)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        found.append(model.eval())
    return found


def outputs(model, x):
    with torch.no_grad():
        found = model(x)
    return found if isinstance(found, torch.Tensor) else found.logits


def inputs_of(name):
    torch.manual_seed(9)
    if name in ("gpt2", "llama"):
        return torch.randint(0, models.VOCABULARY, (3, 7))
    return torch.randn(3, 1, 8, 8) if name == "cnn" else torch.randn(3, 8)


def nowhere(model, n=3):
    """Return a router that tells nothing."""
    return LinearRouter("", torch.zeros(n, 4), torch.zeros(n))


@pytest.mark.truth("each expert itself, and the model whose parameters are the mixture")
@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt2", "llama", "vit"])
def test_full_rank_branches_are_the_experts_row_by_row(name):
    base = getattr(models, name)()
    experts, x = experts_of(base), inputs_of(name)
    if name == "vit":
        x = torch.randn(3, 3, base.config.image_size, base.config.image_size)
    twin = TwinMerge(1.0).join(base, experts, nowhere)
    with twin.routed(torch.eye(3)):
        got = outputs(twin.model, x)
    for i, expert in enumerate(experts):
        torch.testing.assert_close(got[i : i + 1], outputs(expert, x[i : i + 1]), rtol=1e-4, atol=1e-4)  # fmt: skip # noqa: E501
    weights = torch.tensor([0.2, 0.5, 0.3])
    with twin.routed(weights.expand(3, 3)):
        got = outputs(twin.model, x)
    mixed = copy.deepcopy(base)
    for target, *parts in zip(mixed.parameters(), *(e.parameters() for e in experts), strict=True):
        target.data = sum(w * part.data for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(got, outputs(mixed, x), rtol=1e-4, atol=1e-4)


def test_closed_branches_are_the_shared_model_and_the_base_stays():
    base = models.mlp()
    before = {n: x.clone() for n, x in base.state_dict().items()}
    experts = experts_of(base)
    twin = TwinMerge(0.2, TaskArithmetic(0.4)).join(base, experts, nowhere)
    shared = copy.deepcopy(base)
    for name, x in shared.named_parameters():
        x.data += 0.4 * sum(dict(e.named_parameters())[name].data - before[name] for e in experts)
    x = inputs_of("mlp")
    torch.testing.assert_close(outputs(twin.model, x), outputs(shared, x))
    assert all(torch.equal(x, before[n]) for n, x in base.state_dict().items())
    same = TwinMerge().join(base, [base, base, base], nowhere)
    assert torch.equal(outputs(same, x), outputs(base, x))


def test_a_branch_keeps_the_share_of_the_rank():
    base = nn.Linear(20, 10)
    expert = experts_of(base, 1)[0]
    router = LinearRouter("", torch.zeros(1, 10), torch.zeros(1))
    errors = []
    for rank in (0.1, 0.5, 1.0):
        twin = TwinMerge(rank, TaskArithmetic(0.0)).join(base, [expert], lambda _: router)
        u, s, vh = torch.linalg.svd(expert.weight.data - base.weight.data)
        r = round(10 * rank)
        thin = nn.Linear(20, 10)
        thin.weight.data = base.weight.data + (u[:, :r] * s[:r]) @ vh[:r]
        thin.bias = expert.bias
        x = torch.randn(5, 20)
        torch.testing.assert_close(outputs(twin, x), outputs(thin, x))
        errors.append(float((outputs(twin, x) - outputs(expert, x)).abs().max()))
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.truth("scikit-learn's linear discriminant analysis")
def test_the_router_is_the_linear_discriminant_and_decides_for_each_row():
    torch.manual_seed(0)
    base, label = models.mlp(), torch.arange(300) % 3
    x = torch.randn(300, 8) + torch.randn(3, 8)[label] * 2
    hidden = outputs(base[:3], x)
    state = ClassMoments("pooled").observe(hidden, label)
    router = LinearRouter.of(state, "2", ridge=0.0)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(hidden.numpy(), label.numpy())
    expected = torch.from_numpy(theirs.predict_proba(hidden.numpy())).float()
    torch.testing.assert_close(router(hidden), expected, rtol=1e-3, atol=1e-3)
    twin = TwinMerge(0.5, TaskArithmetic(0.0)).join(base, experts_of(base), lambda _: router)
    torch.testing.assert_close(twin.weights(x), router(hidden))
    alone = torch.cat([outputs(twin, row[None]) for row in x[:6]])
    torch.testing.assert_close(outputs(twin, x[:6]), alone)


@pytest.mark.truth("each expert itself")
@pytest.mark.parametrize("affine", [True, False])
def test_branches_know_the_running_statistics_of_their_experts(affine):
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(3, affine=affine) for _ in range(2)]
    base = nn.Sequential(nn.Conv2d(1, 3, 3), norms[0], nn.ReLU(), norms[1]).eval()
    experts, x = experts_of(base, 2), torch.randn(4, 1, 8, 8)
    for expert in experts:
        norm = expert[1]
        norm.running_mean.add_(torch.randn(3))
        norm.running_var.mul_(torch.rand(3) + 0.5)
        expert[3].running_mean.add_(0.7)  # alike in all experts, and not in the base
    twin = TwinMerge(1.0).join(base, experts, lambda _: nowhere(_, 2))
    route = torch.eye(2)[[0, 1, 1, 0]]
    with twin.routed(route):
        got = outputs(twin.model, x)
    for i, expert in enumerate(route.argmax(1).tolist()):
        torch.testing.assert_close(got[i], outputs(experts[expert], x[i : i + 1])[0])


@pytest.mark.truth("the discriminant of the shared model's states, fitted by hand")
def test_the_router_is_fitted_on_the_shared_model():
    torch.manual_seed(0)
    base, x = models.mlp(), torch.randn(60, 8)
    data = [Arrays(x[:20] + 2), Arrays(x[20:])]
    fit, shared = LinearRouter.reading("2", data), TaskArithmetic(0.9)
    twin = TwinMerge(0.5, shared).join(base, experts_of(base, 2), fit)
    model: Any = twin.model
    hidden = outputs(model[:3], torch.cat([d.x for d in data]))
    expected = LinearRouter.of(
        ClassMoments("pooled").observe(hidden, torch.arange(60).ge(20).long()), "2"
    )
    torch.testing.assert_close(twin.router.weight, expected.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(twin.router.bias, expected.bias, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(fit(base).weight, expected.weight, rtol=0.1)


class Exponent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * torch.exp(self.rate)


def test_what_cannot_be_joined_is_refused():
    base = models.mlp()
    with pytest.raises(InputError, match=r"rank in \(0, 1\]"):
        TwinMerge(rank=0.0)
    with pytest.raises(InputError, match="at least one expert"):
        TwinMerge().join(base, [], nowhere)
    with pytest.raises(ShapeError, match=r"an expert's 4\.weight has shape"):
        TwinMerge().join(base, [models.mlp(n_out=5)], nowhere)
    broken = experts_of(base)
    broken[1][2].weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"1 of 256 that are not in 2\.weight of model 2"):
        TwinMerge().join(base, broken, nowhere)
    with pytest.raises(InputError, match="router for 2 experts, got a router for 3"):
        TwinMerge().join(base, experts_of(base, 2), nowhere)
    curved = nn.Sequential(Exponent())
    twin = TwinMerge().join(curved, experts_of(curved), nowhere)
    with pytest.raises(StateError, match="not linear in its parameters"):
        twin(torch.randn(3, 4))
