"""Identity of the training run of a saved state: model, teacher, losses and weights.

A state that goes on with another model, or with a loss of other parameters, gives a model that
nobody asked for. What a training changes itself (learned parameters, memories, counters) is no part
of an identity.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

from sonde.core.errors import SondeWarning, StateError
from sonde.core.state import canonical_json
from sonde.files.identity import same_code
from sonde.files.part_facts import certain_differences, describe_part, difference_of_parts
from sonde.tap.model.fingerprint import config_hash, fingerprint
from sonde.tap.model.forward_code import forward_code
from sonde.tap.model.parts import OF_TORCH, parts
from sonde.tap.model.structure import structure
from sonde.tap.training.term import Term

WEIGHTS, CODE, PARTS = "weights", "code", "parts by name"
MODEL, TEACHER = "the model", "the teacher"
_PLAIN = str | bytes | bool | int | float | complex | torch.dtype
DEEPEST = 4
"""Objects inside objects that are looked into: a loss may hold a tokenizer."""

Facts = dict[str, str]


def model_facts(module: nn.Module | None, *, full: bool = False) -> Facts:
    """Return the weights, configuration, structure and code of a model, or {} for None.

    Parameters
    ----------
    module : nn.Module or None
    full : bool, default=False
        Hash every byte of the weights, see ``fingerprint``.
    """
    if module is None:
        return {}
    return {
        WEIGHTS: fingerprint(module, full=full),
        "configuration": config_hash(getattr(module, "config", None), module),
        "structure": structure(module),
        PARTS: canonical_json(parts(module)),
        CODE: forward_code(module),
    }


def loss_facts(loss: nn.Module) -> Facts:
    """Return a loss's classes, attributes, buffers and frozen parameters, by name.

    Parameters that learn are left out: their first values may be random.
    """
    facts = {CODE: forward_code(loss), "parts": " ".join(path for path, _ in loss.named_modules())}
    for path, part in loss.named_modules():
        prefix = f"{path}." if path else ""
        facts[f"{prefix}class"] = _name(type(part))
        for name, value in vars(part).items():
            if name not in OF_TORCH:
                facts[prefix + name] = _said(value)
        held: dict[str, Tensor | None] = {**part._buffers, **part._parameters}
        learned = [name for name, p in part._parameters.items() if p is not None and _learns(p)]
        facts[f"{prefix}learned"] = " ".join(learned)
        for name, x in held.items():
            if x is not None and name not in learned:
                facts[prefix + name] = _said(x)
    return facts


def _learns(p: nn.Parameter) -> bool:
    return p.requires_grad or is_lazy(p)


def unchanged(before: Facts, now: Facts) -> Facts:
    """Return the facts that training does not change: no parameters, no counters."""
    return {name: value for name, value in before.items() if now.get(name) == value}


def first_difference(known: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """Return the name of the first known fact that differs here, or None; parts come first."""
    for name, value in sorted(known.items(), key=lambda fact: fact[0] != PARTS):
        own_value = here.get(name)
        if name == CODE and own_value is not None:
            if not same_code(value, own_value):
                return name
        elif name == PARTS and own_value is not None:
            own, its = json.loads(own_value), json.loads(value)
            if differences := certain_differences(own, its):
                return f"part ({describe_part(differences[0], own, its)})"
        elif own_value != value:
            return name
    return None


class Origin:
    """Identity of attached losses, their model and their teacher, stored with their state.

    Parameters
    ----------
    module : nn.Module
    teacher : nn.Module or None
    terms : sequence of Term
        As they are attached, before the first step.
    """

    def __init__(self, module: nn.Module, teacher: nn.Module | None, terms: Sequence[Term]) -> None:
        self._module, self._teacher = module, teacher
        self._terms = [(term, term.schedule) for term in terms]
        self._before = self._losses()

    def facts(self) -> dict[str, Facts]:
        """Return the facts of model, teacher and losses that training does not change."""
        now = self._losses()
        losses = {name: unchanged(before, now[name]) for name, before in self._before.items()}
        return {MODEL: model_facts(self._module), TEACHER: self._teacher_facts(), **losses}

    def check(self, known: Mapping[str, Facts] | None, owner: str, *, weights: bool) -> None:
        """Raise if a saved state belongs to another training run.

        Parameters
        ----------
        known : mapping or None
            What ``facts`` returned. None for a state of an earlier version: a warning.
        owner : str
            For the message: who loads, and what.
        weights : bool
            Whether the model has to hold the weights with which the state was saved.

        Raises
        ------
        StateError
            Naming what differs.
        """
        if known is None:
            warnings.warn(
                f"{owner} was written by an earlier version, which recorded only the names of "
                "the losses, so it cannot be checked whether the model, the teacher and the "
                "parameters of the losses are the same.",
                SondeWarning,
                stacklevel=4,
            )
            return
        here = {MODEL: model_facts(self._module), TEACHER: self._teacher_facts(), **self._before}
        if known.keys() != here.keys():
            raise StateError(
                f"{owner} was written for {'; '.join([*known][2:])}, but these losses are "
                f"{'; '.join([*here][2:])}. Attach the same losses to the same sites."
            )
        self._warn_of_parts(known.get(MODEL, {}), here[MODEL], owner)
        for name, facts in known.items():
            left = {k: v for k, v in facts.items() if weights or (name, k) != (MODEL, WEIGHTS)}
            what = first_difference(left, here[name])
            if name == TEACHER and (facts.keys() ^ here[name].keys()) - {PARTS}:
                what = "kind"
            if what is not None:
                raise StateError(
                    f"{owner} was written with another {what} of {name}. Train with the model, "
                    "teacher, losses and weights with which it was written; load the weights of "
                    "the model before the state of its losses."
                )

    def _warn_of_parts(self, known: Facts, here: Facts, owner: str) -> None:
        """Warn of parts of the model that differ and may change what it computes."""
        own, its = json.loads(here.get(PARTS, "{}")), json.loads(known.get(PARTS, "{}"))
        apart = [describe_part(name, own, its) for name in difference_of_parts(own, its)]
        if known.get(PARTS) and apart and not certain_differences(own, its):
            warnings.warn(
                f"{owner} was written with a model of which a part differs: {apart[0]}. Restore "
                "that part, unless the model computes the same result.",
                SondeWarning,
                stacklevel=5,
            )

    def _losses(self) -> dict[str, Facts]:
        return {
            term.name: {
                **loss_facts(term.loss),
                "reducer": " ".join(str(place.reducer) for place in term.places),
                "schedule": _name(type(schedule)),
                **{f"schedule.{name}": _said(x) for name, x in vars(schedule).items()},
            }
            for term, schedule in self._terms
        }

    def _teacher_facts(self) -> Facts:
        if isinstance(self._teacher, AveragedModel):  # its weights are in the state itself
            average: Any = self._teacher
            return {"kind": f"{_said(average.avg_fn)} {_said(average.multi_avg_fn)}"}
        return model_facts(self._teacher)


def find_difference(known: Mapping[str, Facts], here: Mapping[str, Facts]) -> str | None:
    """Return the first fact that differs, such as "power of the loss", or None."""
    for name in dict.fromkeys([*known, *here]):
        ours, theirs = here.get(name), known.get(name)
        if ours is None or theirs is None or (ours.keys() ^ theirs.keys()) - {PARTS}:
            return f"kind of {name}"
        if (what := first_difference(theirs, ours)) is not None:
            return f"{what} of {name}"
    return None


def _said(value: Any, above: AbstractSet[int] = frozenset()) -> str:
    """Return a value as text without addresses and devices; ``above`` holds its containers."""
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        return _hash(value)
    if isinstance(value, nn.Module):  # of the model, such as its head: its weights may learn
        return f"{_name(type(value))} {structure(value)} {forward_code(value)}"
    name = _name(value if isinstance(value, type | FunctionType) else type(value))
    if id(value) in above or len(above) > DEEPEST or isinstance(value, RemovableHandle):
        return name
    inside = above | {id(value)}
    return f"{name}({', '.join(_said(part, inside) for part in _parts(value))})"


def _parts(value: Any) -> Iterable[Any]:
    """Return the contents of a container, a function or another object."""
    if isinstance(value, type):
        return ()
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__defaults__, value.__kwdefaults__, *cells]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    return getattr(value, "__dict__", {}).items()


def _hash(x: Tensor) -> str:
    plain = x.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{tuple(plain.shape)} {plain.dtype}".encode(), digest_size=16)
    if plain.numel() and plain.device.type != "meta":
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
