"""How far a change moves states, in the spread that they have by themselves."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from sonde.core.inputs import Inputs, Model
from sonde.stats.spreads import spreads
from sonde.tap import live_stream

MOST_ROWS = 2048


def change_size(
    model: Model,
    act: Callable[[], AbstractContextManager[nn.Module]],
    inputs: Inputs,
    sites: Sequence[str],
) -> float:
    """Return the largest size of a change over some sites, over the first 2,048 rows.

    Parameters
    ----------
    model : Model
        Unchanged.
    act : callable
        Opens the change and gives the module to run.
    inputs : Inputs
    sites : sequence of str
        Patterns of sites.
    """
    plain = live_stream(model, inputs, sites, _reducer(model), logits=False)
    with act() as module:
        changed = live_stream(
            replace(model, module=module), inputs, sites, _reducer(model), logits=False
        )
        _ = changed.schema
    old: dict[str, list[Tensor]] = {s.key: [] for s in plain.schema}
    new: dict[str, list[Tensor]] = {s.key: [] for s in plain.schema}
    n_rows = 0
    for batch in plain.batches(0, len(inputs)):
        for key in old:
            old[key].append(batch.rows[key].cpu())
        n_rows += max(len(rows) for rows in batch.rows.values())
        if n_rows >= MOST_ROWS:
            break
    with act():
        for batch, _ in zip(
            changed.batches(0, len(inputs)), next(iter(old.values())), strict=False
        ):
            for key in new:
                new[key].append(batch.rows[key].cpu())
    return max(spreads(torch.cat(old[key]), torch.cat(new[key])) for key in old)


def _reducer(model: Model) -> str:
    return "tokens" if model.task in ("causal", "seq2seq") else "auto"
