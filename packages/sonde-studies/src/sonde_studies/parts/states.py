"""States and answers of a model on the rows of a recipe."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde import InputError, Model, gather, read
from sonde.data import ItemInputs, open_inputs
from sonde.tap import place_of
from sonde.train import Scope
from sonde.weights import mean_loss, tuned
from sonde_studies.parts.owners import groups_told, joined_owners, judges, owners_of, parted
from sonde_studies.parts.rows import Rows, Values, check_states, rows_with


def states_of(
    model: Model, values: Sequence[Any], sites: str = "auto", progress: bool = True, **options: Any
) -> dict[str, Float[Tensor, "_row _dim"]]:
    """Return the states of single inputs, such as one column of some rows, by site.

    Parameters
    ----------
    model : Model
    values : sequence
        Texts, images or tensors, by what the model reads.
    sites : str, default="auto"
        Patterns, with commas between them.
    progress : bool, default=True
    **options
        Of ``sonde.read``.
    """
    kind = "image" if "image" in model.task else "x" if model.task == "tensor" else "text"
    items = [{kind: value, "id": str(i)} for i, value in enumerate(values)]
    stream = read(model, items, sites=patterns(sites), logits=False, **options)
    return {site: rows.double() for site, rows in gather(stream, progress).rows.items()}


def last_states(
    model: Model, values: Sequence[Any], site: str = "auto", progress: bool = True, **options: Any
) -> Float[Tensor, "row dim"]:
    """Return the states of single inputs at the last site."""
    return [*states_of(model, values, site, progress, **options).values()][-1]


def column_states(
    models: Sequence[Model], rows: Rows, columns: Sequence[str], site: str, progress: bool
) -> list[Values]:
    """Return the states of each column of some rows at the last site of its own model."""
    return [
        last_states(model, [row[column] for row in rows], site, progress).numpy()
        for model, column in zip(models, columns, strict=True)
    ]


def states_of_columns(
    encoder: Model,
    data: Any,
    numbers: Sequence[str],
    lines: Sequence[str],
    least: int,
    site: str,
    limit: int | None,
    progress: bool,
    at: Any,
) -> dict[str, Any]:
    """Return the sources that are columns of the data, for the rows that the encoders read.

    Parameters
    ----------
    encoder : Model
        Reads the columns of ``lines``, one after the other.
    data : str, path or iterable
    numbers, lines : sequence of str
        Columns of numbers, and columns that the encoder reads.
    least : int
        Smallest number of rows with all columns.
    site : str
    limit : int or None
    progress : bool
    at : array of int
        Number of the item of each row that the encoders read.

    Raises
    ------
    InputError
        If rows differ in how many numbers they hold, or hold other values, NaN or infinity.
    """
    columns = [*numbers, *lines]
    if not columns:
        return {}
    rows = rows_with("feature_fusion", data, columns, least, limit)
    rows, sources = [rows[i] for i in at], dict[str, Any]()
    if lines:
        read_once = column_states([encoder] * len(lines), rows, lines, site, progress)
        sources["lines"] = np.concatenate(read_once, 1)
    if numbers:
        try:
            values = [
                np.concatenate([np.ravel(np.asarray(row[c], np.float64)) for c in numbers])
                for row in rows
            ]
            sources["numbers"] = np.stack(values)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"feature_fusion: expected as many numbers in {', '.join(numbers)} in each row, "
                f"got other values ({error}). Name columns of numbers, or of lists of one length."
            ) from error
    check_states("feature_fusion", {f"the {name}": x for name, x in sources.items()})
    return sources


def side_by_side(states: dict[str, Any], but: str = "") -> Any:
    """Return the standardised states of all sources side by side, without the source ``but``."""
    parts = [x for name, x in states.items() if name != but]
    return np.concatenate([(x - x.mean(0)) / (x.std(0) + 1e-9) for x in parts], 1)


def patterns(sites: str) -> str | list[str]:
    """Split comma-separated patterns."""
    return [part.strip() for part in sites.split(",")] if "," in sites else sites


def graded(
    recipe: str, model: Model, data: Any, least: int, progress: bool, **options: Any
) -> tuple[Any, Values]:
    """Return a classifier's answers on labelled data, and which of them are correct.

    Raises
    ------
    InputError
        If it gives no logits, there are fewer than ``least`` rows, or a row has no label.
    """
    found = gather(read(model, data, logits=True, **options), progress)
    n, known = len(found), int((found.label >= 0).sum())
    if found.logits is None or known < max(least, n):
        raise InputError(
            f"{recipe}: expected a classifier that gives logits and {least} or more rows, all of "
            f"them labelled, got {n} rows, {n - known} of them without a label. Look at "
            "label_column."
        )
    return found, (found.logits.argmax(1) == found.label).numpy()


def groups_of(model: Model, parts: Sequence[Any], **options: Any) -> Int[Tensor, "row"]:
    """Return a number for each row of several data sets: rows of one group have the same number.

    The group of a row is its value in the group column, else its id, else its content. Rows are in
    the order of the data, one data set after the other.
    """
    number, found = dict[bytes, int](), list[int]()
    for part in parts:
        inputs = open_inputs(model, part, long="truncate", **options)
        keys = inputs.group_keys
        order = np.argsort(inputs.source_rows, kind="stable").tolist()
        found += [number.setdefault(keys[i], len(number)) for i in order]
    return torch.tensor(found)


def item_parts(
    inputs: ItemInputs,
    data: Any,
    share: float,
    draw: np.random.Generator,
    group_column: str | None = None,
    limit: int | None = None,
) -> tuple[ItemInputs, Values, dict[str, str]]:
    """Return the training examples, the indices of test items, and the fact about groups.

    One item of each group that does not train is a test item.

    Parameters
    ----------
    inputs : ItemInputs
        Examples of the data.
    data : str, path or re-iterable
    share : float
        Fraction of the groups that are tested.
    draw : numpy.random.Generator
    group_column : str, optional
        Column of the group, if its name is not "group".
    limit : int, optional
        How many items were read.
    """
    items = inputs.source_rows
    owner = owners_of(data, group_column, limit)[items]
    groups = joined_owners(items, owner)
    held, kept = parted(groups, share, draw)
    return inputs.at(kept), np.unique(items[judges(groups, held)]), groups_told(owner)


def with_module(model: Model, module: nn.Module) -> Model:
    """Return a model with the same inputs and another module."""
    return replace(model, module=module)


def tuned_copy(
    model: Model, inputs: ItemInputs, scope: Scope, **options: Any
) -> tuple[Model, float]:
    """Return a copy fine-tuned in a scope's parameters only, and their fraction of all.

    Parameters
    ----------
    model : Model
        Unchanged.
    inputs : ItemInputs
    scope : Scope
    **options
        Of ``sonde.weights.tuned``.
    """
    module = deepcopy(model.module)
    with scope.on(module) as moving:
        tuned(model, inputs, mean_loss, start=module, **options)
    return with_module(model, module), moving.share


def tensor_inputs(recipe: str, model: Model, data: Any, **options: Any) -> Tensor:
    """Return all inputs of a model with one tensor input, in row order.

    Raises
    ------
    InputError
        If the model takes more, or something else, such as the numbers of tokens.
    """
    inputs, parts = open_inputs(model, data, **options), list[Tensor]()
    for batch in inputs.batches(0, len(inputs)):
        args, kwargs = place_of(model.module, batch).call(batch.args, batch.kwargs)
        given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        if len(given) != 1 or not given[0].is_floating_point():
            raise InputError(
                f"{recipe}: expected a model of one tensor of numbers, such as pictures or a "
                f"table, got {', '.join(f'{v.dtype} {tuple(v.shape)}' for v in given)}."
            )
        parts.append(given[0].cpu().float())
    return torch.cat(parts)


@torch.no_grad()
def said_by(model: Model, x: Tensor) -> Float[Tensor, "row output"]:
    """Return a model's answers to one tensor."""
    first = next(model.module.parameters(), torch.zeros(()))
    said: Any = model.module(x.to(first))
    return getattr(said, "logits", said).detach().cpu()
