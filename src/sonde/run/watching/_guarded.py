"""What a guard saw of one text: its scores, and what they say."""

from dataclasses import dataclass, field

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.run.instruments.entries import Key
from sonde.run.scoring.batches import SCHEMA
from sonde.run.watching._watched import Alarm, GuardStep, WatchedDetector


@dataclass(eq=False)
class GuardedText:
    """Scores of one text: of a forward, and of those that go on from its key-value cache.

    A text is the batch of a forward: one example or several. While the text grows it can be read
    at any time.

    Attributes
    ----------
    forwards : list of int
        Numbers of its forwards among all that the guard has seen, from 0.
    alarms : list of Alarm
        In order.
    """

    watches: tuple[WatchedDetector, ...] = field(repr=False)
    steps: list[GuardStep] = field(default_factory=list[GuardStep], repr=False)
    forwards: list[int] = field(default_factory=list[int])
    alarms: list[Alarm] = field(default_factory=list[Alarm])

    @property
    def scores(self) -> dict[Key, Float[Tensor, "row"]]:
        """Scores by (method, site): a row for each example, token or patch."""
        steps = list(self.steps)
        parts = [step.scores.split(list(step.counts)) for step in steps]
        return {w.name: torch.cat([p[i] for p in parts]) for i, w in self._seen(steps)}

    @property
    def example(self) -> dict[Key, Int[Tensor, "row"]]:
        """Which row of the batch each score belongs to."""
        steps = list(self.steps)
        return {w.name: torch.cat([s.example[i] for s in steps]) for i, w in self._seen(steps)}

    @property
    def position(self) -> dict[Key, Int[Tensor, "row"]]:
        """Where in its text or image each score stands."""
        steps = list(self.steps)
        return {w.name: torch.cat([s.position[i] for s in steps]) for i, w in self._seen(steps)}

    @property
    def p_values(self) -> dict[Key, Float[Tensor, "row"]]:
        """Conformal p-values, of the detectors that are calibrated."""
        steps, found = list(self.steps), dict[Key, Tensor]()
        for i, watch in self._seen(steps):
            scores = torch.cat([s.scores.split(list(s.counts))[i] for s in steps])
            known = [label for s in steps if (label := s.label[i]) is not None]
            p = watch.p_value(scores, torch.cat(known) if known else None)
            if p is not None:
                found[watch.name] = p
        return found

    def table(self) -> pa.Table:
        """Return the text as ``sonde.score`` would: a line for each row, site and detector."""
        scores, p_values = self.scores, self.p_values
        example, position = self.example, self.position
        parts = []
        for name, found in scores.items():
            n, p = len(found), p_values.get(name)
            columns = {
                "id": [str(i) for i in example[name].tolist()],
                "row": example[name].tolist(),
                "position": position[name].tolist(),
                "site": [name[1]] * n,
                "instrument": [name[0]] * n,
                "score": found.tolist(),
                "p": [None] * n if p is None else p.tolist(),
            }
            parts.append(pa.Table.from_pydict(columns, schema=SCHEMA))
        return pa.concat_tables(parts) if parts else SCHEMA.empty_table()

    def _seen(self, steps: list[GuardStep]) -> list[tuple[int, WatchedDetector]]:
        return list(enumerate(self.watches)) if steps else []
