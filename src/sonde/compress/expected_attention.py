"""Keep the tokens that future queries are expected to attend to.

For long prompts that are read before the question is known. Rules that look at attention paid so
far, as H2O and SnapKV, only know the queries that were asked.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from sonde.core import CachedTokens, CacheRule, InputError, Inputs, Model, QueryMoments
from sonde.core.ranges import check_ranges
from sonde.engine.progress import Bar
from sonde.tap import place_of
from sonde.tap.cache.evicting import caching
from sonde.tap.cache.layer import EvictingLayer
from sonde.tap.hooks.cache import cache_argument
from sonde.tap.hooks.holding import in_eval
from sonde.tap.rows.padding import right_padded


@final
@dataclass(frozen=True)
class ExpectedAttention(CacheRule):
    """Keep the tokens with the largest expected attention, weighted by the norm of their value.

    Queries before rotation are taken as normal, ``N(m, S)``, with the moments of the queries so
    far or of ``expected_attention_of``. Formula: ``score_j = softmax_j(s M k_j + s^2 k_j V k_j / 2)
    ||v_j||`` with ``M = R m`` and ``V = R S R'``, ``R`` the mean rotation over the next ``horizon``
    positions and ``s`` the attention's scale, averaged over the query heads of a key head.

    Range        [0, inf), attention times units of the values; infinite for the first tokens.
    Cost         no attention is read; a product of each key with a matrix of its width for each
                 query head at each eviction; beside keys and values ``width^2`` numbers for each
                 query head, unless moments are given.
    Assumes      that the queries that come are like those before; rotations as transformers makes
                 them.
    Differs      from the paper: tokens are also evicted while text is generated. ``exact=True``
                 averages the exponentials over positions in place of the rotations.

    Parameters
    ----------
    budget : int or float, default=0.25
        Tokens that stay, or their share of those seen.
    horizon : int, default=512
        Positions over which the rotation is averaged.
    n_first : int, default=4
        Tokens at the start of each text that always stay and whose queries do not count.
    exact : bool, default=False
        Average over positions exactly: ``horizon`` times the work.
    queries : QueryMoments, optional
        Moments of one layer that were fitted before, in place of those of the text.

    References
    ----------
    devoto2025expected
    """

    budget: int | float = 0.25
    horizon: int = 512
    n_first: int = 4
    exact: bool = False
    queries: QueryMoments | None = None
    paper: ClassVar[str] = "devoto2025expected"
    examples: ClassVar[tuple[dict, ...]] = (
        {"n_first": 1},
        {"budget": 3, "n_first": 0, "horizon": 3, "exact": True},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, horizon=">= 1", n_first=">= 0")

    def reads_queries(self) -> int | None:
        """Return the first token whose query is read, or None if moments were given."""
        return self.n_first if self.queries is None else None

    def reads_rotation(self) -> bool:
        """Return True, because future queries are rotated."""
        return True

    def score(self, keys: Tensor, values: Tensor, seen: CachedTokens) -> Tensor:
        """Return the expected attention of each key times the norm of its value."""
        queries = seen.queries if self.queries is None else self.queries
        if queries is None:
            raise InputError("ExpectedAttention: expected moments of queries, got none.")
        heads, wide = keys.shape[1], keys.float()
        mean, spread = (
            x.to(wide).unflatten(1, (heads, -1)) for x in (queries.mean, queries.covariance)
        )
        logits = self._logits(wide, mean, spread, seen)
        hidden = (seen.index < 0)[:, :, None]
        attention = logits.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num().mean(2)
        scores = attention * values.float().norm(dim=-1)
        return torch.where(seen.index < self.n_first, torch.inf, scores)

    def _logits(self, keys: Tensor, mean: Tensor, spread: Tensor, seen: CachedTokens) -> Tensor:
        """Return the log of expected exponentials, (row, head, query head of the group, slot)."""
        if seen.rotation is None:
            return _expected(keys, mean, spread, seen.scale)
        if not self.exact:
            rotation = seen.rotation.mean(self.horizon).to(keys)
            return _expected(keys, *_rotated(rotation, mean, spread), seen.scale)
        total = keys.new_tensor(-torch.inf)
        for rotation in seen.rotation.each(self.horizon).to(keys).unbind(1):
            new = _expected(keys, *_rotated(rotation, mean, spread), seen.scale)
            total = torch.logaddexp(total, new)
        return total


def _rotated(rotation: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    turn = rotation[:, None, None]
    return (turn @ mean[..., None])[..., 0], turn @ spread @ turn.mT


def _expected(keys: Tensor, mean: Tensor, spread: Tensor, scale: float) -> Tensor:
    linear = mean @ keys.mT
    square = ((keys[:, :, None] @ spread) * keys[:, :, None]).sum(-1)
    return scale * linear + scale**2 / 2 * square


def expected_attention_of(
    model: Model | nn.Module,
    inputs: Inputs,
    rule: ExpectedAttention | None = None,
    progress: bool = True,
) -> dict[int, ExpectedAttention]:
    """Return the rule of each evicting layer, with the moments of its queries over texts.

    Open a cache with ``caching(model, found.__getitem__)``. Moments of shards are merged by
    ``QueryMoments.merge``.

    Parameters
    ----------
    model : Model or nn.Module
        Causal language model of transformers.
    inputs : Inputs
        Texts, as ``open_inputs`` gives them.
    rule : ExpectedAttention, optional
        The rule that gives the other parameters.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    """
    rule = ExpectedAttention() if rule is None else rule
    module: Any = model.module if isinstance(model, Model) else model
    moments_of = dict[int, QueryMoments]()
    with Bar("queries of texts", len(inputs), progress) as bar, in_eval(module), torch.no_grad():
        for batch in map(right_padded, inputs.batches(0, len(inputs))):
            args, kwargs = place_of(module, batch).call(batch.args, batch.kwargs)
            with caching(model, replace(rule, budget=1.0, queries=None), here=True) as cache:
                module(*args, **kwargs, **{cache_argument(module): cache})
            for number, layer in enumerate(cache.layers):
                if isinstance(layer, EvictingLayer) and layer.moments is not None:
                    new, old = layer.moments.pooled(), moments_of.get(number)
                    moments_of[number] = new if old is None else old.merge(new)
            bar.advance(len(batch))
    return {number: replace(rule, queries=moments) for number, moments in moments_of.items()}
