"""A change of weights: planned from what was fitted, looked at, then folded into a new model."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError, SondeWarning, StateError
from sonde.core.inputs import Model
from sonde.core.instrument import Instrument
from sonde.data._model_kind import config_of
from sonde.weights.change import Change
from sonde.weights.live import TIED, as_model, module_of, put_tensors, tensor_hash, with_tensors
from sonde.weights.needs import Need, bound

MOST_LOST = 0.5
"""Share of a change that rounding to a half type may take away without a word."""

if TYPE_CHECKING:
    from sonde.weights.saving import Saved


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
    ties : mapping of str to tuple of str
        For each tensor, other names under which the model holds the same one. They keep the old.
    config : mapping of str to JSON value
        What the model's configuration must say for the new tensors, e.g. ``{"mlp_bias": True}``.
    packed : frozenset of str
        Tensors in whose place a layer of another kind holds something smaller.
    """

    changes: Mapping[str, Change]
    made_for: Mapping[str, str]
    method: str = ""
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    ties: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    packed: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        model: Model | nn.Module,
        changes: Mapping[str, Change],
        method: str = "",
        **figures: float,
    ) -> "RewritePlan":
        """Return the plan for the weights that a model has now."""
        module = module_of(model)
        named = dict(module.state_dict())
        made_for = {name: tensor_hash(named[name]) for name in changes if name in named}
        packed = frozenset(name for name, change in changes.items() if change.packs(module, name))
        ties = _ties(module, changes)
        return cls(dict(changes), made_for, method, figures, ties, packed=packed)

    def fold(self, model: Model | nn.Module) -> Any:
        """Return a new model with the changes in it.

        It shares the storage of all other tensors with ``model``: to train one is to train both.
        A model of a half type stays one, so that it runs: changed tensors are rounded once. On the
        disk (``save``) they are kept as float32. A plan without changes gives ``model`` itself.

        Raises
        ------
        StateError
            If a tensor is not the one that the plan was made for.
        """
        module = module_of(model)
        if not self.changes:
            return module
        named = dict(module.state_dict())
        for name, digest in self.made_for.items():
            if name not in named or tensor_hash(named[name]) != digest:
                raise StateError(
                    f"RewritePlan.fold: {name} is not the tensor that this plan was made for. "
                    "Plan again for this model."
                )
        dtype = next((x.dtype for x in named.values() if x.is_floating_point()), None)
        new = with_tensors(module, {})
        for name in self.packed:
            self.changes[name].put_into(new, name)
        left = {n: c for n, c in self.changes.items() if n not in self.packed}
        changed = {
            name: _rounded(name, change.of(named.get(name)), named.get(name), dtype)
            for name, change in left.items()
        }
        put_tensors(new, changed)
        told = {**self.config, **({TIED: False} if self.ties else {})}
        for name, value in told.items():
            if config_of(new) is not None:
                setattr(config_of(new), name, value)
        return new

    def save(self, model: Model | str | Path, output: str | Path) -> "Saved":
        """Write the edited model to a folder, and its patch beside it. See ``save_edited``."""
        from sonde.weights.saving import save_edited

        return save_edited(model, self, output)


class Rewrite(ABC):
    """A method that changes weights. Subclasses are final frozen dataclasses of parameters.

    Attributes
    ----------
    examples : tuple of dict
        Small parameter sets for the laws of ``sonde.testing``.
    """

    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    def reads(self) -> Mapping[str, Need]:
        """Return what ``planned`` takes beside the model, by the names of its parameters.

        ``Examples`` arrive as ``Inputs``, an instrument as its results by site (``AtSites``).
        """
        return {}

    def instruments(self) -> list[Instrument]:
        """Return the instruments that ``sonde.fit`` fits for this rewrite.

        Raises
        ------
        InputError
            If it reads examples alone, or nothing.
        """
        found = [need for need in self.reads().values() if isinstance(need, Instrument)]
        if not found:
            name = type(self).__name__
            raise InputError(
                f"{name}.instruments: expected a rewrite that reads fitted results, got one that "
                f"reads {', '.join(self.reads()) or 'weights alone'}. Call {name}().plan(model, "
                "...) instead of fitting it."
            )
        return found

    @final
    def plan(self, model: Model | nn.Module, fitted: Any = None) -> RewritePlan:
        """Return what would change; ``model`` stays as it is.

        Parameters
        ----------
        model : Model or nn.Module
        fitted : mapping or Fitted, optional
            What ``reads`` names. Examples: anything that ``sonde.data.open_inputs`` takes.
            Instruments: what ``sonde.fit`` returned, or a result, a state or rows for each site.

        Raises
        ------
        InputError
            If something that ``reads`` names is missing.
        """
        live = as_model(model)
        return self.planned(live, **bound(type(self).__name__, self.reads(), live, fitted))

    @abstractmethod
    def planned(self, model: Model, *_: Any, **read: Any) -> RewritePlan:
        """Return what would change, from what ``reads`` names."""


def _rounded(name: str, new: Tensor, old: Tensor | None, other: torch.dtype | None) -> Tensor:
    """Return a changed tensor in the type of the model; say where that undoes the change."""
    dtype = other if old is None else old.dtype
    value = new if dtype is None else new.to(dtype)
    if old is not None and value.dtype != new.dtype:
        wanted, got = (x.double() - old.double() for x in (new, value))
        if (got - wanted).square().sum() > MOST_LOST**2 * wanted.square().sum():
            warnings.warn(
                f"RewritePlan.fold: rounding to {value.dtype} takes away more than half of the "
                f"change of {name}. Load the model in float32 before you fold, or save the plan.",
                SondeWarning,
                stacklevel=3,
            )
    return value


def _ties(module: nn.Module, changed: Iterable[str]) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    every = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in every.items():
        names.setdefault(id(parameter), []).append(name)
    groups = {name: names[id(every[name])] for name in changed if name in every}
    return {name: tuple(n for n in one if n != name) for name, one in groups.items() if one[1:]}
