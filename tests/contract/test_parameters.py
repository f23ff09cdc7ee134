"""Every parameter of instruments and layers changes something."""

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
from contract.test_layers import CASES as LAYERS
from sonde.core.errors import SondeError
from sonde.core.instrument import Instrument
from sonde.core.result import Result, Scorer
from sonde.core.shift import Shift, Side
from sonde.core.statistic import Statistic
from sonde.run.instruments.families import FAMILIES
from sonde.stats import Moments, MomentsState
from sonde.testing import LayerCase
from sonde.testing.instrument_laws import fit, make_inputs, score
from sonde.testing.layer_laws import moved, outputs

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
    "Reversible.block": "a module of the user",
    "UnitGate.gamma": "sharpens as ``progress`` moves, which stays 0",
    "UnitGate.fields": "must sum to the width",
    "VectorQuantizer.commitment": "a term of ``aside``, beside the output",
    "WeakAndStrong.dispersion": "read by ``loss`` and ``answer``, beside ``forward``",
    "WeakAndStrong.gate_gradient": "read by ``loss``, beside ``forward``",
    "Attention.centres": "an array of the user",
    "SkipTranscoder.penalty": "grows over minibatches, of which these few rows make too few",
}
"""Parameters whose effect these few rows cannot show, with the reason."""


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
