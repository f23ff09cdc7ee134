"""Beam search that avoids columns of high attention, which precede repetition."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.core.site import Site
from sonde.tap.decoding.layers import ModelBlocks
from sonde.tap.hand.editing import editing
from sonde.tap.hooks.cache import cache_argument, cache_of


@final
@dataclass(frozen=True)
class AttentionColumns:
    """Attention from later tokens to one token: a column of the attention matrix.

    ``P`` is the attention among the tokens of a window, greatest over heads, each row made to sum
    to 1. The score of token j is the sum of ``log(scale P_ij)`` over later tokens i, which is the
    logarithm of the product, or the mean of these logarithms.

    Range        (-inf, inf) nats; higher = more trust in one token; -inf for the last token.
    Differs      the paper multiplies in half precision, which overflows after four rows at a
                 probability of one half; logarithms do not.

    Parameters
    ----------
    scale : float, default=50.0
        Above 0.
    average : bool, default=True
        Mean instead of sum, so that long windows compare with short ones.

    Examples
    --------
    >>> probs = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.8, 0.1, 0.1]])
    >>> score = AttentionColumns(scale=1.0, average=False).score(probs[None, None])
    >>> [round(x, 4) for x in score.exp()[0].tolist()]
    [0.4, 0.1, 0.0]

    References
    ----------
    huang2024opera
    """

    scale: float = 50.0
    average: bool = True
    paper: ClassVar[str] = "huang2024opera"

    def __post_init__(self) -> None:
        check_ranges(self, scale="> 0")

    def score(self, probs: Float[Tensor, "row head query key"]) -> Float[Tensor, "row key"]:
        """Return the score of each column of a square attention window."""
        if probs.shape[2] != probs.shape[3]:
            raise InputError(
                "AttentionColumns.score: expected equally many queries and keys of a window, "
                f"got {tuple(probs.shape)}. Cut out probs[:, :, start:, start:]."
            )
        seen = probs.double().amax(dim=1)
        logs = (seen / seen.sum(dim=2, keepdim=True) * self.scale).log()
        later = torch.ones_like(logs[0], dtype=torch.bool).tril(-1)
        total, n = logs.masked_fill(~later, 0.0).sum(dim=1), later.sum(dim=0)
        scores = total / n.clamp(min=1) if self.average else total
        return scores.masked_fill(n == 0, -torch.inf).to(probs)


@dataclass(frozen=True, eq=False)
class _Beams:
    """The beams of a prompt, best first, with their most attended token at each step."""

    texts: Int[Tensor, "beam pos"]
    scores: Float[Tensor, "beam"]
    logits: Float[Tensor, "beam token"]
    peaks: tuple[tuple[int, ...], ...]
    over: tuple[bool, ...]


@final
@dataclass(frozen=True)
class OverTrustDecode:
    """Beam search that penalises attention columns in candidates, and can step back.

    A callable for ``model.generate(custom_generate=...)``. Each beam offers its likeliest tokens.
    The model reads each of them, and ``strength`` times its greatest column score among generated
    tokens is subtracted from its log-probability. If the best beam trusted one position in more
    than ``patience`` of its last ``2 patience`` steps, the search goes back to the token after this
    position, and forbids the token that stood there.

    Cost         beams x candidates rows of one token for each token; whole texts after a step back,
                 and for a model whose cache does not keep all keys (sliding windows, recurrence).
    Assumes      an attention whose port ``probs`` can be read.
    Differs      columns are scored in logarithms and as means; prompts come one after the other.

    Parameters
    ----------
    columns : AttentionColumns
        Score of the attention columns, which is read at each step.
    beams : int, default=5
        Number of beams.
    candidates : int, default=5
        Number of candidates of each beam.
    strength : float, default=1.0
        Weight of the greatest column score in a candidate's log-probability; 0 is plain beam
        search.
    patience : int, default=15
        Number of steps, of the last ``2 patience``, that may trust one position before the search
        goes back.
    retries : int, default=5
        How often tokens are taken back at most for one prompt.
    layer : int, default=-1
        The block whose attention is read.

    References
    ----------
    huang2024opera
    """

    columns: AttentionColumns = AttentionColumns()
    beams: int = 5
    candidates: int = 5
    strength: float = 1.0
    patience: int = 15
    retries: int = 5
    layer: int = -1
    paper: ClassVar[str] = "huang2024opera"

    def __post_init__(self) -> None:
        check_ranges(self, beams=">= 1", candidates=">= 1", patience=">= 1", retries=">= 0")

    def __call__(
        self,
        model: Any,
        input_ids: Int[Tensor, "row pos"],
        logits_processor: Sequence[Any] = (),
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **model_kwargs: Any,
    ) -> Int[Tensor, "row pos2"]:
        """Generate texts. Called by ``generate``."""
        if len(logits_processor):
            raise InputError(
                f"OverTrustDecode: expected no logits processors, got {list(logits_processor)}."
            )
        mask = model_kwargs.get("attention_mask")
        pad = getattr(generation_config, "pad_token_id", None) or 0
        rows: list[Tensor] = []
        for i, ids in enumerate(input_ids):
            prompt = ids if mask is None else ids[mask[i] != 0]
            n_pad = len(ids) - len(prompt)
            new = self._search(model, prompt, stopping_criteria, pad, n_pad)[len(prompt) :]
            rows.append(torch.cat((ids, new)))
        longest = max(map(len, rows))
        return torch.stack(
            [torch.nn.functional.pad(row, (0, longest - len(row)), value=pad) for row in rows]
        )

    def _search(self, model: Any, prompt: Tensor, stop: Any, pad: int, n_pad: int) -> Tensor:
        """Return the best text after one prompt."""
        ids, reader = prompt[None], _Reader(model, self.layer, start=len(prompt))
        logits, _ = reader.read(ids)
        now = _Beams(ids, torch.zeros(1, device=ids.device), logits, ((),), (False,))
        history, forbidden, left = [now], dict[int, set[int]](), self.retries
        while not all(now.over):
            now = self._step(reader, now, forbidden.get(now.texts.shape[1], set()), pad)
            padded = torch.nn.functional.pad(now.texts, (n_pad, 0), value=pad)
            ended = stop(padded, None).tolist()
            now = replace(now, over=tuple(a or b for a, b in zip(now.over, ended, strict=True)))
            history.append(now)
            back = self._trusted(now)
            if left and back is not None and not all(now.over):
                left -= 1
                width = back + 1
                forbidden.setdefault(width, set()).add(int(now.texts[0, width]))
                history = history[: width - len(prompt) + 1]
                now = history[-1]
        return now.texts[0]

    def _trusted(self, now: _Beams) -> int | None:
        """Return the position that the best beam attends to too often, unless it is the last."""
        recent = now.peaks[0][-2 * self.patience :]
        position, n = Counter(recent).most_common(1)[0] if recent else (-1, 0)
        return position if n > self.patience and position + 1 < now.texts.shape[1] else None

    def _step(self, reader: "_Reader", now: _Beams, forbidden: set[int], pad: int) -> _Beams:
        """Return the beams with a further token."""
        p = now.logits.log_softmax(dim=1)
        if forbidden:
            p[:, sorted(forbidden)] = -torch.inf
        over = torch.tensor(now.over, device=p.device)[:, None]
        values, tokens = p.topk(self.candidates, dim=1)
        tokens = tokens.masked_fill(over, pad)
        stays = torch.full_like(values, -torch.inf)
        stays[:, 0] = 0.0
        values = torch.where(over, stays, values)
        old = now.texts[:, None].expand(-1, self.candidates, -1)
        texts = torch.cat((old, tokens[:, :, None]), dim=2).flatten(0, 1)
        logits, window = reader.read(texts)
        best, peak = self._columns(window).max(dim=1)
        paid = self.strength * best.view_as(values) if self.strength != 0 else 0.0
        paid = torch.where(over | torch.isinf(values), 0.0, torch.as_tensor(paid).nan_to_num(0.0))
        total = (now.scores[:, None] + values - paid).flatten()
        scores, chosen = total.topk(min(self.beams, int(total.isfinite().sum())))
        parents = [i // self.candidates for i in chosen.tolist()]
        peaks = [int(x) + reader.start for x in peak[chosen]]
        return _Beams(
            texts[chosen],
            scores,
            logits[chosen],
            tuple((*now.peaks[i], at) for i, at in zip(parents, peaks, strict=True)),
            tuple(now.over[i] for i in parents),
        )

    def _columns(self, window: Float[Tensor, "row query key"]) -> Float[Tensor, "row key"]:
        """Return the scores of the generated tokens; 0 for a token that stands alone."""
        if window.shape[1] < 2:
            return torch.zeros(len(window), 1, device=window.device)
        return self.columns.score(window[:, None])


@dataclass(frozen=True, eq=False)
class _Probabilities(Edit):
    """An edit that changes nothing and keeps what it is shown, also of calls with a cache."""

    seen: list[Tensor] = field(default_factory=list[Tensor])

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        self.seen.append(x)
        return x


class _Reader:
    """A model that reads one more token of texts whose other tokens it read last time.

    Parameters
    ----------
    model : Module
    layer : int
        The block whose attention is returned.
    start : int
        The first position of the attention window.
    """

    def __init__(self, model: Any, layer: int, start: int) -> None:
        self.start = start
        self._model = model
        self._cache: Any = None
        self._site = f"{ModelBlocks(model).site(layer).path}:probs"
        self._texts, self._window = torch.empty(0, 0), torch.empty(0)

    def read(
        self, texts: Int[Tensor, "row pos"]
    ) -> tuple[Float[Tensor, "row token"], Float[Tensor, "row query key"]]:
        """Return next-token logits, and the attention of the window, greatest over heads."""
        parents = self._parents(texts)
        cached = {}
        if parents is not None:
            self._cache.batch_select_indices(parents)
            cached = {cache_argument(self._model): self._cache}
        new = texts if parents is None else texts[:, -1:]
        probs = _Probabilities()
        with torch.no_grad(), editing(self._model, probs, self._site, cache="keep", here=True):
            output = self._model(new, use_cache=True, **cached)
        n_new = min(new.shape[1], texts.shape[1] - self.start)
        of_heads = probs.seen[-1].unflatten(2, (self._model.config.num_attention_heads, -1))
        seen = of_heads.amax(dim=2)[:, new.shape[1] - n_new :, self.start :]
        if parents is not None:
            earlier = torch.nn.functional.pad(self._window[parents], (0, 1))
            seen = torch.cat((earlier, seen), dim=1)
        self._texts, self._window, cache = texts, seen.float(), cache_of(output)
        self._cache = cache if _keeps_all_keys(cache) else None
        return output.logits[:, -1].float(), self._window

    def _parents(self, texts: Int[Tensor, "row pos"]) -> Int[Tensor, "row"] | None:
        """Return the row of each text's other tokens in the cache, or None if one is not there."""
        if self._cache is None or texts.shape[1] != self._texts.shape[1] + 1:
            return None
        same = (texts[:, None, :-1] == self._texts).all(dim=2)
        return same.int().argmax(dim=1) if bool(same.any(dim=1).all()) else None


def _keeps_all_keys(cache: Any) -> bool:
    """Return whether the rows of a cache can be selected, and each holds every position."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return isinstance(cache, DynamicCache) and all(type(x) is DynamicLayer for x in cache.layers)
