"""Every explainer and judge against the laws of their kinds, and twins that break them."""

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import sonde
import sonde.explain
from models import cnn, gpt2, mlp
from sonde.core import Explainer, Judge, Result
from sonde.explain import (
    ActivationMax,
    ActivationPatching,
    AttributionPatching,
    Attributor,
    CausalGraph,
    CircuitSearch,
    ClassSensitivity,
    Comprehensiveness,
    Deletion,
    DiffRoar,
    EdgeAttribution,
    EdgePatching,
    ExpectedGradients,
    FaithfulnessViolation,
    FaultLines,
    GradTimesInput,
    Infidelity,
    Insertion,
    InterchangeIntervention,
    LogitLens,
    MaskSensitivity,
    MeanAttribution,
    NeuronLens,
    Objective,
    Roar,
    SanityChecks,
    SensitivityN,
    Shapley,
    SmoothGrad,
    SubspacePatch,
    Sufficiency,
    SurrogateRules,
)
from sonde.explain.attention import AttentionMap
from sonde.testing import ExplainerCase, check, laws_of

FAMILY: list[Any] = [getattr(sonde.explain, name) for name in sonde.explain.__all__]
KINDS: list[Any] = [k for k in FAMILY if isinstance(k, type) and issubclass(k, Attributor)]
MADE = {
    ExpectedGradients: ExpectedGradients(torch.zeros(3, 4, 4, 4), n=6),
    Shapley: Shapley(n_orders=1),
    SmoothGrad: SmoothGrad(n=6),
}
PER_PLACE = [k for k in KINDS if k is not Attributor and not issubclass(k, AttentionMap)]
ATTENTIONS = [k for k in KINDS if issubclass(k, AttentionMap)]


@pytest.mark.parametrize("kind", PER_PLACE, ids=lambda k: k.__name__)
def test_attributions_at_a_layer(kind):
    check(ExplainerCase(MADE.get(kind) or kind(), asked={"site": "0"}))


@pytest.mark.parametrize("kind", ATTENTIONS, ids=lambda k: k.__name__)
def test_maps_of_attention(kind):
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    module = sonde.load("sonde:digits").module
    case = ExplainerCase(kind(), module, x, {"site": "vit.layers.1"})
    check(case, without={"inputs", "output", "half"})


OTHERS = {
    k
    for k in FAMILY
    if isinstance(k, type) and issubclass(k, Explainer | Judge) and not inspect.isabstract(k)
} - {*KINDS}
RETRAIN = {Roar, DiffRoar}  # they call a function of the user that trains models
DRAW = torch.Generator().manual_seed(2)
X, OTHER_X = torch.randn(2, 6, 8, generator=DRAW)
WORDS, OTHER_WORDS = torch.randint(0, 50, (2, 3, 7), generator=DRAW)
PICTURES = torch.randn(8, 1, 8, 8, generator=DRAW)
CONTRAST = {"corrupt": OTHER_X, "objective": Objective("logit", target=1)}
AT = {"site": "0"}


def cases() -> list[ExplainerCase]:
    """Return every explainer that is no attribution, and every judge, with what it is asked."""
    net, language = mlp(), gpt2()
    slopes = GradTimesInput().explain(net, X)
    rows = {
        ActivationMax(steps=3): {"site": "0", "unit": 1},
        ActivationPatching(): {**CONTRAST, **AT},
        AttributionPatching(): {**CONTRAST, **AT},
        EdgePatching(): CONTRAST,
        EdgeAttribution(): CONTRAST,
        CircuitSearch(): CONTRAST,
        CausalGraph(): {"site": ["0", "2"], "target": 0},
        FaultLines(steps=20): {"concepts": torch.eye(8)},
        InterchangeIntervention(): {"source": OTHER_X, "expected": torch.arange(6) % 4, **AT},
        MeanAttribution(GradTimesInput()): AT,
        SubspacePatch(): {
            **CONTRAST, **AT, "direction": torch.randn(16, generator=DRAW),
            "readers": net.get_parameter("2.weight").detach().clone(),
        },
    }  # fmt: skip
    judges = [
        Deletion(), Insertion(), Comprehensiveness(), Sufficiency(), FaithfulnessViolation(),
        Infidelity(), SensitivityN(),
    ]  # fmt: skip
    region = torch.zeros(8, 8, 8, dtype=torch.bool)
    region[:, 2:5, 2:5] = True
    return [
        *(ExplainerCase(method, net, X, asked) for method, asked in rows.items()),
        ExplainerCase(SurrogateRules(k=2, depth=2), net, torch.randn(40, 8, generator=DRAW)),
        ExplainerCase(LogitLens(), language, WORDS),
        ExplainerCase(NeuronLens(), language, None, {"site": "transformer.h.0.mlp.c_fc"}),
        *(ExplainerCase(judge, net, X, {}, slopes) for judge in judges),
        ExplainerCase(ClassSensitivity(), net, X, {}, GradTimesInput()),
        ExplainerCase(SanityChecks(), net, X, {}, GradTimesInput()),
        ExplainerCase(MaskSensitivity(), cnn(), PICTURES, {"labels": torch.arange(8) % 2}, region),
    ]


def test_every_other_explainer_and_judge_has_a_case():
    assert {type(case.explainer) for case in cases()} == OTHERS - RETRAIN


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=lambda case: type(case.explainer).__name__)
def test_other_explainers_and_judges(case):
    """Most find one thing of all inputs, or in a second run: no law on an example alone."""
    unmet = {"inputs"} if isinstance(case.explainer, FaultLines) else {"alone", "inputs"}
    check(case, without=unmet & {law.name for law in laws_of(case)})


@dataclass(frozen=True)
class Slopes(Explainer):
    """Gradients, with a fault."""

    fault: str = ""

    def explain(self, model: Any, inputs: Any, *, objective: Any = None) -> Result:
        several = inputs if isinstance(inputs, tuple) else (inputs,)
        x = several[0].clone().requires_grad_(True)
        rest = several[1:]
        if self.fault == "inputs":
            rest = tuple(y[:1].expand_as(y) for y in rest)
        if self.fault == "untouched":
            model.register_forward_hook(lambda *_: None)
        out = model(x, *rest)
        if isinstance(out, dict):
            name = "aside" if self.fault == "output" else objective.output
            out = out[name]
        (slope,) = torch.autograd.grad(out[:, 0].float().sum(), x)
        value = slope.float()
        if self.fault == "alone":
            value = value - value.mean(0)
        if self.fault == "again":
            value = value + torch.rand(())
        if self.fault == "half" and x.dtype == torch.bfloat16:
            value = value / 2
        return Result(value=value, n=len(x), direction="none")


@dataclass(frozen=True)
class MeanAnswer(Judge):
    """The mean answer, or what breaks a law of judges by its name."""

    fault: str = ""

    def judge(self, model: Any, inputs: Any, explanation: Any, /, *_: Any, **asked: Any) -> Result:
        with torch.no_grad():
            found = model(inputs).double().mean()
        if self.fault == "again":
            found = found + torch.rand(())
        if self.fault == "untouched":
            model.train(not model.training)
        if self.fault == "half" and inputs.dtype == torch.bfloat16:
            found = 2 * found
        return Result(value=float(found), n=len(inputs), direction="none")


NAMES = ("alone", "again", "untouched", "half", "inputs", "output")
JUDGED = ("again", "untouched", "half")


@pytest.mark.parametrize("fault", NAMES)
def test_each_law_holds_for_a_twin_without_its_fault(fault):
    (law,) = [x for x in laws_of(ExplainerCase(Slopes(fault))) if x.name == fault]
    law.hold(ExplainerCase(Slopes()))


@pytest.mark.parametrize("fault", JUDGED)
def test_a_good_judge_keeps_its_laws(fault):
    (law,) = [x for x in laws_of(ExplainerCase(MeanAnswer(fault))) if x.name == fault]
    law.hold(ExplainerCase(MeanAnswer()))
