"""Entropy of each attention head over the keys visible to it.

A row of the instrument is a query and a unit is a head, as at the site ``blocks:probs.entropy``.
The function makes these rows from attention probabilities and masks.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.chart import Chart, bars
from sonde.core.errors import InputError, ShapeError
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.core.tensors import as_tensor
from sonde.core.wording import plural
from sonde.engine.copies import copied_rows, n_copies
from sonde.engine.errorbars import with_copies
from sonde.stats import query_entropy

COLLAPSED, OVERLOADED = 0.05, 0.95


@final
@dataclass(frozen=True, kw_only=True)
class AttentionEntropyResult(Result):
    """Mean over heads; ``entropy`` holds the value of each head, 1 for uniform attention.

    ``collapsed`` and ``overloaded`` are the shares of a head's queries below 0.05 and above 0.95.
    ``entropy_nats`` (not divided by its maximum) and ``sink``, the mean share of the first key, are
    None unless probabilities were given.
    """

    title: ClassVar[str] = "Attention entropy of heads"
    direction: Direction = "higher"
    entropy: Float[Tensor, "head"]
    collapsed: Float[Tensor, "head"]
    overloaded: Float[Tensor, "head"]
    entropy_nats: Float[Tensor, "head"] | None = None
    sink: Float[Tensor, "head"] | None = None

    def chart(self) -> Chart:
        """Return a chart with a bar for each head."""
        rows = [{"head": i, "entropy": v} for i, v in enumerate(self.entropy.tolist())]
        return bars(self.title, rows, "head", "entropy")


@final
@dataclass(frozen=True)
class AttentionEntropy(Instrument):
    """Mean attention entropy, as a fraction of the maximum for each query's visible keys.

    ``H_i / ln m_i`` with ``H_i = -sum_j p_ij ln p_ij`` and ``m_i`` the keys that query ``i`` may
    see: a causal head that spreads evenly has 1, not less for early queries. Rows are queries and
    units are heads. ``attention_entropy`` leaves out queries that see one key alone; at the site
    ``blocks:probs.entropy`` they are rows of 1.

    Range        [0, 1]; higher = more widely spread. The null is an even spread, 1.
    Cost         one pass; state 24 heads bytes.
    Assumes      entropies that are shares already: the site ``blocks:probs.entropy`` of a model, or
                 ``attention_entropy`` on probabilities.
    Differs      from the paper: divided by each query's own maximum; no training loss.

    Examples
    --------
    >>> import torch
    >>> round(attention_entropy(torch.tensor([[[0.7, 0.1, 0.1, 0.1]]])).value, 6)
    0.67839

    References
    ----------
    zhai2023stabilizing
    """

    paper: ClassVar[str] = "zhai2023stabilizing"

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for each head's sums."""
        return {"heads": _HeadSums()}

    def result(self, heads: "_HeadSumsState") -> AttentionEntropyResult:
        """Average the entropies over heads."""
        return AttentionEntropyResult(
            value=heads.mean.mean(),
            null=1.0,
            n=heads.n,
            range=(0.0, 1.0),
            conventions={"maximum": "keys that each query may see", "log": "e"},
            entropy=heads.mean.detach(),
            collapsed=heads.collapsed.double() / heads.n,
            overloaded=heads.overloaded.double() / heads.n,
        )


@dataclass(frozen=True)
class _HeadSumsState(State):
    """Mean entropy of ``n`` queries per head, and how many are nearly 0 and nearly 1."""

    n: int
    mean: Float[Tensor, "head"]
    collapsed: Int[Tensor, "head"]
    overloaded: Int[Tensor, "head"]


@final
@dataclass(frozen=True)
class _HeadSums(Statistic[_HeadSumsState]):
    """Means and counts of extremes per head, independent of how rows are divided."""

    def observe(self, x: Float[Tensor, "row head"]) -> _HeadSumsState:
        """Return the sums of a batch of queries."""
        wide = x.double()
        low, high = (wide < COLLAPSED).sum(0), (wide > OVERLOADED).sum(0)
        return _HeadSumsState(len(x), wide.mean(0), low, high)

    def merge(self, a: _HeadSumsState, b: _HeadSumsState) -> _HeadSumsState:
        """Return the joined sums."""
        n = a.n + b.n
        mean = a.mean + (b.mean - a.mean) * (b.n / n)
        return _HeadSumsState(n, mean, a.collapsed + b.collapsed, a.overloaded + b.overloaded)

    def influence(
        self, state: _HeadSumsState, gradient: _HeadSumsState, x: Float[Tensor, "row head"]
    ) -> Float[Tensor, "row"]:
        """Return ``g_mean . (x - mean) / n``; counts have no gradient."""
        return (x.to(state.mean) - state.mean) @ gradient.mean / state.n


def attention_entropy(
    probs: Any, mask: Any = None, *, causal: bool = False, group: Any = None
) -> AttentionEntropyResult:
    """Return heads' entropies from attention probabilities; see ``AttentionEntropy``.

    Parameters
    ----------
    probs : array (example, head, query, key) or (head, query, key)
        Probabilities: over the keys that a query may see they add up to 1.
    mask : bool array, optional
        Which keys each query may see: (example, query, key), or a shape that broadcasts to it, as
        (example, 1, key) for padding. Queries that see fewer than two keys are left out.
    causal : bool, default=False
        Whether a query sees no later key; the last query sees all.
    group : array (example,), optional
        Which examples belong together; without, each is a group of its own, and equal examples
        are one group (flag ``copies``).

    Raises
    ------
    ShapeError
        If the axes are not these.
    InputError
        If probabilities do not add up to 1 over the keys in sight, or no query sees two keys.
    """
    p = as_tensor("attention_entropy", probs, "probabilities", ShapeError).double()
    p = p[None] if p.ndim == 3 else p
    if p.ndim != 4:
        raise ShapeError(
            "attention_entropy: expected probabilities (example, head, query, key), got shape "
            f"{tuple(p.shape)}."
        )
    copies = None if group is not None else copied_rows([p.flatten(1)])
    seen, n = _in_sight(p, mask, causal), len(p)
    n_keys = seen.sum(-1)
    rows = n_keys >= 2
    if not bool(rows.any()):
        raise InputError(
            "attention_entropy: expected at least one query that attends to two keys or "
            "more, got none."
        )
    p = p.movedim(1, 2)[rows]
    hidden = p.masked_fill(seen[rows][:, None], 0.0).abs().amax()
    gap = (p.sum(-1) - 1.0).abs().amax()
    if not (float(hidden) < 1e-3 and float(gap) < 1e-2 and float(p.min()) >= 0.0):
        raise InputError(
            "attention_entropy: expected probabilities that sum to 1 over the keys that are "
            f"not masked, got sums off by {float(gap):.3g} and a probability of "
            f"{float(hidden):.3g} on a masked key. Pass the mask that the model used, and "
            "probabilities after the softmax."
        )
    nats, most = query_entropy(p, seen[rows][:, None].broadcast_to(p.shape))
    example = rows.nonzero()[:, 0]
    own = torch.arange(n) if copies is None else copies
    names = (own if group is None else _of_examples(group, n))[example.cpu()]
    result = AttentionEntropy().fit(nats / most, group=names)
    result = with_copies(result, n_copies(copies), n)
    return replace(result, entropy_nats=nats.mean(0), sink=p[:, :, 0].mean(0))


def _in_sight(
    p: Float[Tensor, "example head query key"], mask: Any, causal: bool
) -> Bool[Tensor, "example query key"]:
    """Return the keys visible to each query."""
    shape = (p.shape[0], *p.shape[2:])
    seen = torch.ones(shape, dtype=torch.bool, device=p.device)
    if causal:
        seen = seen.tril(p.shape[3] - p.shape[2])
    if mask is None:
        return seen
    given = as_tensor("attention_entropy", mask, "mask", ShapeError).to(p.device) != 0
    try:
        return seen & given.broadcast_to(shape)
    except RuntimeError as error:
        raise ShapeError(
            f"attention_entropy: expected a mask that broadcasts to {shape}, got shape "
            f"{tuple(given.shape)}."
        ) from error


def _of_examples(group: Any, n: int) -> Int[Tensor, "example"]:
    """Return the group index of each example."""
    names = group.tolist() if hasattr(group, "tolist") else list(group)
    if len(names) != n:
        raise ShapeError(f"attention_entropy: expected {plural(n, 'group')}, got {len(names)}.")
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names], dtype=torch.int64)
