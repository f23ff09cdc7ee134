"""Arguments of a loss: rows of its sites, and columns by argument name."""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sonde.core.errors import BatchError, InputError, SiteError, SondeWarning, StateError
from sonde.core.wording import plural
from sonde.tap.training.place import Place
from sonde.tap.training.places import Places
from sonde.tap.training.ranks import gathered_views, n_ranks
from sonde.tap.training.term import Term, check_column, repeated

OF_ROWS = ("label", "group", "weight", "place")


def loss_arguments(
    places: Places, term: Term, columns: dict[str, Any], step: int, *, gathers: bool = True
) -> dict[str, Any]:
    """Return the arguments of a loss, by name.

    Parameters
    ----------
    places : Places
    term : Term
    columns : dict of str to object
        What the caller gives beside rows.
    step : int
        For messages.
    gathers : bool, default=True
        Take the rows of all processes, for a loss of all rows together; every process has to call.

    Raises
    ------
    InputError
        If a column is missing or wrong, or rows are not finite.
    BatchError
        If there are too few rows.
    """
    brought = [place.brought for place in term.places]
    if any(not own for own in brought):
        raise _not_read(places, term)
    rows = [torch.cat(own) if len(own) > 1 else own[0] for own in brought]
    is_gathered = gathers and n_ranks() > 1
    _check_rows(term, rows, step, least=1 if is_gathered else 2)
    sizes = [len(x) for x in term.places[0].views] if term.places else []
    if is_gathered and sizes and term.told("batching", "") != "mean":
        rows = [gathered_views(x, sizes) for x in rows]
        columns = {name: gathered_views(x, sizes) for name, x in columns.items()}
        sizes = [len(rows[0]) // len(sizes)] * len(sizes)
    names = inspect.signature(term.loss.forward).parameters
    arguments: dict[str, Any] = dict(zip((name for name in names), rows, strict=False))
    is_map = bool(term.places) and term.places[0].is_map
    masks = term.places[0].masks if is_map else []
    real = term.places[0].masks if term.places and not is_map else []
    for name, parameter in names.items():
        if name in arguments:
            continue
        if name == "view" and sizes:
            marks = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
            arguments[name] = marks.to(rows[0].device)
        elif name in columns:
            arguments[name] = repeated(columns[name], sum(sizes), len(sizes))
            if sizes and name in OF_ROWS:
                check_column(term, name, arguments[name], sum(sizes))
        elif name == "real" and any(mask is not None for mask in real):
            arguments[name] = _joined(term.places[0])
        elif name == "mask" and masks:
            arguments[name] = torch.cat([mask for mask in masks if mask is not None])
        elif parameter.default is inspect.Parameter.empty and parameter.kind in (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        ):
            raise InputError(
                f"training: the loss {term.name} needs {name}. Pass terms.loss({name}=...)."
            )
    return arguments


def _joined(place: Place) -> Tensor:
    """Return the mask of positions that are real in all views; a view may lack a mask."""
    each = zip(place.views, place.masks, strict=True)
    return torch.cat([x.new_ones(x.shape[:2]).bool() if m is None else m for x, m in each])


def check_views(
    places: Places, terms: Sequence[Term], n_before: int, n_asked: int | None = None
) -> int:
    """Return the number of forward passes since the last loss; warn if it seems unintended.

    Losses that take ``view`` are made for several forwards, equally many before each loss.

    Raises
    ------
    InputError
        If they are not as many as the caller says.
    """
    n = places.n_collected
    if n_asked is not None:
        if n != n_asked:
            raise InputError(
                f"training: expected {plural(n_asked, 'forward')} before the loss, got {n}. "
                "Discard the other forward passes with terms.forget(), or run them under "
                "torch.no_grad()."
            )
        return n
    takes_views = any("view" in inspect.signature(t.loss.forward).parameters for t in terms)
    if n > 1 and n != n_before and (n_before or not takes_views):
        last = f", and {n_before} before the last one" if n_before else ""
        warnings.warn(
            f"training: {n} forward passes came before this loss{last}. They are treated as "
            "views of the same examples, concatenated along the rows. If they are views, pass "
            f"terms.loss(views={n}); else call terms.loss after each forward pass and run other "
            "forward passes under torch.no_grad().",
            SondeWarning,
            stacklevel=4,
        )
    return n


def zero(places: Sequence[Place]) -> Tensor:
    """Return 0 with an autograd graph to some positions' rows, for a skipped loss."""
    return torch.stack([0.0 * x.float().sum() for place in places for x in place.brought]).sum()


def _not_read(places: Places, term: Term) -> StateError | SiteError:
    silent = [place.name for place in term.places if not place.views]
    if recomputed := [name for name in silent if name in places.recomputed]:
        return SiteError(
            f"training: {', '.join(recomputed)} runs inside torch.utils.checkpoint with "
            "use_reentrant=True, where states have no gradients. Pass use_reentrant=False, or read "
            "a site outside."
        )
    if places.n_collected:
        return SiteError(
            f"training: {', '.join(silent)} did not run in the forward pass before the loss "
            f"{term.name}. Name a module that runs, with a port that its kernel shows."
        )
    if outside := [name for name in silent if name in places.outside]:
        return places.not_called(outside)
    return StateError(
        f"training: expected a forward pass of the model before the loss {term.name}, with "
        "gradients enabled, got none since the last loss."
    )


def _check_rows(term: Term, rows: list[Tensor], step: int, least: int) -> None:
    least = 1 if term.told("batching", "mean") == "mean" else least
    if n_few := [x for x in rows if len(x) < least]:
        raise BatchError(
            f"training: expected {plural(least, 'row')} or more for the loss "
            f"{term.name}, got {len(n_few[0])}. Draw larger batches, or drop the last one."
        )
    for place, x in zip(term.places, rows, strict=True):
        n_broken = int((~torch.isfinite(x.detach())).reshape(len(x), -1).any(1).sum())
        if n_broken:
            raise InputError(
                f"training: {n_broken} of {len(x)} rows of {place.name} are not finite at "
                f"step {step}. Lower the learning rate, or check the inputs of this step."
            )
    if not torch.is_grad_enabled():
        return
    trains = any(x.requires_grad for x in rows) or any(
        p.requires_grad for p in term.loss.parameters()
    )
    if rows and not trains:
        raise SiteError(
            f"training: the loss {term.name} trains nothing: the states at its sites depend on no "
            "parameter with requires_grad=True. Unfreeze the layers before these sites, or choose "
            "a site after the trained layers."
        )
