"""Length of a code for the classes, if the hidden rows are known.

Unlike accuracy, the code counts the rows that the probe needs to learn: many rows make it long.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.instrument import Instrument, Read
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.statistic import Statistic
from sonde.explain._probes import LabelledRows, clustered_error, logistic_fit
from sonde.explain.probe import labelled_sample, row_flags
from sonde.stats import HashSampleState

FRACTIONS = (0.1, 0.2, 0.4, 0.8, 1.0)


@final
@dataclass(frozen=True, kw_only=True)
class MdlProbeResult(Result):
    """``value`` is the compression: length of a uniform code over the length of the probe's code.

    ``null`` is the compression by the frequencies of the classes alone. ``blocks`` are the nats
    that each block costs, ``ends`` the rows after which blocks end; the first block is coded
    uniformly.
    """

    code_nats: float
    uniform_nats: float
    blocks: Float[Tensor, "block"]
    ends: Int[Tensor, "block"]


@final
@dataclass(frozen=True)
class MdlProbe(Instrument):
    """Compression of the labels by a probe that is fitted on the rows that were sent before.

    Groups come in the order of their draw. The first tenth of the rows is coded uniformly, every
    block after it (to 20, 40, 80 and 100 %) by a logistic probe of all rows before; the code is the
    sum of the log losses.

    Range        (0, inf), 1 = no shorter than a uniform code; higher = easier to read.
    Cost         one pass; state ``4 m dim`` bytes; four fits of a logistic regression on at most
                 ``m`` rows.
    Assumes      labels; groups in no order.
    Differs      from the paper: five blocks in place of eleven; the null's frequencies have half a
                 count more for each class.

    Parameters
    ----------
    l2 : float, default=1e-3
        Penalty on the weights of rows scaled to a mean variance of 1.
    m : int, default=10000
        Most rows, whole groups.

    Examples
    --------
    >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    >>> found = MdlProbe().fit(x, label=(x[:, 1] > 0).long())
    >>> found.value > 2.0, found.null < 1.1
    (True, True)

    References
    ----------
    voita2020mdl
    """

    l2: float = 1e-3
    m: int = 10_000
    paper: ClassVar[str] = "voita2020mdl"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"l2": 0.1, "m": 64})

    def __post_init__(self) -> None:
        check_ranges(self, l2="> 0", m=">= 4")

    def reads(self) -> dict[str, Statistic[Any] | Read]:
        """Read a sample of whole groups of labelled rows, and their labels."""
        return labelled_sample(self.m)

    def result(self, sample: HashSampleState, label: HashSampleState) -> MdlProbeResult:
        """Return the compression of the labels.

        Raises
        ------
        InputError
            If there is one class alone, a class for each row, or one group.
        """
        rows = LabelledRows.of("MdlProbe", sample, label)
        n, n_classes = len(rows.x), len(rows.labels)
        order = torch.argsort(rows.group, stable=True)
        x, member, group = rows.x[order.to(rows.x.device)], rows.member[order], rows.group[order]
        cost = torch.full((n,), math.log(n_classes), dtype=torch.float64)
        usual = cost.clone()
        ends = _ends(group)
        for start, end in itertools.pairwise(ends):
            weight, bias = logistic_fit(x[:start], member[:start], n_classes, self.l2)
            log_p = (x[start:end] @ weight.T + bias).log_softmax(1).cpu()
            index = member[start:end].cpu()[:, None]
            cost[start:end] = -log_p.gather(1, index)[:, 0]
            count = torch.bincount(member[:start].cpu(), minlength=n_classes).double() + 0.5
            usual[start:end] = -(count / count.sum()).log()[index[:, 0]]
        code, uniform = float(cost.sum()), n * math.log(n_classes)
        spread = clustered_error(cost, group, rows.n_groups)
        bounds = [0, *ends]
        return MdlProbeResult(
            value=uniform / code,
            se=uniform / code**2 * spread,
            null=uniform / float(usual.sum()),
            n=n,
            range=(0.0, math.inf),
            direction="higher",
            flags=row_flags(rows, sample),
            conventions={"blocks": FRACTIONS, "se": "of the code length, over groups"},
            code_nats=code,
            uniform_nats=uniform,
            blocks=torch.stack([cost[a:b].sum() for a, b in zip(bounds, ends, strict=False)]),
            ends=torch.tensor(ends),
        )


def _ends(group: Int[Tensor, "row"]) -> list[int]:
    """Return the row counts at the ends of the blocks. A block ends with a group."""
    n = len(group)
    is_last = torch.cat([group[1:] != group[:-1], torch.tensor([True])])
    last = torch.nonzero(is_last).flatten() + 1
    wanted = torch.tensor([share * n for share in FRACTIONS], dtype=torch.float64)
    return torch.unique(last[torch.searchsorted(last.double(), wanted)]).tolist()
