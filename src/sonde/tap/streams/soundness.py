"""Test whether rows depend only on their own example, by small forward passes.

A model that puts its batch into another order, lets examples influence each other or draws random
numbers gives rows that say little of the example they stand beside. For where it begins and why,
scan the model.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.core.site import Reducer
from sonde.tap.generating.replay import ReplayInputs
from sonde.tap.model.seeding import seed_everything, untouched
from sonde.tap.rows.kind import Kind
from sonde.tap.rows.reduce import STEPPED, Reduction
from sonde.tap.streams.difference import NARROW, ROUNDING, TAU, TAU_NARROW, difference
from sonde.tap.streams.reader import Reader
from sonde.tap.streams.small_batches import LONGEST, SmallBatches, small_batches

if TYPE_CHECKING:
    from sonde.tap.streams.live import LiveStream

EXAMPLES = 8
ROUNDINGS = 64.0
"""Another order of a batch rounds otherwise, in a deep model many times over: that is no fault."""
LOGITS = "the logits"
_log = logging.getLogger("sonde")
Rows = dict[str, tuple[Tensor, Tensor]]
"""Rows at each site, and the example of each."""


@dataclass(frozen=True)
class RowFault:
    """Reason why rows are unsound.

    Parameters
    ----------
    place : str
        The first site where it shows.
    amount : float
        Root mean square difference over root mean square spread between rows.
    cause : {"chance", "state", "company", "padding"}
        What changes the states of an input that is fed again: random numbers, what an earlier
        forward left behind, other examples, or padding.
    """

    place: str
    amount: float
    cause: Literal["chance", "state", "company", "padding"]

    def __str__(self) -> str:
        by = f"by {self.amount:.3g} times the standard deviation between them"
        skip = "check=False (--no-check) skips this check."
        if self.cause == "padding":
            return (
                f"a text beside a longer one differs at {self.place} from the same text "
                f"alone, {by}: padding on the right reaches its rows, or the forward pass shifts "
                "the tokens. Read texts one by one (batch_size=1, --batch-size 1), or give "
                f"items with their own attention_mask, which are read unchanged. {skip}"
            )
        if self.cause == "state":
            return (
                "the same examples, run again with the same random seed, differ at "
                f"{self.place} {by}: the model keeps a state from one forward pass to the next, "
                "so rows depend on earlier inputs. Reset that state at the start of forward, or "
                f"declare that it is intended: {skip}"
            )
        if self.cause == "chance":
            return (
                f"the same examples, run again, differ at {self.place} {by}: the model "
                "draws random numbers, so no number can be repeated. Remove the source of "
                f"randomness (dropout without training=), or declare that it is intended: {skip}"
            )
        return (
            "the same examples, run in another order beside others, differ at "
            f"{self.place} {by}: rows may be mixed up with those of other examples. Find the "
            "cause by a scan (sonde scan MODEL DATA), or read one by one: batch_size=1 "
            f"(--batch-size 1). {skip}"
        )


def fault_of(stream: "LiveStream") -> RowFault | None:
    """Return the fault of a stream's rows, judged by its first examples, if any.

    They are fed together, then without the first one in another order under another random seed;
    two more forwards tell state, chance and company apart where these differ. None if nothing
    is wrong, or if the model refuses such inputs: then nothing is known.
    """
    inputs = stream.inputs
    inputs = inputs.prompts if isinstance(inputs, ReplayInputs) else inputs
    fault: RowFault | None = None
    with untouched(stream.model.module), torch.no_grad():
        for longest in (LONGEST, None):  # some models are for one length only
            try:
                few = range(min(EXAMPLES, len(inputs)))
                fault = RowCheck(stream, small_batches(stream.model, inputs, few, longest)).fault()
            except Exception as error:  # whatever a model raises on inputs that are cut
                _log.debug("not checked: %s", error)
            else:
                break
    return fault


class RowCheck:
    """Runs a few examples through a stream's model with the stream's reading options."""

    def __init__(self, stream: "LiveStream", small: SmallBatches) -> None:
        self.stream, self.small = stream, small
        logits = stream.with_logits and stream.gives_logits
        self.kinds = [_plain(kind) for kind in stream.kinds if kind.site.port != "grad"]
        causal = stream.model.task == "causal"
        module, probe = stream.model.module, stream.probe
        how = {"causal": causal, "logits": logits, "logits_key": stream.logits_key}
        self.reader = Reader(module, self.kinds, probe, **how)

    def fault(self) -> RowFault | None:
        """Return the difference found, with its cause."""
        every = list(range(len(self.small)))
        others = every[:0:-1] or every
        if not every or not self.kinds:
            return None
        seed = self.stream.seed
        together = self._read(every, seed)
        difference = self.first(together, self._read(others, seed + 1))
        if difference is None:
            return None
        same = self.first(together, self._read(every, seed))
        if same is not None:
            return RowFault(*same, "state")
        again = self.first(together, self._read(every, seed + 1))
        if again is not None:
            return RowFault(*again, "chance")
        return RowFault(*difference, "company")

    def _read(self, which: Sequence[int], seed: int) -> Rows:
        """Return the rows of some examples in this order under a random seed."""
        return self.read(self.small.together(which), which, seed)

    def read(self, batch: InputBatch, which: Sequence[int], seed: int) -> Rows:
        """Return the rows of a batch of the examples ``which``, read under a random seed."""
        seed_everything(self.stream.model.module, seed)
        with self.reader.session:
            (reading,) = self.reader.readings([self.reader.read(batch)])
        index = torch.tensor(which)
        rows = {key: (x, index[reading.columns[key].example]) for key, x in reading.rows.items()}
        return rows if reading.logits is None else rows | {LOGITS: (reading.logits, index)}

    def first(self, a: Rows, b: Rows) -> tuple[str, float] | None:
        """Return the first site where rows of equal examples differ, and the size of it."""
        types = {kind.key: kind.schema.dtype for kind in self.kinds}
        tau = TAU_NARROW if any(t in NARROW for t in types.values()) else TAU
        for key in a:
            rounding = ROUNDING.get(types.get(key, "float32"), ROUNDING["float32"])
            present = torch.isin(a[key][1], b[key][1])
            x, y = (
                _sorted(a[key][0][present.to(a[key][0].device)], a[key][1][present]),
                _sorted(*b[key]),
            )
            amount = difference(x, y, rounding, ROUNDINGS) if x.shape == y.shape else 1.0
            if amount > tau:
                return key, amount
        return None


def _sorted(x: Tensor, example: Tensor) -> Tensor:
    return x.double().cpu()[torch.argsort(example, stable=True)]


def _plain(kind: Kind) -> Kind:
    """Return a kind that reads all tokens in place of steps, for the first examples."""
    reducer = kind.reduction.reducer
    if reducer.name not in STEPPED:
        return kind
    return replace(
        kind, reduction=Reduction(Reducer("tokens", keep_special=True), kind.reduction.axes)
    )
