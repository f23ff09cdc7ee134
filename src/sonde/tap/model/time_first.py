"""Detect states with the time axis first, (time, row, dim): torch's default for sequences."""

import copy
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.token_masks import find_mask
from sonde.tap.hooks.outputs import find
from sonde.tap.hooks.running import no_calls
from sonde.tap.model.seeding import gpus_of

_STACKS = (
    nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)  # fmt: skip


def has_time_first(module: nn.Module) -> bool | None:
    """Return whether a module works on (time, row, dim); None if it does not declare it.

    ``batch_first`` says so, in torch's stacks that of the attention inside.

    Examples
    --------
    >>> has_time_first(nn.LSTM(2, 3)), has_time_first(nn.Linear(2, 3))
    (True, None)
    """
    parts = module.modules() if isinstance(module, _STACKS) else (module,)
    flags = (getattr(part, "batch_first", None) for part in parts)
    return next((not flag for flag in flags if isinstance(flag, bool)), None)


class _Known:
    """Known time axes of the modules of one model.

    Attributes
    ----------
    declared, by_mask, seen : weak dict of nn.Module to bool
        By the module itself or the nearest one around it; by the sizes of a mask; whether the
        states have the order of the inputs turned round, by the sizes in a forward pass.
    has_parts : bool
        Some part declares that it takes time first.
    tried : bool
        One row was run alone.
    of_inputs : bool
        The inputs of the model are (time, row), as its declared parts show.
    """

    def __init__(self, root: nn.Module) -> None:
        flags: dict[str, bool | None] = {}
        self.declared = weakref.WeakKeyDictionary[nn.Module, bool]()
        for path, module in root.named_modules(remove_duplicate=False):
            own = has_time_first(module)
            flags[path] = flags.get(path.rpartition(".")[0]) if own is None else own
            if (flag := flags[path]) is not None:
                self.declared[module] = flag
        self.has_parts = any(flags.values())
        self.by_mask = weakref.WeakKeyDictionary[nn.Module, bool]()
        self.seen = weakref.WeakKeyDictionary[nn.Module, bool]()
        self.tried = self.of_inputs = False

    def try_alone(self, root: nn.Module, named: Mapping[str, Any]) -> None:
        """Run one row once, and store the order of its states and inputs."""
        if self.tried or not (sizes := [t.shape for t in _sequences(named) if t.shape[1] > 1]):
            return
        self.tried, swapped = True, _seen_alone(root, named, sizes[0][0], sizes[0][1])
        for part, is_swapped in swapped.items():
            self.seen.setdefault(part, is_swapped)
        shown = {
            self.declared[part] != is_swapped
            for part, is_swapped in swapped.items()
            if part in self.declared
        }
        self.of_inputs = shown == {True}


_TRIAL = threading.local()
_KNOWN: "weakref.WeakKeyDictionary[nn.Module, _Known]" = weakref.WeakKeyDictionary()


def has_time_first_parts(root: nn.Module) -> bool:
    """Return whether a part of a model declares that it takes time first."""
    if root not in _KNOWN:
        _KNOWN[root] = _Known(root)
    return _KNOWN[root].has_parts


def known_time_first(
    x: Tensor, module: nn.Module, root: nn.Module, named: Mapping[str, Any]
) -> bool | None:
    """Return whether states are (time, row, dim), or None if unknown.

    Flags tell first, ``batch_first`` of the module or of the nearest one around it. Otherwise sizes
    tell: those of the states beside those of the mask, or of the inputs of the running call. If
    there are as many rows as tokens, an earlier forward pass tells, else one with the first row
    alone; it also tells whether the inputs are (time, row).

    Parameters
    ----------
    x : Tensor
        Output or input of ``module``, a part of ``root``.
    module, root : nn.Module
    named : mapping of str to object
        The arguments that ``root`` was called with.
    """
    if torch.compiler.is_compiling():
        return _compared(x, _sequences(named))
    if root not in _KNOWN:
        _KNOWN[root] = _Known(root)
    records = _KNOWN[root]
    if (flag := records.declared.get(module)) is not None:
        return flag
    if (is_swapped := records.by_mask.get(module)) is not None:
        return is_swapped
    if module not in records.seen:
        if (is_swapped := _compared(x, _masks(named))) is not None:
            records.by_mask[module] = is_swapped
            return is_swapped
        inputs = _sequences(named)
        if (is_swapped := _compared(x, inputs)) is not None:
            records.seen[module] = is_swapped
        is_square = x.shape[0] == x.shape[1] > 1 and any(t.shape[:2] == x.shape[:2] for t in inputs)
        if records.has_parts or (is_square and is_swapped is None):
            records.try_alone(root, named)
    is_swapped = records.seen.get(module)
    return None if is_swapped is None else is_swapped != records.of_inputs


def rows_first(
    x: Tensor,
    module: nn.Module,
    root: nn.Module,
    named: Mapping[str, Any],
    key: str | None = None,
) -> Tensor:
    """Return states with the rows first as a view, unchanged if time is not known to be first.

    Parameters
    ----------
    x : Tensor
        Output or input of ``module``, a part of ``root``.
    module, root : nn.Module
    named : mapping of str to object
        The arguments that ``root`` was called with.
    key : str, optional
        Which of several outputs; the last states of a recurrent module are (layer, row, dim).
    """
    if x.ndim != 3 or x.is_nested:
        return x
    if key is not None and key != "0" and isinstance(module, nn.RNNBase):
        return x.transpose(0, 1)
    is_swapped = known_time_first(x, module, root, named)
    return x.transpose(0, 1) if is_swapped else x


def unknown_order(what: str, x: Tensor) -> SiteError:
    """Return the error for states with an unknown order of rows and time."""
    return SiteError(
        f"{what} gives states {tuple(x.shape)} in a model with parts that take time first "
        "(batch_first=False): it is not known whether these are (time, row, dim). Choose one of "
        "these parts as the site, or first run a batch in which the number of rows differs from "
        "the number of tokens."
    )


def _sequences(named: Mapping[str, Any]) -> list[Tensor]:
    """Return the inputs that may be (row, token) or (row, token, feature)."""
    return [x for x in named.values() if isinstance(x, Tensor) and x.ndim in (2, 3)]


def _masks(named: Mapping[str, Any]) -> list[Tensor]:
    """Return the masks of tokens, (row, token) by convention."""
    named_mask = find_mask(named, lambda *_: False)
    return [] if named_mask is None else [named_mask[1]]


def _compared(x: Tensor, inputs: Sequence[Tensor]) -> bool | None:
    """Return whether states have an input's first two sizes swapped, or None if unknown."""
    sizes, given = (x.shape[0], x.shape[1]), [(t.shape[0], t.shape[1]) for t in inputs]
    if sizes[0] == sizes[1] or not {sizes, sizes[::-1]} & {*given}:
        return None
    return sizes not in given


def _seen_alone(
    root: nn.Module, named: Mapping[str, Any], n: int, length: int
) -> dict[nn.Module, bool]:
    """Return the result of a forward pass of the first row alone, in a weight-sharing copy.

    Nothing if the model does not run on one row.
    """
    modules = dict(root.named_modules())
    swapped: dict[nn.Module, bool] = {}
    try:
        twin = twin_of(root).eval()
        one = {k: x[:1] if isinstance(x, Tensor) and x.shape[:1] == (n,) else x
               for k, x in named.items()}  # fmt: skip
        for path, part in twin.named_modules():

            def note(_m: Any, _a: Any, output: Any, own: nn.Module = modules[path]) -> None:
                x = find(output, None)
                if x is not None and x.ndim == 3 and sorted(x.shape[:2]) == [1, length]:
                    swapped[own] = x.shape[1] == 1

            part.register_forward_hook(note)
        _TRIAL.runs = True
        with torch.random.fork_rng(devices=gpus_of(root)), torch.no_grad(), no_calls():
            twin(**one)
    except Exception:  # whatever a model raises on one row
        return {}
    finally:
        _TRIAL.runs = False
    return swapped


def in_trial() -> bool:
    """Return whether this thread is running the trial of one row, to avoid recursion."""
    return getattr(_TRIAL, "runs", False)


def twin_of(root: nn.Module) -> nn.Module:
    """Return a copy that shares the parameters' memory, without hooks of sessions."""
    held = [*root.parameters()]
    for part in root.modules():
        held += [v for v in vars(part).values() if isinstance(v, Tensor) and not v.is_leaf]
    return copy.deepcopy(root, {id(x): x for x in held})
