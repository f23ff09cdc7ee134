"""Changes of weights: planned from fitted data, inspected, then folded into a new model."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError, SondeWarning, StateError
from sonde.core.inputs import Model
from sonde.core.instrument import Instrument
from sonde.core.keywords import InitSignature, checked_new
from sonde.data._model_kind import config_of
from sonde.weights.change import Change, Resized
from sonde.weights.forms import RESIZED, fill, finish_form, joined_forms, put_form
from sonde.weights.forms import TIED as PACKED_TIE
from sonde.weights.live import (
    TIED,
    as_model,
    module_of,
    put_tensors,
    require_finite,
    tensor_hash,
    with_tensors,
)
from sonde.weights.needs import Need, bound

SHAPES = frozenset(("shapes", "blocks"))
"""Forms that an option of the model's own configuration may say."""
MOST_LOST = 0.5
"""Share of a change that rounding to a half type may take away without a word."""

if TYPE_CHECKING:
    from sonde.weights.saving import Saved


@dataclass(frozen=True)
class RewritePlan:
    """Plan of the changes of a model's tensors. It changes nothing by itself.

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
        For each tensor, other names under which the model holds this tensor. These names keep the
        old tensor, but for packed tensors that stay tied (``forms``).
    config : mapping of str to JSON value
        What the model's configuration must say for the new tensors, e.g. ``{"mlp_bias": True}``.
    forms : mapping of str to mapping
        What becomes of the parts of the model that take another form, by their names: see
        ``sonde.weights.forms``.
    blocks : mapping of str to tuple of int
        For each list of blocks that gets shorter, the places of those that stay, and numbers below
        0 where linear maps take the place of others. Names in a plan are those that the model has
        before; a map's tensors are called ``layers.-1.weight``.
    """

    changes: Mapping[str, Change]
    made_for: Mapping[str, str]
    method: str = ""
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    ties: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    forms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    blocks: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    @property
    def blank(self) -> frozenset[str]:
        """Names of added biases that hold only zeros, so that they change nothing.

        The class of a model may have biases in all layers or in none.
        """
        added = {n for n in self.changes.keys() - self.made_for.keys() if n.endswith("bias")}
        return frozenset(name for name in added if not bool(self.changes[name].of(None).any()))

    @classmethod
    def of(
        cls,
        model: Model | nn.Module,
        changes: Mapping[str, Change],
        method: str = "",
        **figures: float,
    ) -> "RewritePlan":
        """Return the plan for the current weights of a model."""
        return cls.shaped(model, changes, method, figures)

    @classmethod
    def shaped(
        cls,
        model: Model | nn.Module,
        changes: Mapping[str, Change],
        method: str = "",
        figures: Mapping[str, float] | None = None,
        *,
        forms: Mapping[str, Mapping[str, Any]] | None = None,
        blocks: Mapping[str, Sequence[int]] | None = None,
    ) -> "RewritePlan":
        """Return the plan of changes, with additional forms and with fewer blocks."""
        module = module_of(model)
        named = dict(module.state_dict())
        kept = {name: tuple(places) for name, places in (blocks or {}).items()}
        gone = [name for name in named if renamed(name, kept) is None]
        for name, others in _ties(module, gone).items():
            left = [other for other in others if renamed(other, kept) is not None]
            if left:
                raise StateError(
                    f"RewritePlan: {name} is in a block that is left out, and {left[0]} is the "
                    "same tensor. Leave out both blocks, or neither."
                )
        made_for = {name: tensor_hash(named[name]) for name in (*changes, *gone) if name in named}
        all_forms = joined_forms({}, forms or {})
        for name, change in changes.items():
            form, owner = change.form(module, name), name.rpartition(".")[0]
            if form:
                all_forms = joined_forms(all_forms, {owner: form})
        ties = _ties(module, changes)
        return cls(dict(changes), made_for, method, figures or {}, ties, {}, all_forms, kept)

    @cached_property
    def parted(self) -> Mapping[str, tuple[str, ...]]:
        """Names that keep the old tensor when a tied tensor changes, by the changed name."""
        others = {n: tuple(o for o in every if PACKED_TIE not in self._form_of(o))
                  for n, every in self.ties.items()}  # fmt: skip
        return {name: left for name, left in others.items() if left}

    @cached_property
    def packed(self) -> frozenset[str]:
        """Tensors that are replaced by smaller tensors in another form."""
        return frozenset(n for n in self.reshaped if not isinstance(self.changes[n], Resized))

    @cached_property
    def reshaped(self) -> frozenset[str]:
        """Tensors that are packed or reshaped."""
        return frozenset(n for n, change in self.changes.items()
                         if self._form_of(n) and change.replaced())  # fmt: skip

    def _form_of(self, tensor: str) -> Mapping[str, Any]:
        return self.forms.get(tensor.rpartition(".")[0], {})

    def renamed(self, name: str) -> str | None:
        """Return the new model's name for a part or tensor, or None if it was removed."""
        return renamed(name, self.blocks)

    def inside(self, path: str) -> "RewritePlan":
        """Return the plan for the part of the model at a path, which contains all changes."""

        def own(name: str) -> str:
            return name.removeprefix(f"{path}.")

        ties = {own(n): tuple(map(own, every)) for n, every in self.ties.items()}
        return RewritePlan(
            {own(n): x for n, x in self.changes.items()},
            {own(n): x for n, x in self.made_for.items()},
            self.method,
            self.figures,
            ties,
            self.config,
            {own(n): _inside(x, own) for n, x in self.forms.items()},
            {own(n): x for n, x in self.blocks.items()},
        )

    def fold(self, model: Model | nn.Module) -> Any:
        """Return a new model with the changes.

        It shares the storage of all other tensors with ``model``: to train one is to train both.
        A model of a half type stays one, so that it runs: changed tensors are rounded once. On the
        disk (``save``) they are kept as float32. A plan without changes gives ``model`` itself.

        Raises
        ------
        StateError
            If a tensor is not the one that the plan was made for.
        """
        module = module_of(model)
        if not (self.changes or self.forms or self.blocks):
            return module
        named = dict(module.state_dict())
        for name, digest in self.made_for.items():
            if name not in named or tensor_hash(named[name]) != digest:
                raise StateError(
                    f"RewritePlan.fold: {name} is not the tensor that this plan was made for. "
                    "Make a new plan for this model."
                )
        dtype = next((x.dtype for x in named.values() if x.is_floating_point()), None)
        new = with_tensors(module, {})
        for name, form in self.told().items():
            put_form(new, name, form)
        left = dict[str, Tensor]()
        for name, change in self.changes.items():
            place, old = self._place(name), named.get(name)
            if name in self.packed:
                fill(new.get_submodule(place.rpartition(".")[0]), change.replaced())
                finish_form(new, place.rpartition(".")[0])
            else:
                left[place] = _rounded(name, change.of(old), old, dtype)
        put_tensors(new, left)
        form = {**self.config, **({TIED: False} if self.parted else {})}
        for name, value in form.items():
            if config_of(new) is not None:
                setattr(config_of(new), name, value)
        return new

    def told(self) -> dict[str, Mapping[str, Any]]:
        """Return every form by its part's name in the new model, lists of blocks first.

        A configuration uses these names.
        """
        forms = dict[str, Mapping[str, Any]]()
        for name, kept in self.blocks.items():
            forms[name] = {**self.forms.get(name, {}), "blocks": list(kept)}
        more = {self._place(n): form for n, form in self.forms.items() if n not in self.blocks}
        return forms | more

    def told_on_disk(self) -> dict[str, Mapping[str, Any]]:
        """Return the forms that the options in ``config`` do not describe."""
        forms = self.told()
        if not self.config:
            return forms
        for name, form in list(forms.items()):
            if "linear" in form:
                blocks = [min(i, place) for place, i in enumerate(form["blocks"])]
                forms[name] = {**form, "blocks": blocks}
            elif form.keys() & SHAPES:
                rest = {key: value for key, value in form.items() if key not in SHAPES | RESIZED}
                del forms[name]
                forms |= {name: rest} if rest else {}
        return forms

    def _place(self, name: str) -> str:
        place = self.renamed(name)
        if place is None:
            raise StateError(f"RewritePlan: {name} is changed, and its block is left out.")
        return place

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

    call_form: ClassVar[str] = "{name}().plan(model, needs), or sonde.compress_model"
    __new__ = checked_new
    __signature__ = InitSignature()

    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    def reads(self) -> Mapping[str, Need]:
        """Return the inputs that ``planned`` takes besides the model, by parameter name.

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
        needed = [need for need in self.reads().values() if isinstance(need, Instrument)]
        if not needed:
            name = type(self).__name__
            raise InputError(
                f"{name}.instruments: expected a rewrite that reads fitted results, got a "
                f"rewrite that reads {', '.join(self.reads()) or 'weights alone'}. Call "
                f"{name}().plan(model, ...) instead of fitting it."
            )
        return needed

    def check(self, model: Model) -> None:  # noqa: B027 (most say all else in ``planned``)
        """Raise if no data can give a plan, judged by weights and parameters only.

        ``plan`` calls this, and commands do before they read data.
        """

    @final
    def plan(self, model: Model | nn.Module, fitted: Any = None) -> RewritePlan:
        """Return the planned changes. ``model`` is not changed.

        Parameters
        ----------
        model : Model or nn.Module
        fitted : mapping or Fitted, optional
            What ``reads`` names. Examples: anything that ``sonde.data.open_inputs`` takes.
            Instruments: what ``sonde.fit`` returned, or a result, a state or rows for each site.

        Raises
        ------
        InputError
            If something that ``reads`` names is missing, or a weight is not finite, or not in
            memory.
        """
        live = as_model(model)
        require_finite(f"{type(self).__name__}.plan", live.module)
        self.check(live)
        return self.planned(live, **bound(type(self).__name__, self.reads(), live, fitted))

    @abstractmethod
    def planned(self, model: Model, *_: Any, **read: Any) -> RewritePlan:
        """Return the planned changes, from the inputs that ``reads`` declares."""


def _inside(told: Mapping[str, Any], own: Callable[[str], str]) -> Mapping[str, Any]:
    """Return a form with names of other parts relative to a part."""
    if PACKED_TIE not in told:
        return told
    tied = {leaf: own(name) for leaf, name in told[PACKED_TIE].items()}
    return {**told, PACKED_TIE: tied}


def _rounded(name: str, new: Tensor, old: Tensor | None, other: torch.dtype | None) -> Tensor:
    """Return a changed tensor in the model's dtype; warn if rounding loses half the change."""
    dtype = other if old is None else old.dtype
    value = new if dtype is None else new.to(dtype)
    if old is not None and value.dtype != new.dtype and old.shape == new.shape:
        wanted, got = (x.double() - old.double() for x in (new, value))
        if (got - wanted).square().sum() > MOST_LOST**2 * wanted.square().sum():
            warnings.warn(
                f"RewritePlan.fold: rounding to {value.dtype} loses more than half of the "
                f"change of {name}. Load the model in float32 before you fold, or save the "
                "plan.",
                SondeWarning,
                stacklevel=3,
            )
    return value


def renamed(name: str, blocks: Mapping[str, Sequence[int]]) -> str | None:
    """Return the name after lists are shortened, or None if its block was removed."""
    block = block_of(name, blocks)
    if not block:
        return name
    above, _, place = block.rpartition(".")
    if int(place) not in blocks[above]:
        return None
    return f"{above}.{blocks[above].index(int(place))}{name.removeprefix(block)}"


def block_of(name: str, blocks: Mapping[str, Sequence[int]]) -> str:
    """Return the block of a shortened list that contains a name, or an empty text."""
    for above in blocks:
        if name.startswith(f"{above}."):
            return f"{above}.{name.removeprefix(f'{above}.').partition('.')[0]}"
    return ""


def _ties(module: nn.Module, changed: Iterable[str]) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    every = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in every.items():
        names.setdefault(id(parameter), []).append(name)
    groups = {name: names[id(every[name])] for name in changed if name in every}
    return {name: tuple(n for n in one if n != name) for name, one in groups.items() if one[1:]}
