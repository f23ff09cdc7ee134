"""A saved state goes on in its own training alone: model, teacher, losses, parameters, weights."""

import copy
import inspect
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor, nn

import sonde.train
from sonde.core import InputError, SondeWarning, StateError
from sonde.core.schedule import Ramp
from sonde.tap.training.identity import first_difference, loss_facts
from sonde.tap.training.terms import training
from sonde.train import Align, CauchySchwarzBottleneck, RateReduction

LABEL = torch.tensor([0, 2, 2, 0, 1, 1])
SITE = ("0", "teacher:0")


class Scaled(nn.Module):
    """A loss of a user: an attribute, a buffer, a counter and a memory."""

    def __init__(self, power: float = 2.0, scale: float = 1.5) -> None:
        super().__init__()
        self.power, self.n_calls = power, 0
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.n_calls += 1
        self.seen += x.detach().mean()
        return (self.scale * (x - y)).abs().pow(self.power).mean()


def vectors() -> Tensor:
    return torch.randn(6, 7, generator=torch.Generator().manual_seed(1))


def plain(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 4))


def one_step(path: Any, **changed: Any) -> nn.Module:
    """Train a step and save, or attach what ``changed`` says and load."""
    given: dict[str, Any] = {"loss": Scaled(), "weight": 0.3, "teacher": plain(5), "net": plain(1)}
    given |= {name: value for name, value in changed.items() if name != "loads"}
    net = given["net"]
    with training(
        net, {SITE: given["loss"]}, weight=given["weight"], teacher=given["teacher"]
    ) as terms:
        if "loads" in changed:
            terms.load(path / "terms")
            return net
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        net(vectors())
        terms.loss().backward()
        optimiser.step()
        terms.step()
        terms.save(path / "terms")
    return net


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"net": plain(2)}, "another weights of the model"),
        ({"teacher": plain(6)}, "another weights of the teacher"),
        ({"teacher": "ema"}, "another kind of the teacher"),
        ({"loss": Scaled(power=3.0)}, r"another power of Scaled\(0:out, teacher:0:out\)"),
        ({"loss": Scaled(scale=1.0)}, "another scale of Scaled"),
        ({"loss": Align("mse")}, "was written for Scaled"),
        ({"weight": 0.2}, "another schedule.value of Scaled"),
        ({"weight": Ramp(0.3, 0.0, 9)}, "another schedule of Scaled"),
    ],
)
def test_what_belongs_to_another_training_is_refused(tmp_path, changed, told):
    net = one_step(tmp_path)
    again = {"net": net, "loads": True}
    one_step(tmp_path, **again)
    with pytest.raises(StateError, match=told):
        one_step(tmp_path, **(again | changed))


def test_another_activation_and_another_site_are_refused_and_older_files_warn(tmp_path):
    net, x = plain(1), vectors()
    twin = nn.Sequential(net[0], nn.Tanh(), net[2])
    with training(net, {"0": RateReduction()}) as terms:
        net(x)
        terms.loss(label=LABEL)
        terms.save(tmp_path / "terms")
        state = copy.deepcopy(terms.state_dict())
    with training(twin, {"0": RateReduction()}) as terms:
        with pytest.raises(StateError, match=r"another part \(1 is Tanh\(\) here and was ReLU"):
            terms.load(tmp_path / "terms")
        with pytest.raises(StateError, match=r"another part \(1 is Tanh\(\) here and was ReLU"):
            terms.load_state_dict(state)
    with training(net, {"2": RateReduction()}) as terms:
        with pytest.raises(StateError, match=r"written for RateReduction\(0:out\)"):
            terms.load(tmp_path / "terms")
        del state["origin"]
        with pytest.warns(SondeWarning, match="by an earlier version"):
            terms.load_state_dict(state)


def test_a_parameter_that_the_first_batch_would_replace_is_compared_too():
    given, found = CauchySchwarzBottleneck(widths=(1.0, 2.0, 3.0)), CauchySchwarzBottleneck()
    assert first_difference(loss_facts(found), loss_facts(given)) is not None
    found.widths.copy_(given.widths)
    assert first_difference(loss_facts(found), loss_facts(given)) == "given"


def _others(parameter: inspect.Parameter) -> list[Any]:
    """Return other values of a parameter than its default."""
    kind, now = parameter.annotation, parameter.default
    if get_origin(kind) is Literal:
        return [word for word in get_args(kind) if word != now]
    if isinstance(now, bool):
        return [not now]
    if isinstance(now, int):
        return [now + 1, now + 2]
    if isinstance(now, float):
        return [now + 1, now + 0.25, now / 2 or 0.5]
    return []


NEEDED: dict[str, dict[str, Any]] = {
    "CounterCurrent": {"parts": [nn.Linear(4, 6), nn.Linear(6, 3)], "widths": [6], "n_classes": 3},
    "GenericToSpecific": {"dim": 4, "dim2": 3},
    "InputDecoder": {"width": 4},
    "LearnedViews": {"dim": 4},
    "NextTokens": {"dim": 4, "classes": 3},
    "ScaledWeights": {"directions": {"0": [torch.eye(4)[:, :2]]}},
    "StateWriter": {"n_symbols": 4, "dim": 3},
    "StructuredTransfer": {"dims": [(2, 3), (3, 2)]},
    "Align": {"projector": "mlp", "width": 3, "hidden": 8},
    "Contrast": {"k": 0},
    "Separate": {"penalty": "adversary", "width": 3},
}
"""Parameters of losses that have no default, or without which others do nothing."""


@pytest.mark.slow
@pytest.mark.truth("each constructor's own parameters")
def test_every_parameter_of_every_loss_is_part_of_its_identity():
    kinds = [getattr(sonde.train, name) for name in sonde.train.__all__]
    asked = set()
    for kind in (k for k in kinds if isinstance(k, type) and issubclass(k, nn.Module)):
        least = NEEDED.get(kind.__name__, {})
        before = loss_facts(kind(**least))
        assert first_difference(before, loss_facts(kind(**least))) is None, kind
        for name, parameter in inspect.signature(kind).parameters.items():
            for other in (x for x in _others(parameter) if x != least.get(name)):
                with suppress(InputError, ValueError):
                    made = kind(**{**least, name: other})
                    asked.add((kind, name))
                    where = kind.__name__, name, other
                    assert first_difference(before, loss_facts(made)) is not None, where
    assert len(asked) > 45
