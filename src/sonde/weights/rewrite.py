"""A change of weights: planned from what was fitted, looked at, then folded into a new model."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sonde.core.errors import StateError
from sonde.core.hashing import tensor_key
from sonde.core.inputs import Model
from sonde.weights.change import Change


@dataclass(frozen=True)
class RewritePlan:
    """Which tensors of a model change, and how. It changes nothing by itself.

    Parameters
    ----------
    changes : mapping of str to Change
        By the parameter's name in ``model.state_dict()``.
    made_for : mapping of str to str
        Hash of each tensor that the plan was made for.
    method : str
        Word of the method, with its parameters.
    figures : mapping of str to float
        What the method found out on the way, for the report.
    """

    changes: Mapping[str, Change]
    made_for: Mapping[str, str]
    method: str = ""
    figures: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def of(
        cls,
        model: Model | nn.Module,
        changes: Mapping[str, Change],
        method: str = "",
        **figures: float,
    ) -> "RewritePlan":
        """Return the plan for the weights that a model has now."""
        named = dict(module_of(model).state_dict())
        made_for = {name: tensor_hash(named[name]) for name in changes if name in named}
        return cls(dict(changes), made_for, method, figures)

    def fold(self, model: Model | nn.Module) -> Any:
        """Return a new model with the changes in it.

        It shares the storage of all other tensors with ``model``: to train one is to train both.

        Raises
        ------
        StateError
            If a tensor is not the one that the plan was made for.
        """
        module = module_of(model)
        named = dict(module.state_dict())
        for name, digest in self.made_for.items():
            if name not in named or tensor_hash(named[name]) != digest:
                raise StateError(
                    f"RewritePlan.fold: {name} is not the tensor that this plan was made for. "
                    "Plan again for this model."
                )
        changed = {name: change.of(named[name]) for name, change in self.changes.items()}
        return with_tensors(module, changed)


class Rewrite(ABC):
    """A method that changes weights. Subclasses are final frozen dataclasses of parameters."""

    @abstractmethod
    def plan(self, model: Model | nn.Module, fitted: Any = None) -> RewritePlan:
        """Return what would change; ``model`` stays as it is.

        Parameters
        ----------
        model : Model or nn.Module
        fitted : optional
            What the method's docstring asks for: results or states that ``sonde fit`` made.
        """


def tensor_hash(x: Tensor) -> str:
    """Return the hash by which a plan knows the tensor that it was made for."""
    return tensor_key(x.detach().cpu()).hex()


def module_of(model: Model | nn.Module) -> nn.Module:
    """Return the live module of a model."""
    return model.module if isinstance(model, Model) else model


def with_tensors(module: nn.Module, changed: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a module with some tensors exchanged; all others share their storage."""
    kept = {id(p): p for p in [*module.parameters(), *module.buffers()]}
    memo: dict[int, Any] = {}
    for key, old in kept.items():
        same = old.detach()
        memo[key] = nn.Parameter(same, old.requires_grad) if isinstance(old, nn.Parameter) else same
    new = copy.deepcopy(module, memo)
    for name, value in changed.items():
        path, _, leaf = name.rpartition(".")
        owner = new.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = value
            continue
        before = owner._parameters.get(leaf)
        trains = before is None or before.requires_grad
        owner._parameters[leaf] = nn.Parameter(value, trains and value.is_floating_point())
    return new
