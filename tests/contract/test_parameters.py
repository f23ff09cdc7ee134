"""Every parameter of instruments, layers, rewrites, losses and attributions changes something."""

import copy
import dataclasses
import importlib
import inspect
from collections.abc import Iterable
from typing import Any, Final, final

import pytest
import torch
from torch import nn

from contract.idle_parameters import idle, plain
from contract.test_explainers import MADE, PER_PLACE
from contract.test_layers import CASES as LAYERS
from contract.test_losses import NAMES as LOSSES
from contract.test_losses import columns
from contract.test_rewrites import CASES as REWRITES
from sonde import train
from sonde.core.errors import SondeError
from sonde.core.instrument import Instrument
from sonde.core.result import Result, Scorer
from sonde.core.shift import Shift, Side
from sonde.core.statistic import Statistic
from sonde.run.instruments.families import FAMILIES
from sonde.stats import Moments, MomentsState
from sonde.testing import ExplainerCase, LayerCase, RewriteCase
from sonde.testing.instrument_laws import fit, make_inputs, score
from sonde.testing.layer_laws import moved, outputs
from sonde.weights import as_model

ROOMS = [importlib.import_module(f"sonde.{family}") for family in FAMILIES]
CLASSES = [
    cls
    for room in ROOMS
    for name in sorted(room.__all__)
    if isinstance(cls := getattr(room, name), type)
    and issubclass(cls, Instrument)
    and not inspect.isabstract(cls)
]
_METRICS = "reads rows of token metrics; these inputs are states"
UNSEEN: Final = {
    "patience": "counts reviews of held-out documents, of which these few rows have none",
    "dead_after": "counts minibatches, of which these few rows make too few",
    "PaDiM.max_positions": "a bound of memory, for images of more positions",
    "PatchCore.b": "weighs the score of a whole image; here rows are scored",
    **dict.fromkeys(
        (f"TokenStatistics.{n}" for n in ("statistic", "direction", "k", "rank")), _METRICS
    ),
    "ConceptMatrixSearch.measure": "asked of rows after the fit",
    "ConditionalSteering.m": "decides on the threshold, which scores do not hold",
    "Leace.products": "rounding of float32 rows; these are in float64",
    "Tcav.m": "more rows than there are, or too few to be taken",
    "LatentLoop.start": "generates; forward alone reads the text",
    **dict.fromkeys(
        (f"LatentLoop.{n}" for n in ("c", "a_range", "temperature", "sample")),
        "mixes latent steps, which need a mask of the places where they stand",
    ),
    "ConditionalLatent.target": "width of an answer, which ``forward`` takes beside the input",
    **dict.fromkeys(("Reversible.block", "Experts.net"), "a module of the user"),
    "UnitGate.gamma": "sharpens as ``progress`` moves, which stays 0",
    "UnitGate.fields": "must sum to the width",
    "VectorQuantizer.commitment": "a term of ``aside``, beside the output",
    "WeakAndStrong.dispersion": "read by ``loss`` and ``answer``, beside ``forward``",
    "WeakAndStrong.gate_gradient": "read by ``loss``, beside ``forward``",
    **dict.fromkeys(("WeakAndStrong.weak", "WeakAndStrong.strong"), "a module of the user"),
    "Attention.centres": "an array of the user",
    "SkipTranscoder.penalty": "grows over minibatches, of which these few rows make too few",
    "gather": "asked of several ranks, in tests/train/test_losses_of_ranks.py",
    **dict.fromkeys(
        ("Align.resample", "Align.heads", "Align.prefix"),
        "of maps, heads and tokens; here are rows",
    ),
    "LatentTerms.seed": "draws samples where none are given",
    **dict.fromkeys(
        (f"MaskedFeatures.{n}" for n in ("how", "positions", "ratio", "times", "in_forward")),
        "of masks that the loss draws; here they are given",
    ),
    "Contrast.radius": "of places, which these rows lack",
    "NextTokens.head": "a module of the user",
    "special": "of tokens; here are pictures",
    "groups": "an array of the user",
    "MetaSaliency.method": "an explainer of the user",
    "Align.grids": "of maps; here are rows",
    **dict.fromkeys(
        ("MaskedFeatures.head", "MaskedFeatures.rebuilder"), "a module of the user, or its name"
    ),
    **dict.fromkeys(
        (
            f"{edit}.{n}"
            for edit in ("RankOneEdit", "BatchEdit")
            for n in ("fact", "kept", "steps", "rate", "divergence", "decay", "largest")
        ),
        "of the search for the shift, which is given here",
    ),
    "FinePrune.budget": "a net of random weights has no accuracy to lose",
    **dict.fromkeys(
        ("FinePrune.seed", "GradientAscent.seed", "NegPreference.seed"),
        "order of minibatches, of which these rows make one",
    ),
    "BlockRounding.sweeps": "the search comes to rest in its first sweep here",
    "OnceForAllBits.corrections": "arrays of the user",
    "Retrain.make": "a function of the user",
}
"""Parameters whose effect these few rows cannot show, with the reason."""


FURTHER: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "Align": ({"projector": "mlp", "width": 4, "hidden": 5},),
    "Contrast": ({"memory": 16},),
    "LearnedViews": ({"dim": 4, "width": 6, "margin": -0.9},),
    "Separate": ({"penalty": "adversary", "width": 4, "hidden": 5},),
    "AdversarialMask": ({"steps": 8, "rate": 2.0, "threshold": 0.255},),
}
"""Parameters to start from besides the examples: where others have an effect."""


def kinds(methods: Iterable[Any]) -> list[type[Any]]:
    """Return the classes of methods by name, each once."""
    return sorted({type(method) for method in methods}, key=lambda cls: cls.__name__)


def without(found: Any, instrument: Instrument) -> str:
    """Return a result as text, without the instrument itself, whose parameters it may hold."""
    own = {f.name for f in dataclasses.fields(instrument)}  # type: ignore[arg-type]
    kept = {k: v for k, v in plain(found).items() if k not in own | {"method", "conventions"}}
    return repr(kept)


def of_instrument(instrument: Instrument) -> tuple[str, ...]:
    """Return the reading, and the result with its scores or its comparison."""
    inputs = make_inputs()
    reading = repr(sorted(instrument.reading().items(), key=str))
    try:
        found: Result = fit(instrument, inputs)
        if isinstance(instrument, Shift) and isinstance(found, Side):
            other = fit(instrument, {**inputs, "x": inputs["c"] + 0.3})
            return reading, without(instrument.compare(found, other), instrument)
        if isinstance(found, Scorer):
            return reading, repr(plain(score(instrument, found, inputs)))
        return reading, without(found, instrument)
    except SondeError as error:
        return reading, type(error).__name__


@pytest.mark.slow
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_of_instruments(cls: type[Instrument]) -> None:
    assert idle(cls, cls.examples, of_instrument, UNSEEN) == []


def of_layer(layer: Any, case: LayerCase) -> Any:
    """Return the names of the weights, and outputs and gradients, new and with moved weights."""
    found: list[Any] = [sorted(layer.state_dict()), layer.symmetry, layer.causal, layer.insertable]
    inputs = dataclasses.replace(case, layer=layer).drawn()
    for own in (copy.deepcopy(layer).double(), moved(layer)):
        for training in (False, True):
            found.append(plain(outputs(own.train(training), inputs)))
        given = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        made = own.train()(*given)
        found.append(plain({name: b.clone() for name, b in own.named_buffers()}))
        made = [made] if isinstance(made, torch.Tensor) else [y for y in made if torch.is_tensor(y)]
        total = sum(y.square().sum() for y in made if y.requires_grad)
        if isinstance(total, torch.Tensor):
            leaves = [*(x for x in given if x.requires_grad), *own.parameters()]
            leaves = [x for x in leaves if x.requires_grad]
            found.append(plain(torch.autograd.grad(total, leaves, allow_unused=True)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("cls", kinds(c.layer for c in LAYERS), ids=lambda cls: cls.__name__)
def test_of_layers(cls: type[nn.Module]) -> None:
    mine = [case for case in LAYERS if type(case.layer) is cls]
    given = [case.layer.given for case in mine]
    assert idle(cls, given, lambda layer: of_layer(layer, mine[0]), UNSEEN) == []


def of_rewrite(rewrite: Any, case: RewriteCase) -> Any:
    """Return what a rewrite asks for, and what its plan makes of the weights."""
    model = as_model(case.model())
    plan = dataclasses.replace(case, rewrite=rewrite).planned(model)
    kept = {f.name: plain(getattr(plan, f.name)) for f in dataclasses.fields(plan)
            if f.name not in ("method", "parameters")}  # fmt: skip
    return repr(rewrite.reads()), repr(kept)


@pytest.mark.slow
@pytest.mark.parametrize("cls", kinds(c.rewrite for c in REWRITES), ids=lambda cls: cls.__name__)
def test_of_rewrites(cls: type[Any]) -> None:
    mine = [case for case in REWRITES if type(case.rewrite) is cls]
    given = [
        {f.name: getattr(case.rewrite, f.name) for f in dataclasses.fields(case.rewrite) if f.init}
        for case in mine
    ]
    given = [*given[:4], *FURTHER.get(cls.__name__, ())]
    assert idle(cls, given, lambda rewrite: of_rewrite(rewrite, mine[0]), UNSEEN) == []


def of_loss(loss: Any, parameters: dict[str, Any]) -> Any:
    """Return the value of a loss, the gradients of rows and weights, and what it holds then."""
    given = columns(loss, parameters)
    loss(**{name: x.float() if x.is_floating_point() else x for name, x in given.items()})
    getattr(loss, "step", int)()
    loss = loss.double()  # what is made at the first call, or kept for the next one, counts
    turned = {name: x.roll(1, 0) if x.is_floating_point() else x for name, x in given.items()}
    value = loss(**turned)
    leaves = [x for x in (*given.values(), *loss.parameters()) if x.requires_grad]
    slopes = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else ()
    return plain([value, slopes, sorted(loss.state_dict()), loss.batching])


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_of_losses(name: str) -> None:
    cls = getattr(train, name)
    examples = [*cls.examples, *FURTHER.get(name, ())]
    found = [idle(cls, [given], lambda loss, own=given: of_loss(loss, own), UNSEEN)
             for given in examples]  # fmt: skip
    idle_names = sorted(set.intersection(*map(set, found)))
    assert idle_names == [], idle_names


def of_attribution(explainer: Any) -> Any:
    """Return an attribution at the first layer of a small net."""
    return plain(ExplainerCase(explainer, asked={"site": "0"}).plain)


@pytest.mark.slow
@pytest.mark.parametrize("cls", PER_PLACE, ids=lambda cls: cls.__name__)
def test_of_attributions(cls: type[Any]) -> None:
    given = vars(MADE.get(cls) or cls())
    own = {name: given[name] for name in inspect.signature(cls).parameters if name in given}
    assert idle(cls, [own], of_attribution, UNSEEN) == []


@final
@dataclasses.dataclass(frozen=True)
class Idles(Instrument):
    """The mean of all rows, with a parameter that nobody reads."""

    seed: int = 0

    def reads(self) -> dict[str, Statistic[Any]]:
        return {"moments": Moments("diag")}

    def result(self, moments: MomentsState) -> Result:
        return Result(value=moments.mean.mean(), n=moments.n)


def test_a_parameter_that_nobody_reads_is_seen() -> None:
    assert idle(Idles, [], of_instrument) == ["seed"]


class Bounded(nn.Module):
    """A loss, with a bound that nobody reads."""

    batching = "mean"

    def __init__(self, weight: float = 1.0, bound: float = 2.0) -> None:
        super().__init__()
        self.weight, self.bound = weight, bound

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x.square().mean()


def test_a_parameter_of_a_loss_that_nobody_reads_is_seen() -> None:
    assert idle(Bounded, [{}], lambda loss: of_loss(loss, {})) == ["bound"]
