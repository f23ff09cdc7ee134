"""The values of attached losses on held-out batches, without gradients."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError, StateError
from sonde.tap.training.place import Place
from sonde.tap.training.places import Places
from sonde.tap.training.term import Term

Batches = Iterable[tuple[Any, Mapping[str, Any]]]
Arguments = Callable[[Term, dict[str, Any]], dict[str, Any]]


def evaluated(
    module: nn.Module,
    places: Places,
    terms: Sequence[Term],
    batches: Batches,
    arguments: Arguments,
) -> list[float]:
    """Return the value of each loss; see ``Terms.evaluate``.

    Parameters
    ----------
    module : nn.Module
    places : Places
        What was read there is dropped.
    terms : sequence of Term
    batches : iterable of (inputs, columns)
    arguments : callable
        From a term and columns to the arguments of its loss, made from the rows of its places.
    """
    losses = [copy.deepcopy(term.loss).eval() for term in terms]
    sums, weights = [0.0] * len(terms), [0] * len(terms)
    held: dict[Place, list[Tensor]] = {}
    columns: list[Mapping[str, Any]] = []
    read = {place for term in terms for place in term.places}
    with places.reading(read), _in_eval(module), torch.no_grad():
        for inputs, given_columns in batches:
            args, kwargs = _call(inputs)
            module(*args, **kwargs)
            places.collect()
            for n, term in enumerate(terms):
                if _is_whole(term):
                    given = arguments(term, dict(given_columns))
                    size = len(next(iter(given.values())))
                    sums[n] += size * float(term.value(given, losses[n]))
                    weights[n] += size
            for place in read:
                if place.views and not place.is_whole:
                    held.setdefault(place, []).append(torch.cat(place.views))
            columns.append(given_columns)
            places.forget()
        if not columns:
            raise StateError("Terms.evaluate: expected one batch or more, got none.")
        for place, rows in held.items():
            place.views, place.masks = [torch.cat(rows)], [None]
        for n, term in enumerate(terms):
            if not _is_whole(term):
                sums[n] = float(term.value(arguments(term, _joined(columns)), losses[n]))
                weights[n] = 1
    return [total / weight for total, weight in zip(sums, weights, strict=True)]


def _is_whole(term: Term) -> bool:
    """Return whether a loss takes whole states or maps, whose shapes vary between batches."""
    return any(place.is_whole for place in term.places)


def _call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a forward pass."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple):
        has_names = bool(inputs) and isinstance(inputs[-1], Mapping)
        return (inputs[:-1], dict(inputs[-1])) if has_names else (inputs, {})
    raise InputError(
        "Terms.evaluate: expected batches (inputs, columns) with a tensor, a tuple or a mapping of "
        f"arguments as inputs, got {type(inputs).__name__}."
    )


def _joined(columns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the concatenated columns of all batches."""
    return {
        name: torch.cat([one[name] for one in columns]) if isinstance(x, Tensor) and x.ndim else x
        for name, x in columns[0].items()
    }


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    """Keep a module in eval mode during a block, then restore the modes of its parts."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
