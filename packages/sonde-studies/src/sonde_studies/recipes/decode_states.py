"""Inversion: how much of an input can be read back from the states after each layer."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import InputError, Model, gather, read
from sonde.core import curves
from sonde.data import open_inputs
from sonde.report import Answer
from sonde.train import InputDecoder

QUESTION = "How much of an input is left after each layer?"
LEAST, TEST = 60, 0.4


def decode_states(
    model: Model,
    data: Any,
    *,
    sites: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Read inputs back from states by the best linear map, and ask the model what it sees in them.

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
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that judge.
    """
    chosen: Any = sites.split(",") if "," in sites else sites
    found = gather(read(model, data, sites=chosen, limit=limit, logits=False), progress)
    x = _inputs(model, data, limit)
    if len(x) < LEAST or len(x) != len(next(iter(found.rows.values()))):
        raise InputError(
            f"decode_states: expected {LEAST} or more inputs with a row of states each, got "
            f"{len(x)} inputs and {len(next(iter(found.rows.values())))} rows."
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    kept, held = order[int(TEST * len(x)) :], order[: int(TEST * len(x))]
    flat, said = x.flatten(1), _answers(model, x[held])
    spread = (flat[held] - flat[kept].mean(0)).square().sum()
    rows = list[dict[str, Any]]()
    for site, states in found.rows.items():
        states = states.float().flatten(1)
        decoder = InputDecoder(flat.shape[1]).solve(states[kept], flat[kept])
        made = decoder.decode(states[held]).detach()
        missed = float((made - flat[held]).square().sum() / spread)
        same = _same(_answers(model, made.reshape(x[held].shape)), said)
        rows.append({"site": site, "units": states.shape[1], "missed": missed, "same": same})
    lost = max(rows, key=lambda row: row["missed"])
    return Answer(
        question=QUESTION,
        verdict=f"{1 - lost['missed']:.0%} is left at {lost['site']}",
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
        drawn=curves(
            "What a linear decoder misses, and what the model still sees",
            [
                {"site": i, "share": row[key], "what": what}
                for i, row in enumerate(rows)
                for key, what in (("missed", "variance missed"), ("same", "same answer"))
            ],
            "site",
            "share",
            by="what",
        ),
        facts={"sites": ", ".join(row["site"] for row in rows)},
        advice=(
            "A linear map finds what lies open; what it misses may still be there for a larger "
            "decoder (sonde.train.InputDecoder with hidden layers).",
        ),
    )


def _inputs(model: Model, data: Any, limit: int | None) -> Tensor:
    """Return all inputs in the order of the rows; each must be a single tensor of numbers."""
    inputs, parts = open_inputs(model, data, limit=limit), list[Tensor]()
    for batch in inputs.batches(0, len(inputs)):
        given = [v for v in (*batch.args, *batch.kwargs.values()) if isinstance(v, Tensor)]
        if len(given) != 1 or not given[0].is_floating_point():
            raise InputError(
                "decode_states: expected a model of one tensor of numbers, such as pictures or a "
                f"table, got {len(given)} tensors of {[str(v.dtype) for v in given]}."
            )
        parts.append(given[0].cpu().float())
    return torch.cat(parts)


@torch.no_grad()
def _answers(model: Model, x: Tensor) -> Tensor:
    first = next(model.module.parameters(), torch.zeros(()))
    said: Any = model.module(x.to(first))
    said = getattr(said, "logits", said)
    return said.detach().cpu().float()


def _same(said: Tensor, before: Tensor) -> float:
    """Return how often two answers agree: the class, or the number to a tenth of its spread."""
    if before.ndim == 2 and before.shape[1] > 1:
        return float((said.argmax(1) == before.argmax(1)).double().mean())
    near = (said - before).abs() < 0.1 * before.std()
    return float(near.double().mean())
