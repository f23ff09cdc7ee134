"""Predictions by n-gram counts of the other texts, which any model should beat."""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.hashing import base_hashes
from sonde.core.inputs import InputBatch, Inputs

ORDERS: Final = 3
FOLDS: Final = 4
MOST: Final = 1 << 17

Ids = Int[Tensor, "_token"]


def counted_losses(
    inputs: Inputs, texts: Sequence[InputBatch], seed: int
) -> list[Float[Tensor, "order _token"]]:
    """Return each token's loss in nats under counts of one to three tokens.

    Counts are of the data's first texts, about 131,072 tokens, without a text's own group and the
    groups that share its quarter by hash.
    """
    read, fold_of = _read(inputs), _Folds(seed)
    losses: list[Tensor] = [torch.zeros(0)] * len(texts)
    folds = [fold_of(text.group_keys[0]) for text in texts]
    for fold in sorted(set(folds)):
        counts = _Counts([ids for key, ids in read if fold_of(key) != fold])
        for i, text in enumerate(texts):
            if folds[i] == fold:
                losses[i] = counts.losses(ids_of(text)[0])
    return losses


def losses_after(before: Sequence[Ids], text: Ids) -> Float[Tensor, "order _target"]:
    """Return the loss of a text's tokens after the first, under counts of the texts before it."""
    return _Counts(before).losses(text)


def ids_of(batch: InputBatch) -> Int[Tensor, "row pos"]:
    """Return the tokens of a batch."""
    ids = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    assert isinstance(ids, Tensor)
    return ids.cpu()


class _Folds:
    def __init__(self, seed: int) -> None:
        self.seed, self.known = seed, dict[bytes, int]()

    def __call__(self, key: bytes) -> int:
        if key not in self.known:
            self.known[key] = int(base_hashes([key], "sample", self.seed)[0]) % FOLDS
        return self.known[key]


def _read(inputs: Inputs) -> list[tuple[bytes, Ids]]:
    """Return the tokens of the first texts, with their groups."""
    texts: list[tuple[bytes, Ids]] = []
    n = 0
    for batch in inputs.batches(0, len(inputs)):
        ids = ids_of(batch)
        for i, key in enumerate(batch.group_keys):
            real = ids[i] if batch.mask is None else ids[i][batch.mask[i].cpu()]
            texts.append((key, real.long()))
            n += len(real)
        if n >= MOST:
            break
    return texts


class _Counts:
    """Counts of runs of up to three tokens, smoothed as in Witten and Bell (1991).

    The chance of a token after ``h`` is ``(count + kinds lower) / (total + kinds)``, where
    ``kinds`` is how many different tokens followed ``h``, and ``lower`` the chance by the shorter
    context.
    """

    def __init__(self, texts: Sequence[Ids]) -> None:
        self.size = 1 + max((int(t.max()) for t in texts if len(t)), default=0)
        self.tables = [self._table(texts, n) for n in range(1, ORDERS + 1)]

    def _codes(self, text: Ids, n: int) -> Int[Tensor, "run"]:
        """Return one id for each n-gram of tokens."""
        code = torch.zeros(max(0, len(text) - n + 1), dtype=torch.int64)
        for k in range(n):
            code = code * self.size + text[k : k + len(code)].clamp(max=self.size - 1)
        return code

    def _table(self, texts: Sequence[Ids], n: int) -> tuple[Tensor, ...]:
        runs = torch.cat([self._codes(t, n) for t in texts] or [torch.zeros(0, dtype=torch.int64)])
        code, count = torch.unique(runs, return_counts=True)
        context, where, kinds = torch.unique(
            code // self.size, return_inverse=True, return_counts=True
        )
        total = torch.zeros(len(context), dtype=torch.int64).index_add_(0, where, count)
        return code, count, context, total, kinds

    def losses(self, text: Ids) -> Float[Tensor, "order target"]:
        """Return each token's loss under counts of one, two and three tokens."""
        n = len(text) - 1
        chance = torch.full((n,), 1.0 / (self.size + 1), dtype=torch.float64)
        parts = []
        for k in range(1, ORDERS + 1):
            code, count, context, total, kinds = self.tables[k - 1]
            runs = self._codes(text, k)[2 - k if k < 2 else 0 :]
            own, others = _looked_up(code, count, runs), runs // self.size
            all_after, kinds_after = (_looked_up(context, x, others) for x in (total, kinds))
            seen = all_after + kinds_after
            better = (own + kinds_after * chance[n - len(runs) :]) / seen.clamp(min=1)
            chance = chance.clone()
            chance[n - len(runs) :] = torch.where(seen > 0, better, chance[n - len(runs) :])
            parts.append(-chance.log())
        return torch.stack(parts)


def _looked_up(
    keys: Int[Tensor, "key"], values: Int[Tensor, "key"], wanted: Int[Tensor, "wanted"]
) -> Float[Tensor, "wanted"]:
    """Return the value of each wanted key, 0 where it is not among the keys."""
    if len(keys) == 0:
        return torch.zeros(len(wanted), dtype=torch.float64)
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[at] == wanted, values[at], 0).double()
