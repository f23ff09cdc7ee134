"""The value that a result would have had if the rows of sinks had been kept."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from sonde.core.instrument import Every, Instrument
from sonde.core.result import Result
from sonde.engine.errorbars import SampleRows, Term, columns_of, has_influence

MOVED = 0.1
"""Relative difference of the two values from which a result has the flag ``sinks``."""


def with_value_of_sinks(
    result: Result,
    instrument: Instrument,
    states: Mapping[str, Any],
    terms: Sequence[Term],
    sinks: SampleRows,
) -> Result:
    """Return the result with the convention ``with sinks``, and the flag if the value moves.

    The states of all other rows are merged with the state of the sinks. Results of filtered rows,
    of statistics that have no sample, and values that are no single number stay unchanged.

    Parameters
    ----------
    result : Result
        Result without sinks.
    instrument : Instrument
    states : mapping of str to State or tuple of State
        Arguments of ``instrument.result``.
    terms : sequence of Term
        The same states, one by one.
    sinks : SampleRows
        The rows that were left out.
    """
    every = all(read.where == Every() for read in instrument.all_reads().values())
    is_known = all(has_influence(term.statistic) for term in terms)
    if not every or not is_known or torch.as_tensor(result.value).numel() != 1:
        return result
    with torch.no_grad():
        merged: dict[str, Any] = {}
        for term in terms:
            state = states[term.name]
            state = state if term.index is None else state[term.index]
            seen = term.statistic.observe(*columns_of(term, sinks))
            both = term.statistic.merge(state, seen)
            merged[term.name] = both if term.index is None else (*merged.get(term.name, ()), both)
        kept, value = float(instrument.result(**merged).value), float(result.value)
    if not math.isfinite(kept + value):
        return result
    conventions = {**result.conventions, "with sinks": kept}
    moves = abs(kept - value) > MOVED * max(abs(kept), abs(value))
    flags = (*result.flags, "sinks") if moves else result.flags
    return replace(result, flags=flags, conventions=conventions)
