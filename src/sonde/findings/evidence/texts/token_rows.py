"""Tokens with a far higher loss than others, and row exchanges that correct it.

The loss after a token, and at it, is compared with counts of three tokens: what is hard for counts
may be hard for the model. If tokens stand out, pairs of them exchange their rows in the embedding,
the head or both for a trial.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.batch import words_of
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.counted_tokens import ids_of
from sonde.findings.evidence.texts.lens import TextAnswers, measure_lens
from sonde.findings.self_check import chosen_examples
from sonde.findings.trial import chance_of_gain, chooses_by_key
from sonde.findings.trial_budget import TrialBudget, counted
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import SmallBatches, small_batches, with_tokens

TEXTS, LONGEST, FEW, LEAST = 48, 64, 6, 8
PLACES, TEXTS_WITH = 10, 4  # at least, of a token that stands out
MOST: Final = 10
ROUNDS: Final = 2
KIND: Final = ("exchange of token rows", "exchanges of token rows")
ALONE: Final = 0.25
"""Part of the budget that the exchanges of a round tried on few texts may take."""
BEYOND, APART, ERRORS = 0.5, 1.5, 4.0
Side = Literal["after", "at"]
Rows = Literal["embedding", "head", "embedding and head"]


@dataclass(frozen=True)
class OddToken:
    """A token with an unusually high loss after it or at it.

    Parameters
    ----------
    token, n : int
        Its number, and how often it was looked at.
    side : str
    beyond, elsewhere : float
        Loss beyond that of counts: its mean there, and its median at all other tokens.
    """

    token: int
    n: int
    side: Side
    beyond: float
    elsewhere: float


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Tokens with an unusual loss, and the exchange of rows that lowers it most.

    Parameters
    ----------
    odd : tuple of OddToken
        The worst first.
    words : mapping of int to str
    rows : str
        Whose rows are exchanged; None if no exchange was tried or none helped.
    pairs : tuple of (int, int)
    given, changed : Float[Tensor, "text"]
        Loss of texts that did not choose the pairs.
    p : float
    texts : Int[Tensor, "text"]
        Their examples by planned order.
    group : Int[Tensor, "text"]
        Group of each of these texts, such as copies: groups are the units of the test.
    """

    odd: tuple[OddToken, ...]
    words: Mapping[int, str]
    rows: Rows | None
    pairs: tuple[tuple[int, int], ...]
    given: Float[Tensor, "text"]
    changed: Float[Tensor, "text"]
    p: float
    texts: Int[Tensor, "text"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    group: Int[Tensor, "text"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


@counted
def token_rows(stream: LiveStream, evidence: Evidence) -> TokenRows | None:
    """Return the tokens with an unusual loss, or None if no next token is predicted."""
    lens, seed = evidence.get(measure_lens), evidence.data.seed
    if lens is None or lens.texts is None:
        return None
    odd = sorted(odd_tokens(lens.texts), key=lambda o: -o.beyond)
    nothing = TokenRows(tuple(odd), lens.texts.words, None, (), torch.ones(0), torch.ones(0), 1.0)
    chosen = chosen_examples(stream, TEXTS, seed) if len(odd) > 1 else []
    small = small_batches(stream.model, stream.inputs, chosen, LONGEST, 2 * LEAST)
    if len(small) < 2 * LEAST or small.singles[0].placeholder is not None:
        return nothing
    with untouched(stream.model.module), torch.no_grad():
        exchanged = [
            _exchanged(stream, small, odd, rows, evidence.budget) for rows in _suspected(odd)
        ]
    tried = [f for f in exchanged if f is not None]
    if not tried:
        return nothing
    rows, pairs, given, changed = min(tried, key=lambda f: float(f[3].mean()))
    texts = small.together(_judging(small))
    group = words_of(texts.group_keys)
    p = chance_of_gain(-given, -changed, group)
    return TokenRows(
        tuple(odd), lens.texts.words, rows, pairs, given, changed, p, texts.order, group
    )


def _judging(small: SmallBatches) -> list[int]:
    """Return the held-out texts that judge an exchange; the other texts select it."""
    chosen = chooses_by_key([key for one in small.singles for key in one.group_keys])
    return torch.nonzero(~chosen).flatten().tolist()


def odd_tokens(texts: TextAnswers) -> list[OddToken]:
    """Return the tokens whose loss far exceeds that of n-gram counts."""
    pairs = zip(texts.losses, texts.counted, strict=True)
    beyond = torch.cat([own - counts for own, counts in pairs])
    keys: dict[Side, Tensor] = {
        "after": torch.cat([x[:-1] for x in texts.ids]),
        "at": torch.cat([x[1:] for x in texts.ids]),
    }
    text = torch.cat([torch.full((len(x) - 1,), i) for i, x in enumerate(texts.ids)])
    tokens: list[OddToken] = []
    for side, key in keys.items():
        for token in torch.unique(key).tolist():
            of_token = key == token
            n = int(of_token.sum())
            few = n < PLACES or len(torch.unique(text[of_token])) < TEXTS_WITH
            if few or n > len(key) // 2:
                continue
            here, rest = float(beyond[of_token].mean()), float(beyond[~of_token].median())
            error = float(beyond[of_token].std()) / n**0.5
            if here > BEYOND and here - rest > max(APART, ERRORS * error):
                tokens.append(OddToken(int(token), n, side, here, rest))
    return tokens


def _suspected(odd: Sequence[OddToken]) -> list[Rows]:
    """Return the rows that may be exchanged: of the embedding, of the head, or of both."""
    n = {side: sum(o.side == side for o in odd) for side in ("after", "at")}
    suspected: list[Rows] = []
    if n["after"] > 1:
        suspected.append("embedding")
    if n["at"] > 1:
        suspected.append("head")
    suspected.append("embedding and head")
    return suspected


class _Given:
    """The model, run on texts with exchanged token rows."""

    def __init__(self, stream: LiveStream, small: SmallBatches, rows: Rows) -> None:
        self.stream, self.small, self.rows = stream, small, rows

    def losses(
        self, pairs: Sequence[tuple[int, int]], which: Sequence[int]
    ) -> Float[Tensor, "text"]:
        """Return the loss of some texts."""
        batch = self.small.together(which)
        ids = ids_of(batch)
        given = _swapped(ids, pairs) if self.rows != "head" else ids
        place = self.stream.probe.place
        module, batch = self.stream.model.module, with_tokens(batch, given)
        output = watch(module, batch, (), place=place).output
        logits = find_logits(output)
        assert logits is not None
        target = _swapped(ids, pairs) if self.rows != "embedding" else ids
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), target[:, 1:].to(logits.device),
            reduction="none",
        )  # fmt: skip
        return losses.mean(1).double().cpu()


def _swapped(ids: Int[Tensor, "text pos"], pairs: Sequence[tuple[int, int]]) -> Tensor:
    swapped = ids.clone()
    for a, b in pairs:
        swapped[ids == a], swapped[ids == b] = b, a
    return swapped


def _exchanged(
    stream: LiveStream,
    small: SmallBatches,
    odd: Sequence[OddToken],
    rows: Rows,
    budget: TrialBudget,
) -> tuple[Rows, tuple[tuple[int, int], ...], Tensor, Tensor] | None:
    """Return the exchanges chosen on half of the texts, and the losses on the other half."""
    model = _Given(stream, small, rows)
    sides = {"embedding": ("after",), "head": ("at",)}.get(rows, ("after", "at"))
    tokens = list(dict.fromkeys(o.token for o in odd if o.side in sides))[:MOST]
    rest = _judging(small)
    even = [i for i in range(len(small)) if i not in set(rest)]
    if min(len(even), len(rest)) < LEAST:
        return None
    few, n = even[:FEW], small.length or 1
    if not budget.affords(n * (len(few) + len(even) + 2 * len(rest))):
        budget.leave_out(KIND, len(tokens) * (len(tokens) - 1) // 2)
        return None
    try:
        base = float(model.losses((), few).mean())
    except (RuntimeError, AssertionError, IndexError):
        return None
    best, pairs = float(model.losses((), even).mean()), list[tuple[int, int]]()
    for _ in range(ROUNDS):  # what two exchanged tokens hide of others shows once they are mended
        free = [t for t in tokens if t not in itertools.chain.from_iterable(pairs)]
        able = {str(pair): pair for pair in itertools.combinations(free, 2)}
        gains = {
            pair: base - float(model.losses((*pairs, pair), few).mean())
            for _, pair in budget.affordable(able, n * len(few), KIND, ALONE)
        }
        for pair in sorted(gains, key=lambda p: -gains[p])[: 2 * MOST]:
            is_free = not {*pair} & set(itertools.chain.from_iterable(pairs))
            if gains[pair] > 0 and is_free and budget.affords(n * (len(even) + 2 * len(rest))):
                loss = float(model.losses((*pairs, pair), even).mean())
                if loss < best:
                    best, pairs = loss, [*pairs, pair]
    if not pairs:
        return None
    return rows, tuple(pairs), model.losses((), rest), model.losses(pairs, rest)
