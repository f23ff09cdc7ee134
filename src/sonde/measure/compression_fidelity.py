"""Test whether a compressed memory keeps a text's facts that a reader would guess wrongly.

For the memory vectors themselves see ``participation_ratio``, ``stable_rank``, ``entropy_rank``,
``effective_rank`` and ``two_nn``: compare compressors only at equal loss of reconstruction.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.few_groups import effective_groups, grouped_error
from sonde.core.renaming import renamed
from sonde.core.result import Direction, Result
from sonde.core.wording import plural
from sonde.engine.errorbars import with_copies, with_few_groups
from sonde.stats import error_if_all_agree

Tokens = Sequence[Sequence[Any]]


@final
@dataclass(frozen=True, kw_only=True)
class CompressionFidelityResult(Result):
    """Fraction of planted tokens that the decoder replaces by the expected token.

    ``copied`` and ``other`` are the shares with the planted token and with a third token; the three
    shares add to 1. ``exact`` is the share of texts that come back unchanged, ``drift`` the mean
    over texts of 1 less the F1 of tokens. ``entropy_planted`` and ``entropy_other`` are mean
    entropies of the decoder at planted and other places, in nats (NaN if no entropies are given).
    Where all documents agree the error is that of the exact interval.
    """

    direction: Direction = "lower"
    copied: float
    other: float
    exact: float
    drift: float
    n_planted: int
    entropy_planted: float
    entropy_other: float


@renamed(expected="usual")
def compression_fidelity(
    source: Tokens,
    decoded: Tokens,
    expected: Sequence[dict[int, Any]],
    *,
    entropy: Sequence[Any] | None = None,
    group: Sequence[Any] | None = None,
) -> CompressionFidelityResult:
    """Return how often a decoded text has expected tokens in place of planted ones.

    Planted tokens of a text contradict what is usual (a fact with another answer). After
    compression and decoding, each place has the planted token, the usual token, or a third token.

    Range        [0, 1]; lower = more faithful: 0 for a copy, 1 for a decoder that writes what is
                 usual. Compare with a decoder without a memory.
    Cost         O(tokens).
    Assumes      decoded texts keep the places of tokens; a place beyond their end counts as another
                 token.
    Differs      definitions are ours: the protocol of the paper was not available.

    Parameters
    ----------
    source, decoded : sequences of tokens, a text each
        What was compressed, and what the decoder made of the memory.
    expected : sequence of dict
        For each text: place of a planted token, and the token that would be usual there.
    entropy : sequence of arrays (token,), optional
        Entropy of the decoder's answer at each place of each text, in nats.
    group : sequence, optional
        Which texts belong to one document: the error takes them as one. Without, equal texts are
        one document (flag ``copies``).

    Raises
    ------
    InputError
        If lengths differ, nothing is planted, a place lies outside its text, or a planted token is
        the usual token.

    Examples
    --------
    >>> text = "the capital of France is Rome".split()
    >>> said = "the capital of France is Paris".split()
    >>> found = compression_fidelity([text, text], [text, said], [{5: "Paris"}] * 2)
    >>> found.value, found.copied, found.exact
    (0.5, 0.5, 0.5)

    References
    ----------
    sizefidelity2026
    """
    n = len(source)
    for name, given in (("decoded", decoded), ("expected", expected), ("entropy", entropy)):
        if given is not None and len(given) != n:
            raise InputError(
                f"compression_fidelity: expected {name} for {n} texts, got {len(given)}."
            )
    members = _equal_texts(source) if group is None else list(group)
    if len(members) != n:
        raise InputError(
            f"compression_fidelity: expected {plural(n, 'group')}, got {len(members)}."
        )
    overwritten: dict[Any, list[int]] = {}
    kinds: Counter[str] = Counter()
    for text, rebuilt, places, member in zip(source, decoded, expected, members, strict=True):
        for place, prior in places.items():
            kind = _kind(text, rebuilt, place, prior)
            kinds[kind] += 1
            sums = overwritten.setdefault(member, [0, 0])
            sums[0] += kind == "overwritten"
            sums[1] += 1
    n_planted = kinds.total()
    if n_planted == 0:
        raise InputError("compression_fidelity: expected planted tokens, got none in any text.")
    share = {kind: kinds[kind] / n_planted for kind in ("overwritten", "copied", "other")}
    sums = torch.tensor(list(overwritten.values()), dtype=torch.float64)
    gap = sums[:, 0] - share["overwritten"] * sums[:, 1]
    many = len(sums) > 1
    se = float(grouped_error(gap, sums[:, 1])) if many else math.nan
    planted, rest = _entropies(expected, entropy)
    if share["overwritten"] in (0.0, 1.0):
        se = error_if_all_agree(effective_groups(sums[:, 1])) * n_planted
    fidelity = CompressionFidelityResult(
        value=share["overwritten"],
        se=se / n_planted if many else None,
        n=len(sums),
        range=(0.0, 1.0),
        conventions={
            "drift": "1 minus F1 of the tokens as a bag",
            "null": "none: compare with a decoder without a memory",
            "se": "spread over groups" if many else "none: one group",
        },
        copied=share["copied"],
        other=share["other"],
        exact=sum(list(a) == list(b) for a, b in zip(source, decoded, strict=True)) / n,
        drift=sum(1.0 - _f1(a, b) for a, b in zip(source, decoded, strict=True)) / n,
        n_planted=n_planted,
        entropy_planted=planted,
        entropy_other=rest,
    )
    fidelity = with_few_groups(fidelity, effective_groups(sums[:, 1]))
    return with_copies(fidelity, n - len({*members}) if group is None else 0, n)


def _equal_texts(source: Tokens) -> list[int]:
    """Return for each text the index of the first text with equal tokens."""
    numbers: dict[tuple[Any, ...], int] = {}
    plain = [tuple(x.tolist() if isinstance(x, Tensor | np.ndarray) else x) for x in source]
    return [numbers.setdefault(text, i) for i, text in enumerate(plain)]


def _kind(text: Sequence[Any], said: Sequence[Any], place: int, prior: Any) -> str:
    if not 0 <= place < len(text) or text[place] == prior:
        raise InputError(
            "compression_fidelity: expected positions within the text whose token differs "
            f"from the prior's token, got position {place} in a text of {len(text)} tokens, "
            f"where the prior's token is {prior!r}."
        )
    answer = said[place] if place < len(said) else None
    return "copied" if answer == text[place] else "overwritten" if answer == prior else "other"


def _f1(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Return twice the shared tokens over all tokens of both; 1 for two empty texts."""
    shared = (Counter(a) & Counter(b)).total()
    return 2.0 * shared / (len(a) + len(b)) if len(a) + len(b) else 1.0


def _entropies(
    usual: Sequence[dict[int, Any]], entropy: Sequence[Any] | None
) -> tuple[float, float]:
    """Return the mean entropy at planted positions, and elsewhere."""
    if entropy is None:
        return math.nan, math.nan
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for places, values in zip(usual, entropy, strict=True):
        at = torch.as_tensor(values, dtype=torch.float64)
        planted = torch.zeros(len(at), dtype=torch.bool)
        planted[[p for p in places if p < len(at)]] = True
        parts[0].append(at[planted])
        parts[1].append(at[~planted])
    return float(torch.cat(parts[0]).mean()), float(torch.cat(parts[1]).mean())
