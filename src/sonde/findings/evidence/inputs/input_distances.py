"""Whether rows that are near at a site are near in their inputs, too."""

from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.findings.evidence.inputs.near_pairs import EQUAL, FAR, NearPairs
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.tap import LiveStream
from sonde.tap.model.input_tensors import input_tensors
from sonde.tap.streams.small_batches import single, token_length

MOST_ENTRIES: Final = 4_096
LEAST: Final = 0.1
"""Smallest standard deviation of an entry, relative to all of them, that counts in full."""
NEAR: Final = 0.25
"""Largest distance of a copy's input, relative to that of the fifth nearest input."""


@dataclass(frozen=True, eq=False)
class InputRows:
    """The inputs of the shared rows as vectors.

    Parameters
    ----------
    x : Float[Tensor, "row entry"]
        Numbers, in standard deviations of their entry; of larger tensors 4,096 entries.
    codes : Int[Tensor, "row code"]
        Codes, such as numbers of categories; two rows differ by 1 in each unequal code.
    """

    x: Float[Tensor, "row entry"]
    codes: Int[Tensor, "row code"]

    def are_near(
        self, row: Int[Tensor, "pair"], partner: Int[Tensor, "pair"]
    ) -> Bool[Tensor, "pair"]:
        """Return which pairs lie within a quarter of the distance of the row's fifth nearest."""
        near = torch.zeros(len(row), dtype=torch.bool)
        for i, (a, b) in enumerate(zip(row.tolist(), partner.tolist(), strict=True)):
            squares = (self.x - self.x[a]).square().sum(1)
            squares += (self.codes != self.codes[a]).sum(1)
            apart = float(squares[b])
            squares[a] = torch.inf
            fifth = squares.topk(min(FAR, len(squares)), largest=False).values[-1]
            near[i] = apart <= NEAR**2 * float(fifth)
        return near


def read_input_rows(stream: LiveStream, evidence: Evidence) -> InputRows | str:
    """Return the inputs of the shared rows, or the reason why they are no vectors of one size."""
    order = shared_rows(evidence).order
    if order is None:
        return "the order of the sampled rows is not known"
    numbers: list[Tensor] = []
    codes: list[Tensor] = []
    for example in order.tolist():
        batch = single(stream.inputs, int(example))
        if batch is None:
            return "a row could not be read"
        if token_length(batch) and batch.placeholder is None:
            return "texts have no distance"
        given = input_tensors(stream.model.module, batch).values()
        flat = [(one.kind, one.x.detach().cpu().flatten()) for one in given if len(one.x) == 1]
        numbers.append(torch.cat([_thinned(x).double() for kind, x in flat if kind != "codes"]
                                 or [torch.zeros(0, dtype=torch.float64)]))  # fmt: skip
        codes.append(torch.cat([_thinned(x).long() for kind, x in flat if kind == "codes"]
                               or [torch.zeros(0, dtype=torch.int64)]))  # fmt: skip
        if len(numbers[-1]) != len(numbers[0]) or len(codes[-1]) != len(codes[0]):
            return "the inputs differ in size"
    x = torch.stack(numbers).nan_to_num(0.0, 0.0, 0.0)
    spread = x.std(0, correction=0)
    # pixels that only the noise of copies moves would count as much as all others
    least = LEAST * float(spread.square().mean().sqrt()) if x.shape[1] else 0.0
    x = (x - x.mean(0)) / spread.clamp(min=max(least, 1e-300))
    return InputRows(x, torch.stack(codes))


def _thinned(x: Tensor) -> Tensor:
    step = -(-len(x) // MOST_ENTRIES)
    return x[:: max(1, step)]


def near_in_inputs(evidence: Evidence, pairs: NearPairs) -> NearPairs:
    """Return the pairs without those whose inputs are far apart, if inputs can be compared.

    A net that reads two of ten numbers has near states for rows that agree in these two. Pairs of
    equal states stay: a set in another order is the same set to its net.
    """
    if not len(pairs):
        return pairs
    inputs = evidence.get(read_input_rows)
    if not isinstance(inputs, InputRows):
        return pairs
    kept = (pairs.ratio <= EQUAL) | inputs.are_near(pairs.row, pairs.partner)
    return replace(
        pairs,
        row=pairs.row[kept],
        partner=pairs.partner[kept],
        ratio=pairs.ratio[kept],
        p=pairs.chance(int(kept.sum())),
    )
