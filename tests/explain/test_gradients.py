"""Attribution by gradients, against closed forms and completeness."""

from typing import Any

import pytest
import torch
from torch import nn

import sonde
from lm_twin_case import twin
from models import gpt2
from sonde.core import InputError, SiteError
from sonde.explain import (
    Baseline,
    ExpectedGradients,
    GradTimesInput,
    IntegratedGradients,
    Objective,
    Saliency,
    SmoothGrad,
)

ZERO = Baseline("zero")


class Quadratic(nn.Module):
    """``x' A x`` of each row, as the logit of one class."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, x):
        return ((x @ self.a) * x).sum(1, keepdim=True)


def net(seed=0) -> Any:
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.truth("closed form: (x - b) * (A + A') (x + b) / 2, exact with one node")
def test_a_quadratic_form_is_split_by_one_node():
    a, x, base = rows(4, 4), rows(3, 4, seed=1), rows(4, seed=2)
    model = Quadratic(a).double()
    given = Baseline("values", values=base)
    found = IntegratedGradients(1, given).explain(model, x)
    torch.testing.assert_close(found.value, (x - base) * ((x + base) @ (a + a.T) / 2))
    torch.testing.assert_close(found.gap, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    slope = GradTimesInput().explain(model, x)
    torch.testing.assert_close(slope.value, x * (x @ (a + a.T)))


@pytest.mark.truth("closed form: draws of b and t average to (x - b) * (A + A') (x + b) / 2")
def test_references_average_over_points_on_the_way():
    a, x, base = rows(4, 4), rows(3, 4, seed=1), rows(1, 4, seed=2)
    found = ExpectedGradients(base, n=4000).explain(Quadratic(a).double(), x)
    parts = (x - base) * ((x + base) @ (a + a.T) / 2)
    torch.testing.assert_close(found.value, parts, atol=0.15, rtol=0)


@pytest.mark.truth("the saturation toy: 1 - relu(1 - x) at 2")
def test_a_saturated_input_has_no_gradient_but_a_part():
    class Toy(nn.Module):
        def forward(self, x):
            return 1 - torch.relu(1 - x)

    x = torch.tensor([[2.0]], dtype=torch.float64)
    assert float(Saliency().explain(Toy(), x)) == 0.0
    found = IntegratedGradients(300, ZERO).explain(Toy(), x)
    assert float(found) == pytest.approx(1.0, abs=1e-2)
    base = Baseline("values", values=torch.tensor([0.25], dtype=torch.float64))
    rough = IntegratedGradients(1, base).explain(Toy(), x + 0.5)
    assert "incomplete" in rough.flags
    assert float(torch.as_tensor(rough.gap)) == pytest.approx(1.0 - 0.25 - float(rough))


@pytest.mark.parametrize("site", ["input", "0", "2:in"])
def test_parts_add_up_at_every_site_and_rows_do_not_meet(site):
    model, x = net(), rows(4, 5)
    base = Baseline("values", values=SITES[site])
    found = IntegratedGradients(200, base).explain(model, x, site=site)
    assert float(torch.as_tensor(found.gap).abs().max()) < 5e-3
    alone = IntegratedGradients(200, base).explain(model, x[1:2], site=site)
    torch.testing.assert_close(torch.as_tensor(found.value)[1:2], alone.value)


SITES = {"input": torch.zeros(5), "0": torch.full((8,), -0.1), "2:in": torch.zeros(8)}


def test_the_model_is_left_as_it_was():
    model, x = net().train(), rows(2, 5)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    state = torch.get_rng_state()
    SmoothGrad(n=3).explain(model, x, site="1")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.truth("central differences")
def test_each_objective_is_what_it_is_called():
    model, x, step = net(), rows(2, 5), 1e-6
    for kind in ("logit", "log_prob", "prob", "margin"):
        objective = Objective(kind, target=[2, 0])
        found = GradTimesInput().explain(model, x, objective=objective)
        number = objective.fixed(model(x))
        for i in range(5):
            moved = torch.zeros_like(x)
            moved[:, i] = step
            slope = (number.of(model(x + moved)) - number.of(model(x - moved))) / (2 * step)
            torch.testing.assert_close(
                torch.as_tensor(found.value)[:, i], (slope * x[:, i]).detach(), atol=1e-7, rtol=1e-5
            )
        torch.testing.assert_close(found.objective, number.of(model(x)).detach())


def test_noise_and_references_average_to_the_gradient_of_a_linear_model():
    model, x = nn.Linear(4, 2).double(), rows(3, 4)
    references = rows(50, 4, seed=3)
    found = ExpectedGradients(references, n=4000).explain(model, x, objective=Objective(target=1))
    expected = (x - references.mean(0)) * model.weight[1]
    torch.testing.assert_close(found.value, expected.detach(), atol=0.1, rtol=0)
    variance = SmoothGrad(n=8, how="variance").explain(model, x)
    assert not variance.signed
    assert float(torch.as_tensor(variance.value).abs().max()) < 1e-20


@pytest.mark.truth("the log-probabilities of the answer, one forward")
def test_tokens_are_explained_at_their_embedding_and_answers_as_a_whole():
    model = gpt2()
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": mask}
    found = IntegratedGradients(30, ZERO).explain(
        model, inputs, objective=Objective("answer", length=2)
    )
    with torch.no_grad():
        log_p = torch.log_softmax(model(**inputs).logits, -1)
    expected = [log_p[0, 2, 4] + log_p[0, 3, 5], log_p[1, 0, 7] + log_p[1, 1, 8]]
    torch.testing.assert_close(found.objective, torch.stack(expected))
    assert found.conventions["site"].endswith("wte:out")
    assert found.by_place.shape == (2, 5)
    assert float(found.by_place[1, 3:].abs().max()) == 0.0


def test_what_cannot_be_explained_is_said():
    model, x = net(), rows(2, 5)
    with pytest.raises(InputError, match=r"targets in 0\.\.2, got 3"):
        Saliency().explain(model, x, objective=Objective(target=3))
    model.add_module("unused", nn.Identity())
    model.forward = lambda x: nn.Sequential(*list(model.children())[:-1])(x)
    with pytest.raises(SiteError, match="it ran 0 times"):
        Saliency().explain(model, x, site="unused")
    dead = nn.Sequential(nn.Linear(5, 5), nn.Threshold(1e9, 0.0), nn.Linear(5, 2)).double()
    assert float(torch.as_tensor(Saliency().explain(dead, x).value).max()) == 0.0
    with pytest.raises(InputError, match="at least 1"):
        IntegratedGradients(0)
    assert sonde.explain.Saliency is Saliency


def test_of_tokens_the_baseline_with_the_smallest_gap_is_taken():
    """Norms make gradients huge close to zero, so that parts from a zero baseline do not add up."""
    model = twin()
    texts = ("The capital of France is", "The capital of Poland is")
    ids = torch.tensor([model.processor(text)["input_ids"] for text in texts])
    zero, best = (
        IntegratedGradients(steps=20, baseline=base).explain(model, {"input_ids": ids})
        for base in (Baseline("zero"), Baseline())
    )
    missed = []
    for one in (zero, best):
        assert one.gap is not None
        rise = one.gap + torch.as_tensor(one.value).flatten(1).sum(1)
        missed.append((one.gap / rise).abs())
    assert bool((missed[1] <= missed[0]).all())
    assert float(missed[1][0]) < 0.6 * float(missed[0][0])
    assert "by the smallest gap of 3 baselines" in best.conventions["baseline"]
    alone = IntegratedGradients(steps=20).explain(model, {"input_ids": ids[1:]})
    torch.testing.assert_close(alone.value[0], best.value[1], rtol=1e-3, atol=1e-3)
