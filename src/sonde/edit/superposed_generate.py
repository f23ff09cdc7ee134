"""Several drafts from one forward pass per token, with mixed embeddings.

A callable for ``model.generate(custom_generate=...)``: it feeds embeddings, which a rule for the
next token cannot.
"""

import inspect
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.tap.hooks.cache import cache_argument, cache_of

ORDER_WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12, 0.5)
"""Of the orders 2, 3, ... 7."""


@final
@dataclass(frozen=True, eq=False)
class NGrams:
    """Exact counts of next tokens after each context, for contexts of 1, 2, ... tokens.

    Parameters
    ----------
    weights : tuple of float
        Weights of the orders 2, 3, and so on.
    counts : tuple of mapping
        For each order the counts of the next token by context.

    Examples
    --------
    >>> grams = NGrams.of([[1, 2, 3], [1, 2, 4]], weights=(1.0,))
    >>> grams.probabilities([9, 2], [3, 4, 5])
    [0.5, 0.5, 0.0]
    """

    weights: tuple[float, ...] = ORDER_WEIGHTS
    counts: tuple[Mapping[tuple[int, ...], Counter[int]], ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls, texts: Iterable[Sequence[int]], weights: tuple[float, ...] = ORDER_WEIGHTS
    ) -> "NGrams":
        """Count the tokens of texts."""
        counts = tuple(defaultdict[tuple[int, ...], Counter[int]](Counter) for _ in weights)
        for text in texts:
            ids = tuple(int(i) for i in text)
            for length, table in enumerate(counts, start=1):
                for i in range(length, len(ids)):
                    table[ids[i - length : i]][ids[i]] += 1
        return cls(weights, tuple(dict(table) for table in counts))

    def merge(self, other: "NGrams") -> "NGrams":
        """Return the sum of two tables of counts."""
        if self.weights != other.weights:
            raise InputError(f"NGrams.merge: expected weights {self.weights}, got {other.weights}.")
        return NGrams(
            self.weights,
            tuple(
                {c: a.get(c, Counter()) + b.get(c, Counter()) for c in a.keys() | b.keys()}
                for a, b in zip(self.counts, other.counts, strict=True)
            ),
        )

    def probabilities(self, text: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Return tokens' probabilities after a text, averaged over known context lengths."""
        total, probs = 0.0, [0.0] * len(tokens)
        for length, (weight, counts) in enumerate(
            zip(self.weights, self.counts, strict=True), start=1
        ):
            seen = counts.get(tuple(text[-length:])) if len(text) >= length else None
            if seen is not None:
                total, n = total + weight, seen.total()
                probs = [p + weight * seen[t] / n for p, t in zip(probs, tokens, strict=True)]
        return [p / total for p in probs] if total > 0 else probs


@final
@dataclass(frozen=True, eq=False)
class SuperposedGenerate:
    """Write ``drafts`` texts after a prompt; each forward pass gives every draft a token.

    The model reads the mixture ``sum_i w_i E[y_i]`` of the drafts' last tokens, where w is the
    softmax of their log-probabilities. Of the ``top`` likeliest next tokens, renormalised, each
    draft takes its own by ``(1 - mix) log p + mix log p_ngram``; the best of all pairs of draft and
    token go on. The sequences of ``generate`` are the drafts of the first prompt, best first, then
    those of the second.

    Cost         one forward for each token, whatever the number of drafts.
    Assumes      states near linear in the embeddings (``linearity`` measures it).
    Differs      the weights of unseen orders are shared out among the seen orders.

    Parameters
    ----------
    drafts : int, default=3
        Number of texts.
    top : int, default=9
        Number of likeliest next tokens among which the drafts choose, at least ``drafts``.
    ngrams : NGrams or None, default=None
        What tells the drafts apart; None takes the shared probabilities alone.
    mix : float, default=0.54
        In [0, 1]; weight of the n-grams.
    temperature : float, default=0.06
        Divisor of the logits of the shared probabilities, above 0.
    penalty : float, default=200.0
        Nats, for a token that the n-grams never saw there.

    References
    ----------
    shen2024superposed
    """

    drafts: int = 3
    top: int = 9
    ngrams: NGrams | None = None
    mix: float = 0.54
    temperature: float = 0.06
    penalty: float = 200.0
    paper: ClassVar[str] = "shen2024superposed"

    def __post_init__(self) -> None:
        if self.drafts < 1 or self.top < self.drafts:
            raise InputError(
                "SuperposedGenerate: expected at least one draft, and top at least as large as "
                f"drafts, got drafts={self.drafts}, top={self.top}."
            )
        check_ranges(self, mix="[0, 1]", temperature="> 0")

    def __call__(
        self,
        model: Any,
        input_ids: Int[Tensor, "row pos"],
        logits_processor: Sequence[Any] = (),
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **model_kwargs: Any,
    ) -> Int[Tensor, "draft pos2"]:
        """Generate texts. Called by ``generate``."""
        if len(logits_processor):
            raise InputError(
                "SuperposedGenerate: expected no logits processors, because one pass serves "
                f"several texts, got {list(logits_processor)}."
            )
        pad = getattr(generation_config, "pad_token_id", None) or 0
        mask = model_kwargs.get("attention_mask")
        reader = _Reader(model, torch.ones_like(input_ids) if mask is None else mask)
        shared = reader.read(model.get_input_embeddings()(input_ids))
        texts = input_ids[:, None].expand(-1, self.drafts, -1)
        score = torch.full((len(input_ids), self.drafts), -torch.inf, device=input_ids.device)
        score[:, 0] = 0.0
        over = torch.zeros_like(score, dtype=torch.bool)
        while True:
            texts, score, over = self._extended(shared, texts, score, over, pad, input_ids.shape[1])
            ended = stopping_criteria(texts.flatten(0, 1), None).view_as(over)
            over = over | ended
            if bool(over.all()):
                return texts.flatten(0, 1)
            alive = score.masked_fill(over & ~over.all(1, keepdim=True), -torch.inf)
            embedded = model.get_input_embeddings()(texts[:, :, -1])
            weight = alive.softmax(dim=1).to(embedded)
            shared = reader.read(torch.einsum("bk,bkd->bd", weight, embedded)[:, None])

    def _extended(
        self,
        shared: Float[Tensor, "row token"],
        texts: Int[Tensor, "row draft pos"],
        score: Float[Tensor, "row draft"],
        over: Bool[Tensor, "row draft"],
        pad: int,
        start: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best pairs of a draft and a next token, with their scores."""
        p = (shared.float() / self.temperature).log_softmax(dim=1)
        values, tokens = p.topk(min(self.top, p.shape[1]), dim=1)
        values = values.log_softmax(dim=1)[:, None] + self._support(texts, tokens, start, values)
        stays = torch.full_like(values, -torch.inf)
        stays[:, :, 0] = 0.0
        total = score[:, :, None] + torch.where(over[:, :, None], stays, values)
        score, best = total.flatten(1).topk(self.drafts, dim=1)
        parent, place = best // tokens.shape[1], best % tokens.shape[1]
        over = over.gather(1, parent)
        new = tokens.gather(1, place).masked_fill(over, pad)
        kept = texts.gather(1, parent[:, :, None].expand(-1, -1, texts.shape[2]))
        return torch.cat((kept, new[:, :, None]), dim=2), score, over

    def _support(
        self, texts: Tensor, tokens: Tensor, start: int, values: Tensor
    ) -> Float[Tensor, "row draft token"]:
        """Return the term that n-grams add to the shared log-probabilities."""
        support = torch.zeros(*texts.shape[:2], tokens.shape[1], device=tokens.device)
        if self.ngrams is None or self.mix == 0:
            return support
        log_p = values.log_softmax(dim=1)
        for row, drafts in enumerate(texts.tolist()):
            wanted = tokens[row].tolist()
            for i, text in enumerate(drafts):
                p = torch.tensor(self.ngrams.probabilities(text, wanted)).to(support)
                added = (self.mix * p.log()).masked_fill(p == 0, -self.penalty)
                support[row, i] = added - self.mix * log_p[row]
        return support


class _Reader:
    """A model with a cache that reads embeddings, part by part."""

    def __init__(self, model: nn.Module, mask: Int[Tensor, "row pos"]) -> None:
        self._model, self._mask, self._cache = model, mask, None
        self._takes = inspect.signature(model.forward).parameters

    def read(self, embedded: Float[Tensor, "row pos dim"]) -> Float[Tensor, "row token"]:
        """Return the logits after the next embeddings."""
        n = embedded.shape[1]
        if self._cache is not None:
            self._mask = torch.cat((self._mask, self._mask.new_ones(len(self._mask), n)), dim=1)
        named: dict[str, Any] = {
            "inputs_embeds": embedded,
            "attention_mask": self._mask,
            cache_argument(self._model): self._cache,
            "use_cache": True,
        }
        if "position_ids" in self._takes:
            named["position_ids"] = (self._mask.long().cumsum(1) - 1).clamp(min=0)[:, -n:]
        with torch.no_grad():
            output = self._model(**named)
        self._cache = cache_of(output)
        return output.logits[:, -1]


def linearity(
    model: Any, ids: Int[Tensor, "text pos"], weights: Float[Tensor, "text"]
) -> Float[Tensor, "layer"]:
    """Return how close a model is to linear in its embeddings, after each layer.

    The cosine, at the last token, between the state of mixed texts and the mixture of the states of
    the texts; 1 is linear. The first entry is the embeddings themselves.

    Parameters
    ----------
    model : object
        Model that is run; it is not changed.
    ids : Int[Tensor, 'text pos']
        Token ids of each text.
    weights : Float[Tensor, "text"]
        Weight of each text.
    """
    with torch.no_grad():
        embedded = model.get_input_embeddings()(ids)
        w = weights.to(embedded)
        mixed = torch.einsum("k,kpd->pd", w, embedded)[None]
        alone = model(inputs_embeds=embedded, output_hidden_states=True).hidden_states
        joint = model(inputs_embeds=mixed, output_hidden_states=True).hidden_states
    pairs = zip(joint, alone, strict=True)
    return torch.stack([torch.cosine_similarity(a[0, -1], w @ b[:, -1], dim=0) for a, b in pairs])
