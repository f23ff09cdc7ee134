"""Test cache compressions on a user's own texts: their cost in quality, memory and time.

Every text is read twice: in one forward, and in parts through a cache that evicts after each part.
The divergence between the two predictions of each next token says what the evicted tokens were
worth.
"""

import inspect
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from sonde.core.cache_packing import CachePacking
from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.engine.errorbars import group_error
from sonde.engine.progress import Bar
from sonde.stats.divergence import kl_divergence
from sonde.tap.cache.evicting import Form, caching
from sonde.tap.hooks.cache import cache_argument
from sonde.tap.hooks.holding import in_eval


@dataclass(frozen=True)
class CacheTrial:
    """Measured costs of one cache on some texts.

    Parameters
    ----------
    rule : CacheRule or CachePacking
    divergence_nats : float
        ``KL(whole || smaller)`` of the predictions with the whole cache and with the smaller one:
        mean over the tokens after the prompt of a text, then mean over texts.
    se : float
        Its standard error over texts, or over groups of texts.
    worst_nats : float
        99 % quantile of the divergence over tokens.
    same_answer : float
        Share of tokens for which the likeliest next token is the same.
    memory : float
        Bytes that the cache holds at the end of the texts, as a share of the whole cache's.
    time : float
        Seconds for reading the texts in parts, as a ratio to a plain cache's.
    """

    rule: Form
    divergence_nats: float
    se: float
    worst_nats: float
    same_answer: float
    memory: float
    time: float

    def json(self) -> dict[str, Any]:
        """Return the measurements, with the name and parameters of the cache compression.

        The error of a single group of texts is not known, and None.
        """
        se = self.se if math.isfinite(self.se) else None
        return asdict(self) | {"rule": repr(self.rule), "se": se}


def try_caches(
    model: Model,
    inputs: Inputs,
    rules: Sequence[Form],
    *,
    step: int = 16,
    progress: bool = True,
) -> list[CacheTrial]:
    """Measure each cache compression on some texts, in the order given.

    The first half of each text is its prompt; the rest is read ``step`` tokens at a time, and the
    cache evicts after each part.

    Parameters
    ----------
    model : Model
        Causal language model of transformers.
    inputs : Inputs
        Texts, as ``open_inputs`` gives them.
    rules : sequence of CacheRule or CachePacking
    step : int, default=16
        Tokens read between two evictions; 1 is what generation does, and slowest.

    Raises
    ------
    InputError
        If no text has two tokens, or ``step`` is below 1.
    """
    if step < 1:
        raise InputError(f"try_caches: expected step of 1 or more, got {step}.")
    sums = [Sums() for _ in rules]
    total, quiet = len(inputs) * (len(rules) + 1), in_eval(model.module)
    with Bar("caches", total, progress) as bar, quiet, torch.no_grad():
        for batch in inputs.batches(0, len(inputs)):
            texts = _Texts.of(model, batch, step)
            if texts is None:
                bar.advance(len(batch) * (len(rules) + 1))
                continue
            whole = model.module(**texts.given(slice(None))).logits.log_softmax(-1)
            plain = DynamicCache(config=model.config)
            _, seconds = texts.read(model, plain)
            n_bytes = _size(plain)
            bar.advance(len(batch))
            for rule, into in zip(rules, sums, strict=True):
                with caching(model, rule, here=True) as cache:
                    logits, own = texts.read(model, cache)
                    into.add(whole, logits, texts, batch.group_keys)
                    into.memory.append(cache.size_bytes / n_bytes)
                    into.time.append(own / seconds)
                bar.advance(len(batch))
    if any(not into.texts for into in sums):
        raise InputError(
            "try_caches: expected texts of two tokens or more, got none. Give longer texts."
        )
    return [into.trial(rule) for rule, into in zip(rules, sums, strict=True)]


def suited(rule: Form, n_tokens: int) -> Form:
    """Return the cache compression, with smaller chunks if the texts are too short to fill one."""
    if not isinstance(rule, CachePacking):
        return rule
    older = n_tokens - rule.recent
    is_short = 2 <= older < 2 * rule.chunk
    return replace(rule, chunk=older // 2) if is_short else rule  # type: ignore[type-var]


def smallest(trials: Sequence[CacheTrial], most_nats: float) -> CacheTrial | None:
    """Return the trial of least memory whose divergence is significantly below a limit, or None.

    Surely: the mean divergence plus two standard errors is at most ``most_nats``.
    """
    fine = [t for t in trials if t.divergence_nats + 2 * t.se <= most_nats]
    return min(fine, key=lambda t: (t.memory, t.divergence_nats), default=None)


@dataclass(frozen=True, eq=False)
class _Texts:
    """One batch of texts, and how its tokens are split into prompt and steps."""

    ids: Tensor
    mask: Tensor
    position: Tensor | None
    n_prompt: int
    step: int

    @classmethod
    def of(cls, model: Model, batch: InputBatch, step: int) -> "_Texts | None":
        """Return a batch as texts, or None if its texts have fewer than two tokens."""
        ids = batch.kwargs.get("input_ids")
        if ids is None:
            raise InputError(
                "try_caches: expected texts, got inputs without token ids. Give a language model."
            )
        device = next(model.module.parameters()).device
        given = batch.kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if given is None else given
        if ids.shape[1] < 2:
            return None
        takes = inspect.signature(model.module.forward).parameters
        position = (mask.long().cumsum(1) - 1).clamp(min=0) if "position_ids" in takes else None
        placed = None if position is None else position.to(device)
        return cls(ids.to(device), mask.to(device), placed, math.ceil(ids.shape[1] / 2), step)

    def given(self, part: slice) -> dict[str, Tensor]:
        """Return the model's arguments for the token columns in ``part``."""
        more = {} if self.position is None else {"position_ids": self.position[:, part]}
        return {"input_ids": self.ids[:, part], "attention_mask": self.mask[:, : part.stop], **more}

    def read(self, model: Model, cache: Cache) -> tuple[Tensor, float]:
        """Return the logits after the prompt and the seconds used, reading through a cache."""
        width = self.ids.shape[1]
        edges = [0, *range(self.n_prompt, width, self.step), width]
        start, logits = time.perf_counter(), list[Tensor]()
        for first, last in pairwise(edges):
            given = self.given(slice(first, last))
            logits.append(model.module(**given, **{cache_argument(model.module): cache}).logits)
        return torch.cat(logits[1:], 1), time.perf_counter() - start

    @property
    def counted(self) -> Tensor:
        """Mask (row, column) of the real tokens after the prompt."""
        return self.mask[:, self.n_prompt :].bool()


class Sums:
    """Sums over the batches of texts for one cache compression."""

    def __init__(self) -> None:
        self.texts: list[float] = []
        self.groups: list[bytes] = []
        self.tokens: list[Tensor] = []
        self.same: list[Tensor] = []
        self.memory: list[float] = []
        self.time: list[float] = []

    def add(self, whole: Tensor, logits: Tensor, texts: _Texts, groups: Sequence[bytes]) -> None:
        """Add a batch: the predictions with the whole cache, and those with the smaller one."""
        expected = whole[:, texts.n_prompt :].double()
        log_q = logits.double().log_softmax(-1)
        apart = kl_divergence(expected, log_q)
        counted = texts.counted
        for row, own, group in zip(apart, counted, groups, strict=True):
            if bool(own.any()):
                self.texts.append(float(row[own].mean()))
                self.groups.append(group)
        self.tokens.append(apart[counted].cpu())
        self.same.append((expected.argmax(-1) == log_q.argmax(-1))[counted].cpu())

    def trial(self, rule: Form) -> CacheTrial:
        """Return the costs over all batches."""
        tokens = torch.cat(self.tokens)
        numbers = {key: i for i, key in enumerate(dict.fromkeys(self.groups))}
        group = torch.tensor([numbers[key] for key in self.groups])
        se = group_error(torch.tensor(self.texts) / len(group), group, len(numbers))
        return CacheTrial(
            rule=rule,
            divergence_nats=statistics.fmean(self.texts),
            se=se if math.isfinite(se) else math.inf,
            worst_nats=float(tokens.kthvalue(max(math.ceil(0.99 * len(tokens)), 1)).values),
            same_answer=float(torch.cat(self.same).double().mean()),
            memory=statistics.fmean(self.memory),
            time=statistics.median(self.time),
        )


def _size(cache: Any) -> int:
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(x.numel() * x.element_size() for x in held if isinstance(x, Tensor))
