"""Select the tokens that an edit changes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Bool
from torch import Tensor

from sonde.core.edit import EditContext
from sonde.core.errors import InputError, SiteError

WORDS = ("all", "prompt", "generated", "last")


@final
@dataclass(frozen=True)
class TokenIds:
    """Selects every token with one of these ids.

    Parameters
    ----------
    ids : tuple of int
        Token ids that are selected.
    """

    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        if not self.ids or not all(isinstance(i, int) for i in self.ids):
            raise InputError(f"TokenIds: expected ids such as (5, 7), got {self.ids!r}.")


Where = str | TokenIds | Iterable[str | TokenIds | int]


@final
@dataclass(frozen=True)
class TermPlaces:
    """The union of the tokens that several terms select.

    Parameters
    ----------
    words : frozenset of str
        ``all``; ``prompt`` and ``generated``; ``last``, the last token of the prompt.
    positions : tuple of int
        In the document, from 0, padding not counted.
    ids : tuple of int
    """

    words: frozenset[str] = frozenset()
    positions: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()

    @staticmethod
    def of(where: Where) -> "TermPlaces":
        """Parse the positions that a user named.

        Raises
        ------
        InputError
            If a word is unknown, a position is below 0, or nothing is named.
        """
        terms = (where,) if isinstance(where, str | TokenIds) else tuple(where)
        words = frozenset(t for t in terms if isinstance(t, str))
        positions = tuple(t for t in terms if isinstance(t, int))
        ids = tuple(i for t in terms if isinstance(t, TokenIds) for i in t.ids)
        n_known = len(positions) + sum(isinstance(t, str | TokenIds) for t in terms)
        if not terms or n_known < len(terms) or words - set(WORDS) or min(positions, default=0) < 0:
            raise InputError(
                f"editing: expected where to be one of {', '.join(WORDS)}, positions from 0 such "
                f"as [0, 3], TokenIds((5, 7)), or several of these, got {where!r}."
            )
        return TermPlaces(words, positions, ids)

    def __str__(self) -> str:
        terms = [*sorted(self.words), *map(str, self.positions)]
        return ", ".join(terms + ([f"TokenIds({self.ids})"] if self.ids else []))

    @property
    def is_all(self) -> bool:
        """True if every token is selected."""
        return "all" in self.words

    def select(self, context: EditContext, prompt_length: int) -> Bool[Tensor, "example pos"]:
        """Return the tokens of a context that the terms select, possibly including padding.

        Parameters
        ----------
        context : EditContext
            With ``position`` and ``generated``.
        prompt_length : int
            How many of the tokens are of the prompt.
        """
        generated, position = cast(Tensor, context.generated), cast(Tensor, context.position)
        if self.is_all or {"prompt", "generated"} <= self.words:
            return torch.ones_like(generated)
        chosen = torch.zeros_like(generated)
        if "prompt" in self.words:
            chosen = ~generated
        if "generated" in self.words:
            chosen = generated
        if "last" in self.words and prompt_length:
            chosen = chosen | _last(context.mask, generated, prompt_length)
        if self.positions:
            chosen = chosen | torch.isin(position, torch.tensor(self.positions).to(position))
        if self.ids:
            if context.tokens is None:
                raise SiteError(
                    "editing: where=TokenIds(...) needs the ids of the tokens, but the model "
                    "was called without token ids for these states. Name positions instead."
                )
            chosen = chosen | torch.isin(context.tokens, torch.tensor(self.ids).to(context.tokens))
        return chosen


def _last(mask: Tensor | None, generated: Tensor, prompt_length: int) -> Tensor:
    """Return the last real token of each prompt."""
    is_last = torch.zeros_like(generated)
    if mask is None:
        is_last[:, prompt_length - 1] = True
        return is_last
    prompt = mask[:, :prompt_length]
    last = prompt_length - 1 - prompt.flip(1).to(torch.uint8).argmax(1)
    is_last[torch.arange(len(is_last), device=is_last.device), last] = True
    return is_last & mask
