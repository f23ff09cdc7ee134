"""Find the finished sequences of a batch while ``generate`` continues with the others.

``generate`` feeds the end token of such a sequence and then padding, and says in the attention mask
that both count. A sequence alone in its batch is never fed its end token.
"""

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn


class Ends:
    """Tracks the sequences of a batch through the cached steps of one generation.

    A sequence is over from the end token that a step feeds until something other than padding
    follows. A forward without a cache or with several tokens begins anew. If all sequences would
    be over, none counts as over: ``generate`` makes no such step, so another caller feeds them.

    Parameters
    ----------
    root : nn.Module
        Its generation config, or else its config, says the end and padding tokens, read at every
        step.
    config : object, optional
        Says the end and padding tokens instead of ``root``.
    padding : collection of int, default=()
        Further tokens that may follow an end.
    """

    def __init__(self, root: nn.Module, config: Any = None, padding: Collection[int] = ()) -> None:
        self.root, self.config, self.padding = root, config, frozenset(padding)

    def after(
        self, ids: Tensor | None, past: int, before: Tensor | None
    ) -> Bool[Tensor, "example"] | None:
        """Return the sequences finished in this forward pass, or None if none or all are.

        Parameters
        ----------
        ids : Tensor or None
            What the forward is fed.
        past : int
            Tokens in the cache.
        before : Tensor or None
            What this returned for the forward before on the same texts.
        """
        if not past or ids is None or ids.ndim != 2 or ids.shape[1] != 1 or len(ids) == 1:
            return None
        ends, padding = self._tokens()
        if not ends:
            return None
        fed = ids[:, 0].cpu()
        over = torch.isin(fed, torch.tensor(sorted(ends)))
        if before is not None and len(before) == len(over):
            over |= before & torch.isin(fed, torch.tensor(sorted(padding)))
        return over if bool(over.any()) and not bool(over.all()) else None

    def _tokens(self) -> tuple[frozenset[int], frozenset[int]]:
        """Return the end tokens, and the tokens that may follow an end token."""
        config = self.config
        for name in ("generation_config", "config"):
            config = getattr(self.root, name, None) if config is None else config
        ends = _ids(getattr(config, "eos_token_id", None))
        return ends, ends | self.padding | _ids(getattr(config, "pad_token_id", None))


def _ids(said: Any) -> frozenset[int]:
    return frozenset(() if said is None else torch.as_tensor(said).flatten().tolist())
