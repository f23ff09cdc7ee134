"""Accuracy of a small readout trained to predict a label from all sites together.

For states that are stored or read anyway: several readouts in one ``sonde.fit`` share one sample.
For how well each site alone separates a label, see the probe ``sonde.detect.LinearProbe``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.core.chart import Chart, bars
from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE, Instrument
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Span, Statistic
from sonde.engine.steps import Descent, seeded
from sonde.layers.readout import Readout as ReadoutLayer
from sonde.measure._clusters import labelled_rows
from sonde.stats import HashSample, HashSampleState
from sonde.stats.sampled_rows import SampledRows

BATCH, RATE, DECAY, HELD = 256, 1e-2, 1e-2, 4
"""Rows of a step, rates of Adam and of decay, and one group in how many is held out."""


@final
@dataclass(frozen=True, kw_only=True)
class ReadoutResult(Result):
    """Accuracy of the readout on held-out rows; ``null`` is the most frequent label's.

    ``weights`` is the share of each site in the mixture, empty for other ways to combine.
    """

    title: ClassVar[str] = "Weights of the sites in a readout"
    direction: Direction = "higher"
    weights: Float[Tensor, "site"]

    def chart(self) -> Chart:
        """Return a chart with a bar for each site."""
        rows = [{"site": i, "share": v} for i, v in enumerate(self.weights.tolist())]
        return bars(self.title, rows, "site", "share")


@final
@dataclass(frozen=True)
class Readout(Instrument):
    """Accuracy of a label predicted from the rows of all sites, on held-out groups.

    ``sonde.layers.Readout`` gathers the rows of all sites into one vector, a linear map makes
    logits of it, and both are trained on three quarters of the groups. ``last`` reads the last site
    alone.

    Range        [0, 1]; higher = the label can be read. The null is the commonest label's share.
    Cost         one pass; state ``m`` rows per site; the training O(steps sites dim width).
    Assumes      labels; rows of one example belong together.
    Differs      from the papers: one row for each site; the model that gives the rows is not
                 trained.

    Parameters
    ----------
    combine : {"weights", "concat", "queries", "recurrent", "last"}, default="weights"
        How sites are combined, as in ``sonde.layers.Readout``.
    width : int, default=32
        Width of the gathered vector.
    steps : int, default=300
        Number of training steps.
    m : int, default=2048
        Rows of the sample.
    seed : int, default=0
        Seed of the initial weights, of the order of rows, and of the choice of held-out groups.

    References
    ----------
    alain2016probes
    """

    combine: Literal["weights", "concat", "queries", "recurrent", "last"] = "weights"
    width: int = 32
    steps: int = 300
    m: int = SAMPLE
    seed: int = 0
    span: ClassVar[Span] = "all"
    least_sites: ClassVar[int] = 1
    least_rows: ClassVar[int] = 8
    paper: ClassVar[str] = "alain2016probes"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"m": 64, "steps": 20, "width": 4},
        {"combine": "concat", "m": 64, "steps": 20, "width": 4},
        {"combine": "last", "m": 64, "steps": 20, "width": 4},
    )

    def __post_init__(self) -> None:
        check_ranges(self, width=">= 1", steps=">= 1", m=">= 8")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for each site's sample, and the labels."""
        return {"samples": HashSample(self.m), "label": HashSample(self.m, column="label")}

    def result(
        self, samples: tuple[HashSampleState, ...], label: tuple[HashSampleState, ...]
    ) -> ReadoutResult:
        """Train on most groups and test on the others."""
        chosen = samples[-1:] if self.combine == "last" else samples
        rows, flags = labelled_rows(SampledRows.of([*chosen, label[0]]))
        names, number = torch.unique(rows.rows[-1][:, 0].cpu(), return_inverse=True)
        held = self._held(rows)
        n_trained = len(torch.unique(number[~held]))
        if len(names) < 2 or n_trained < 2 or not bool(held.any()):
            raise InputError(
                f"Readout: expected rows of two classes in four groups or more, got {len(rows)} "
                f"rows of {len(names)} in {rows.n_groups}. Pass labels, or more rows."
            )
        x = [_standardised(part.float(), ~held) for part in rows.rows[:-1]]
        layer, head = self._trained(x, number, ~held, len(names))
        with torch.no_grad():
            answers = head(layer(*(part[held, None] for part in x))[:, 0]).argmax(1).cpu()
        right = (answers == number[held]).double()
        se, how = rows.take(held).error_of_mean(right)
        return ReadoutResult(
            value=float(right.mean()),
            se=None if se is None else float(se),
            null=float(torch.bincount(number[held]).max() / held.sum()),
            n=len(rows),
            range=(0.0, 1.0),
            flags=flags,
            conventions={"held out": "a quarter of the groups", "se": how, "sites": len(x)},
            weights=layer.weights().detach().double() if layer.logits is not None
            else torch.empty(0, dtype=torch.float64),
        )  # fmt: skip

    def _held(self, rows: SampledRows) -> Bool[Tensor, "row"]:
        draw = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(rows.n_groups, generator=draw)
        return (order < rows.n_groups // HELD)[rows.group]

    def _trained(
        self, x: Sequence[Tensor], label: Int[Tensor, "row"], own: Bool[Tensor, "row"], n: int
    ) -> tuple[ReadoutLayer, nn.Linear]:
        """Return the trained readout and its linear head."""
        combine = "weights" if self.combine == "last" else self.combine
        with seeded(self.seed):
            layer = ReadoutLayer([part.shape[1] for part in x], self.width, combine)
            head = nn.Linear(self.width, n)
        device = x[0].device
        layer, head = layer.to(device), head.to(device)
        rows = own.nonzero()[:, 0]
        draw = torch.Generator().manual_seed(self.seed)
        batches = [
            rows[torch.randint(len(rows), (min(BATCH, len(rows)),), generator=draw)]
            for _ in range(self.steps)
        ]

        def loss(batch: Tensor) -> Tensor:
            logits = head(layer(*(part[batch.to(device), None] for part in x))[:, 0])
            return cross_entropy(logits, label[batch].to(device))

        def adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=DECAY)

        moved = [*layer.parameters(), *head.parameters()]
        with torch.enable_grad():
            Descent("Readout", moved, RATE, adam).run(loss, batches)
        return layer, head


def _standardised(
    x: Float[Tensor, "row dim"], own: Bool[Tensor, "row"]
) -> Float[Tensor, "row dim"]:
    """Return rows scaled so that the training rows have mean 0 and deviation 1."""
    rows = x[own.to(x.device)]
    return (x - rows.mean(0)) / rows.std(0).clamp(min=1e-6)


readout = as_function(Readout, "label")
