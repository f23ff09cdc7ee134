"""Prompts with their answers, as inputs of a model that is judged by the answers only."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sonde.core.hashing import tensor_key
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.edit._facts import PREFIXES, Fact, prompts


class FactAnswers(Inputs):
    """Each fact after each prefix: the model reads the prompt, and the target is the answer.

    Only the log-probability of the target's tokens counts, not that of the prompt's tokens.

    Parameters
    ----------
    model : Model
    facts : sequence of Fact
    prefixes : sequence of str
    """

    def __init__(
        self, model: Model, facts: Sequence[Fact], prefixes: Sequence[str] = PREFIXES
    ) -> None:
        self._texts = prompts(model, facts, prefixes, answered=True)
        self._keys = tuple(tensor_key(row.cpu()) for row in self._texts.ids)

    @property
    def group_keys(self) -> Sequence[bytes]:
        """Group keys, one for each text."""
        return self._keys

    @property
    def grouped(self) -> bool:
        """Return False, because each text is independent."""
        return False

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield all texts in one batch."""
        texts, keys = self._texts, self._keys[start:stop]
        n = len(keys)
        part = {name: x[start:stop] for name, x in texts.inputs().items()}
        yield InputBatch(
            args=(),
            kwargs=part,
            ids=tuple(key.hex() for key in keys),
            keys=keys,
            order=torch.arange(start, start + n),
            occurrence=torch.zeros(n, dtype=torch.int64),
            group_keys=keys,
            label=torch.full((n,), -1),
            mask=texts.mask[start:stop].cpu(),
            completion=texts.answer[start:stop].cpu(),
        )

    def identity(self) -> dict[str, Any]:
        """Return the hash of each text."""
        return {"facts": [key.hex() for key in self._keys]}
