"""The laws of explainers: functions that raise AssertionError if an explainer breaks them."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sonde.core.explainer import Explainer, Judge
from sonde.explain import Objective

HALF = 0.15
"""Of a norm: how far an explanation in bfloat16 may be from that in single precision."""


@dataclass(frozen=True, eq=False)
class ExplainerCase:
    """An explainer, or a judge of explanations, with a model and inputs for it.

    Parameters
    ----------
    explainer : Explainer or Judge
        Explainer or judge to test.
    module : nn.Module, optional
        A model with parameters in single precision and one input tensor; by default a small net of
        pictures.
    inputs : Tensor or None, optional
        None for a method that looks at weights alone.
    asked : dict, optional
        Further arguments of ``explain`` or ``judge``, by name.
    explanation : Result or Explainer, optional
        The explanation that a judge tests, or its explainer.
    """

    explainer: Explainer | Judge
    module: nn.Module = field(default_factory=lambda: _net())
    inputs: Any = field(default_factory=lambda: _pictures())
    asked: Mapping[str, Any] = field(default_factory=dict[str, Any])
    explanation: Any = None

    def __repr__(self) -> str:
        return repr(self.explainer)

    def value(self, module: nn.Module, inputs: Any, **other: Any) -> Tensor:
        """Return the value of the explanation; an explainer gives an entry for each example."""
        asked = {**self.asked, **other}
        if isinstance(self.explainer, Judge):
            result = self.explainer.judge(module, inputs, self.explanation, **asked)
        else:
            result = self.explainer.explain(module, inputs, **asked)
        return torch.as_tensor(result.value).detach().float()

    @property
    def plain(self) -> Tensor:
        """Value of the explanation for the original model and inputs."""
        return self.value(self.module, self.inputs)


class _Wrapped(nn.Module):
    """A model wrapper that multiplies its two inputs, or returns its answer in a dict."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        if scale is not None:
            return self.inner(x * scale)
        answer = self.inner(x)
        return {"aside": -answer.flip(-1), "answer": answer}


def law_alone(case: ExplainerCase) -> None:
    """An example has equal explanations alone and in a batch."""
    alone = torch.cat([case.value(case.module, x[None]) for x in case.inputs])
    _check_same(alone, case.plain, "alone and in a batch")


def law_again(case: ExplainerCase) -> None:
    """Two runs give equal results."""
    same = torch.allclose(case.plain, case.plain, rtol=0.0, atol=0.0, equal_nan=True)
    assert same, "two runs differ"


def law_untouched(case: ExplainerCase) -> None:
    """The model, its hooks, mode and gradients, and the random generators do not change."""
    before = {name: x.clone() for name, x in case.module.state_dict().items()}
    hooks, mode, draws = _hooks(case.module), _modes(case.module), _generators()
    _ = case.plain
    after = case.module.state_dict()
    moved = [name for name, x in before.items() if not torch.equal(after[name], x)]
    assert not moved, f"the model's {', '.join(moved)} changed"
    assert _hooks(case.module) == hooks, "hooks were left behind"
    assert _modes(case.module) == mode, "another mode of training"
    assert all(p.grad is None for p in case.module.parameters()), "gradients were left behind"
    assert _generators() == draws, "another random state"


def law_half(case: ExplainerCase) -> None:
    """An explanation in bfloat16 is close to the explanation in single precision."""
    wanted, half = case.plain, copy.deepcopy(case.module).bfloat16()
    asked = {name: _half(value) for name, value in case.asked.items()}
    narrow = case.value(half, _half(case.inputs), **asked)
    off = float((narrow - wanted).norm() / wanted.norm())
    assert off < HALF, f"off by {off:.2g} of its size in bfloat16"


def law_inputs(case: ExplainerCase) -> None:
    """A model of several inputs has an attribution for each input, alone and in a batch."""
    scale = 1.0 + torch.arange(len(case.inputs)).reshape(-1, *[1] * (case.inputs.ndim - 1))
    both = (case.inputs / scale, scale.expand_as(case.inputs).contiguous())
    at = _site(case)
    if at:  # at a hidden site nothing is told apart
        _check_same(case.value(_Wrapped(case.module), both, **at), case.plain, "with two inputs")
        return
    wanted = torch.cat(
        [case.value(_Wrapped(case.module), (x[None], s[None])) for x, s in zip(*both, strict=True)]
    )
    _check_same(case.value(_Wrapped(case.module), both), wanted, "with two inputs")


def law_output(case: ExplainerCase) -> None:
    """A named output has the explanation that it would have as the only output."""
    goal = replace(case.asked.get("objective", Objective()), output="answer")
    named = case.value(_Wrapped(case.module), case.inputs, **_site(case), objective=goal)
    _check_same(named, case.plain, "for a named output")


def takes_objective(case: ExplainerCase) -> bool:
    """Return whether a method is an explainer that takes an ``objective``."""
    method = case.explainer
    is_explainer = isinstance(method, Explainer)
    return is_explainer and "objective" in inspect.signature(method.explain).parameters


def _check_same(found: Tensor, wanted: Tensor, when: str) -> None:
    assert found.shape == wanted.shape, f"shape {tuple(found.shape)} of {tuple(wanted.shape)}"
    gap = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    assert gap < 1e-3, f"{when}: off by {gap:.2g} of the largest entry"


def _site(case: ExplainerCase) -> dict[str, str]:
    """Return the name of the case's site in the wrapped model."""
    site = str(case.asked.get("site", "input"))
    return {} if site == "input" else {"site": f"inner.{site}"}


def _hooks(module: nn.Module) -> list[int]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [len(getattr(m, kind)) for m in module.modules() for kind in kinds]


def _modes(module: nn.Module) -> list[bool]:
    own = [m.training for m in module.modules()]
    return own + [p.requires_grad for p in module.parameters()]


def _generators() -> tuple[Any, ...]:
    _, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), np.asarray(keys).tolist(), rest


def _half(value: Any) -> Any:
    """Return real numbers in bfloat16, and other values unchanged."""
    is_real = isinstance(value, Tensor) and value.is_floating_point()
    return value.bfloat16() if is_real else value


def _net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(36, 3)
        )


def _pictures() -> Tensor:
    return torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
