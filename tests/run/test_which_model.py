"""Ways to change what a model computes without changing its weights, against every command."""

import copy
import types
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tools.other_models import table
from torch import nn

import sonde
from narrow import expect
from sonde import Guard
from sonde.core import StateError, StoreError
from sonde.core.errors import SondeWarning
from sonde.detect import Mahalanobis
from sonde.files.part_facts import certain_differences
from sonde.measure import Covariance
from sonde.run.fitting.fit import fit
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score
from sonde.serving.served import ServedModel
from sonde.tap import parts
from sonde.tap.training.identity import MODEL, Origin

DRAW = torch.Generator().manual_seed(0)
ROWS = torch.randn(60, 6, generator=DRAW)


class Slotted:
    __slots__ = ("k",)

    def __init__(self, k):
        self.k = k

    def times(self, x):
        return x * self.k


def options(model):
    """Assign and change attributes under names that the forward reads; nothing calls this."""
    model.act = model.curve = model.slotted = model.bound = None
    model.options["shift"] = 0.0


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        self.curve, self.slotted, self.bound = np.ones(2), Slotted(1.0), Slotted(1.0).times
        self.options = {"shift": 0.1}

    def forward(self, x):
        x = self.bound(self.a(x)) * float(self.curve[1]) * self.slotted.k
        return self.b(x + self.options["shift"])


class Net(nn.Module):
    rate = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 4)
        self.act, self._gain, self.powers, self.options = F.relu, 1.5, [1, 2], {"shift": 0.1}
        self.seen, self.memo, self.n = [0], dict[int, int](), 0
        self.register_buffer("off", torch.zeros(16), persistent=False)

    def scaled(self, x):
        return x * 1.0

    def forward(self, x):
        self.n, self.memo[len(self.memo)] = self.n + 1, len(x)
        self.seen.append(self.n)
        x = self.act(self.norm(self.a(x))) * self._gain + self.options["shift"] + self.off
        return self.b(self.scaled(sum(x**p for p in self.powers)) * self.rate)


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def odd() -> Odd:
    torch.manual_seed(0)
    return Odd().eval()


def packed(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)


def set_to(name, value, model):
    setattr(model, name, value)
    return model


def hooked(model):
    model.b.register_forward_hook(lambda _m, _a, out: out * 2)
    return model


def patched(model):
    old = model.b.forward
    model.b.forward = lambda x: old(x) * 3
    return model


def with_method(model):
    model.scaled = types.MethodType(lambda self, x: x * 2, model)
    return model


def shifted(model):
    model.off += 1
    return model


def of_options(model):
    model.options["shift"] = 0.9
    return model


CERTAIN = {
    "function": (net, partial(set_to, "act", F.gelu), "act is .*gelu here and was F.relu"),
    "private number": (net, partial(set_to, "_gain", 3.0), "_gain is 3.0 here and was 1.5"),
    "packed weights": (packed, lambda _: packed(3), "_packed_params is packed"),
}
UNCERTAIN = {
    "list": (net, partial(set_to, "powers", [1, 3]), r"powers is list\(1, 3\)"),
    "dict": (net, of_options, "options is dict"),
    "lambda": (net, partial(set_to, "act", lambda x: x.relu() * 2), "act is .*lambda"),
    "hook": (net, hooked, "b.forward_hooks is hooked"),
    "patched forward": (net, patched, "b.forward is patched"),
    "method": (net, with_method, "scaled is with_method"),
    "array": (odd, partial(set_to, "curve", np.full(2, 3.0)), r"curve is float64 \(2,\)"),
    "slots": (odd, partial(set_to, "slotted", Slotted(3.0)), r"slotted is Slotted\(k=3.0\)"),
    "bound": (odd, partial(set_to, "bound", Slotted(3.0).times), r"of Slotted\(k=3.0\)"),
    "name of a function": (odd, of_options, r"options is dict\('shift': 0.9\)"),
    "unsaved buffer": (net, shifted, "None of its parts"),
}


def read(model, rows=ROWS):
    return sonde.read(
        model,
        rows,
        sites="a" if isinstance(model, Net | Odd) or "_orig_mod" in model._modules else "*0",
    )


@pytest.mark.truth("a model whose function was changed on purpose, in ways that its weights hide")
@pytest.mark.parametrize("way", [*CERTAIN, *UNCERTAIN])
def test_a_change_of_the_function_is_refused_by_name(way, tmp_path):
    build, change, said = (CERTAIN | UNCERTAIN)[way]
    model = build()
    probe = fit(Mahalanobis(), read(model), calibrate=0.3, progress=False)
    plain = fit(Covariance(), read(model), progress=False)
    fit(Covariance(), read(model), progress=False, directory=tmp_path / "run")
    origin = Origin(copy.deepcopy(model) if way != "packed weights" else model, None, []).facts()
    for ask in (lambda m: Guard(m, probe, alpha=None), lambda m: score(probe, read(m, ROWS + 1))):
        ask(model)
    model = change(model)
    for ask in (
        lambda: score(probe, read(model, ROWS + 1), progress=False),
        lambda: Guard(model, probe, alpha=None),
        lambda: calibrate(probe, read(model, ROWS + 1), progress=False),
        lambda: ServedModel(model, probe),
    ):
        with pytest.raises(StateError, match=said):
            ask()
    if way == "unsaved buffer":
        return
    told = pytest.raises(StateError, match=said)
    softly = pytest.warns(SondeWarning, match=said)
    with told if way in CERTAIN else softly:
        sonde.merge(plain, fit(Covariance(), read(model, ROWS + 1), progress=False))
    with pytest.raises(StoreError, match=said):
        fit(Covariance(), read(model), progress=False, directory=tmp_path / "run")
    with pytest.raises(StateError, match="another") if way in CERTAIN else softly:
        Origin(model, None, []).check({MODEL: origin[MODEL], "the teacher": {}}, "x", weights=True)


@pytest.mark.truth("the same function, called otherwise or beside other hooks")
def test_what_does_not_change_the_function_passes():
    model = net()
    probe = fit(Mahalanobis(), read(model), calibrate=0.3, progress=False)
    looked, again = net(), net()
    looked.a.register_forward_hook(lambda *_: None)
    looked.note = {"of": "nobody"}
    again(ROWS)
    compiled = expect(nn.Module, torch.compile(net(), backend="eager"))
    for other in (looked, again, compiled, copy.deepcopy(model), net().train()):
        Guard(other, probe, alpha=None)
        score(probe, read(other, ROWS + 1), progress=False)
    with pytest.warns(SondeWarning, match="the model runs in bfloat16"):
        Guard(net().bfloat16(), probe, alpha=None)


def test_a_model_without_fixed_states_has_no_behaviour():
    class Drawn(Net):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    model = Drawn().eval()
    stream = sonde.read(model, ROWS, sites="a", check=False)
    probe = fit(Mahalanobis(), stream, calibrate=0.3, progress=False)
    assert "behaviour" not in probe.header
    Guard(model, probe, alpha=None)


@pytest.mark.truth("PEFT's own names of the adapters that act")
def test_an_adapter_that_acts_is_named():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)),
        peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False),
        "one",
    )
    model.add_adapter("two", peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))
    model.set_adapter("one")
    probe = fit(Mahalanobis(), read(model.eval()), calibrate=0, progress=False)
    first = parts(model)
    model.set_adapter("two")
    with pytest.raises(StateError, match="adapter 'two' x 4 is active here, the fit had 'one' x 4"):
        score(probe, read(model, ROWS + 1), progress=False)
    model.set_adapter("one")
    with Guard(model, probe, alpha=None), torch.no_grad():
        model(ROWS)
        model.set_adapter("two")
        with pytest.warns(SondeWarning, match="adapter 'two' x 4 is active, and was 'one' x 4"):
            model(ROWS)
    model.set_adapter("one")
    assert not certain_differences(parts(model), first)
    expect(nn.Module, model).base_model.model[0].scaling["one"] *= 2
    assert parts(model)["active adapter"] == "'one' x 8"
    model.merge_adapter()
    assert "'one' (merged)" in parts(model)["active adapter"]


@pytest.mark.slow
@pytest.mark.truth("a changed function behind equal weights, and every function that takes a model")
def test_no_function_takes_another_model_for_the_fitted_one():
    found = {job: cells for job, cells in table().items() if job != "explain_answers(directory=)"}
    cells = [cell.partition(":")[0] for row in found.values() for cell in row.values()]
    assert {*cells} == {"named", "refused", "-"}
    assert cells.count("refused") == 3, "a coded stream has room for a hash alone"
    assert cells.count("-") == 10, "packed weights are neither calibrated on nor differentiated"
