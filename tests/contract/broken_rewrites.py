"""Broken twins of rewrites and of merge rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sonde.core.inputs import Inputs, Model
from sonde.weights import Change, Examples, Exchange, MergeRule, Rewrite, RewritePlan
from sonde.weights.live import as_model

NAMES = ("11.weight", "11.bias")
TIED = "6.weight"


@final
@dataclass(frozen=True)
class Halves(Rewrite):
    """Halves the last layer of the small net; ``fault`` says how it is broken."""

    fault: str = ""

    def reads(self) -> dict[str, Examples]:
        """Read examples, which it looks at no further."""
        optional = self.fault == "takes anything"
        return {"other" if self.fault == "names" else "clean": Examples(optional=optional)}

    def planned(self, model: Model, clean: Inputs | None = None, **_: Any) -> RewritePlan:
        """Return the halves."""
        module, changes = model.module, dict[str, Change]()
        names = (*NAMES, TIED) if self.fault == "tie" else NAMES
        for name in names:
            half = module.state_dict()[name] / 2
            if self.fault == "random":
                half = half + 0.01 * torch.rand(half.shape)
            if self.fault == "half" and half.dtype == torch.bfloat16:
                half = half / 0
            changes[name] = Exchange(half)
        plan = RewritePlan.of(model, changes, "halves")
        if self.fault == "writes":
            bias: Any = module.get_submodule("11").bias
            bias.data.add_(1.0)
        if self.fault == "trains":
            module.train()
        if self.fault == "draws":
            torch.rand(1)
        if self.fault == "forgets":
            return RewritePlan(plan.changes, {})
        if self.fault == "folds":
            return Thirds(plan.changes, plan.made_for)
        if self.fault == "tie":
            return RewritePlan(plan.changes, plan.made_for)
        return plan


@final
@dataclass(frozen=True)
class Trusts(Rewrite):
    """Plans without a look at the weights."""

    def reads(self) -> dict[str, Examples]:
        """Read nothing."""
        return {}

    def plan(self, model: Any, fitted: Any = None) -> RewritePlan:
        """Return the plan at once."""
        return self.planned(as_model(model))

    def planned(self, model: Model, *_: Any, **__: Any) -> RewritePlan:
        """Return no change."""
        return RewritePlan.of(model, {}, "trusts")


@final
@dataclass(frozen=True)
class Copies(RewritePlan):
    """A plan that folds into a model that shares nothing."""

    def fold(self, model: Any) -> Any:
        """Return a whole copy."""
        import copy

        return copy.deepcopy(super().fold(model))


@final
@dataclass(frozen=True)
class Thirds(RewritePlan):
    """A plan that folds other values than it saves."""

    def fold(self, model: Any) -> Any:
        """Return a model with two thirds of the planned values."""
        new = super().fold(model)
        new.get_parameter(NAMES[0]).data.mul_(2 / 3)
        return new


@final
@dataclass(frozen=True)
class CopiesAll(Rewrite):
    """Halves the last layer, and copies all others."""

    def planned(self, model: Model, **_: Any) -> RewritePlan:
        """Return the plan."""
        half = Exchange(model.module.state_dict()[NAMES[0]] / 2)
        plan = RewritePlan.of(model, {NAMES[0]: half})
        return Copies(plan.changes, plan.made_for)


@final
@dataclass(frozen=True, eq=False)
class Cancels(Change):
    """Undoes itself on the disk: what is written is what was there."""

    def _of(self, old: Tensor) -> Tensor:
        return old


@final
@dataclass(frozen=True)
class DoesNothing(Rewrite):
    """Plans a change of a tensor to itself."""

    def planned(self, model: Model, **_: Any) -> RewritePlan:
        """Return the plan."""
        return RewritePlan.of(model, {NAMES[0]: Cancels()})


@final
@dataclass(frozen=True)
class MeanOf(MergeRule):
    """The mean of the models; ``fault`` says how it is broken."""

    fault: str = ""

    def _merged(self, name: str, base: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the mean."""
        total = torch.stack(list(others)).mean(0)
        if self.fault == "random":
            total = total + torch.rand(total.shape)
        if self.fault == "in place":
            others[0].zero_()
        if self.fault == "widens":
            return total.double()
        return total / 2 if self.fault == "shrinks" else total
