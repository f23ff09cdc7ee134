"""Reconstruction of inputs from the states after each layer."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import InputError, Model, gather, read
from sonde.core import curves
from sonde.report import Answer
from sonde.train import InputDecoder
from sonde_studies.parts.figures import is_sure, melted
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import groups_told, judges, owners_of, parted
from sonde_studies.parts.states import patterns, said_by, tensor_inputs

QUESTION = "How much of an input is left after each layer?"
LEAST, TEST = 60, 0.4
WORDED = {"missed": "variance missed", "same": "same answer"}


@copies_once()
def decode_states(
    model: Model,
    data: Any,
    *,
    sites: str = "auto",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Reconstruct inputs from states by the best linear map, and classify the reconstructions.

    For each site: the share of the inputs' variance that the decoder misses on rows that did not
    fit it, and how often the model answers on a decoded input as on the real one.

    Example: sonde recipe decode-states MODEL DATA -o decoded.html

    Parameters
    ----------
    model : Model
        A classifier or regression of pictures or numbers.
    data : str, path or iterable
        Inputs; labels are not needed.
    sites : str, default="auto"
        Where the states are read, e.g. "layers.0,layers.3".
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that judge.
    """
    options: dict[str, Any] = {"limit": limit, "group_column": group_column}
    gathered = gather(read(model, data, sites=patterns(sites), logits=False, **options), progress)
    states, x = gathered.rows, tensor_inputs("decode_states", model, data, **options)
    n = len(next(iter(states.values())))
    if len(x) < LEAST or len(x) != n:
        raise InputError(
            f"decode_states: expected {LEAST} or more inputs with a row of states each, got "
            f"{len(x)} inputs and {n} rows."
        )
    owner = owners_of(data, group_column, limit)[gathered.item.numpy()]
    first, rest = parted(owner, TEST, np.random.default_rng(seed))
    held, kept = map(torch.from_numpy, (judges(owner, first), rest))
    flat, said = x.flatten(1), said_by(model, x[held])
    spread = (flat[held] - flat[kept].mean(0)).square().sum(1)
    rows, is_read = list[dict[str, Any]](), dict[str, bool]()
    for site, found in states.items():
        h = found.float().flatten(1)
        made = InputDecoder(flat.shape[1]).solve(h[kept], flat[kept]).decode(h[held]).detach()
        far = (made - flat[held]).square().sum(1)
        missed, is_read[site] = float(far.sum() / spread.sum()), is_sure((spread - far).numpy())
        same = _same(said_by(model, made.reshape(x[held].shape)), said)
        rows.append({"site": site, "units": h.shape[1], "missed": missed, "same": same})
    lost = max(rows, key=lambda row: row["missed"])
    left = f"{1 - lost['missed']:.0%}" if is_read[lost["site"]] else "nothing"
    points = melted(
        [row | {"site": i} for i, row in enumerate(rows)], "site", "share", "what", WORDED
    )
    title = "What a linear decoder misses, and what the model still sees"
    return Answer(
        question=QUESTION,
        verdict=f"{left} is left at {lost['site']}",
        level="clear",
        sentence=f"A linear map reads back {1 - rows[0]['missed']:.1%} of the inputs' variance "
        f"at {rows[0]['site']} and {1 - rows[-1]['missed']:.1%} at {rows[-1]['site']}; on what "
        f"it reads there the model answers {rows[-1]['same']:.1%} of {len(held)} rows as before.",
        value=rows[-1]["missed"],
        null=1.0,
        n=len(held),
        range=(0.0, float("inf")),
        direction="lower",
        rows=tuple(rows),
        drawn=curves(title, points, "site", "share", by="what"),
        facts={"sites": ", ".join(row["site"] for row in rows)} | groups_told(owner),
        advice=(
            "A linear map finds what lies open; what it misses may still be there for a larger "
            "decoder (sonde.train.InputDecoder with hidden layers).",
        ),
    )


def _same(said: Tensor, before: Tensor) -> float:
    """Return how often two answers agree: in class, or to a tenth of a standard deviation."""
    if before.ndim == 2 and before.shape[1] > 1:
        return float((said.argmax(1) == before.argmax(1)).double().mean())
    return float(((said - before).abs() < 0.1 * before.std()).double().mean())
