"""Next bytes from an index of users' token states: no labels, labels late, or labels first.

The index whitens states and answers with the commonest next byte of the nearest rows. Rows are read
through ``sonde.store.Cleared`` if they have labels.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde import Model, Stream, fit, read
from sonde.detect import Mahalanobis
from sonde.stats import auroc
from sonde.store import Cleared, Store, write_store

WAYS = ("no labels", "labels late", "labels first")
"""Whether the whitening map and the rows are everyone's, the rows the user's own, or both."""
NEAREST = 8
Texts = Mapping[str, Sequence[str]]
"""Texts of each user."""


class Tokens(NamedTuple):
    """States of tokens, and the byte after each."""

    state: Float[Tensor, "token dim"]
    byte: Int[Tensor, "token"]


class View(NamedTuple):
    """What an index answers a user with: a whitening map, and whitened rows with their next byte.

    ``distances`` and ``answers`` take the states of a query's tokens.
    """

    scorer: Any
    rows: Tokens

    def distances(self, state: Float[Tensor, "token dim"]) -> Float[Tensor, "token row"]:
        """Return distances of whitened states."""
        return torch.cdist(self._white(state), self._white(self.rows.state))

    def answers(self, state: Float[Tensor, "token dim"]) -> Int[Tensor, "token"]:
        """Return the commonest next byte of the nearest rows."""
        near = self.distances(state).topk(NEAREST, largest=False).indices
        return self.rows.byte[near].mode(1).values

    def _white(self, state: Float[Tensor, "token dim"]) -> Float[Tensor, "token dim"]:
        space = self.scorer.space
        return space.metric.whiten(space.centred(state.double()))


@final
class UserIndex:
    """An index of the texts that users stored, in a folder.

    Parameters
    ----------
    model : Model
        Causal, of bytes.
    texts : mapping of str to sequence of str
    folder : path
    """

    def __init__(self, model: Model, texts: Texts, folder: Path) -> None:
        user = [name for name, own in texts.items() for _ in own]
        told = [text for own in texts.values() for text in own]
        write_store(_read(model, told), folder, columns={"user": user})
        self.store, self._told = Store(folder), told

    def view(self, user: str, way: str) -> View:
        """Return what a user reads, by one of ``WAYS``."""
        own = Cleared(self.store, "user", {user})
        scorer = _whitening(own) if way == WAYS[2] else self._everyone
        return View(scorer, tokens_of(self.store if way == WAYS[0] else own, self._told))

    @cached_property
    def _everyone(self) -> Any:
        return _whitening(self.store)


def labelled_index(model: Model, stored: Texts, other: Texts, asked: Texts) -> dict[str, float]:
    """Return accuracy, answers that change and an attacker's AUROC of each way.

    Keys are ``FIGURE | WAY``. ``accuracy`` is that of the next byte of the texts in ``asked``;
    ``changed`` the fraction of these answers that change if the first user's texts are those of
    ``other``. ``attack`` is the mean AUROC with which one user tells another's stored texts from
    the texts of ``other``.

    Parameters
    ----------
    model : Model
        Causal, of bytes.
    stored, other, asked : mapping of str to sequence of str
        Texts of each user.
    """
    gone = next(iter(stored))
    found = dict[str, float]()
    with TemporaryDirectory() as folder:
        first = UserIndex(model, stored, Path(folder) / "first")
        second = UserIndex(model, {**stored, gone: other[gone]}, Path(folder) / "second")
        query, held, kept = (
            {name: [_tokens(model, text) for text in own] for name, own in part.items()}
            for part in (asked, other, stored)
        )
        for way in WAYS:
            right, changed, told = list[Tensor](), list[Tensor](), list[float]()
            views = {name: first.view(name, way) for name in stored}
            for name, own in query.items():
                state, byte = (torch.cat(x) for x in zip(*own, strict=True))
                said = views[name].answers(state)
                right.append(said == byte)
                if name != gone:
                    changed.append(said != second.view(name, way).answers(state))
            for reader, owner in permutations(stored, 2):
                plain = first.view(reader, WAYS[2]).rows.state
                near = [
                    [_nearness(views[reader], plain, text.state) for text in part[owner]]
                    for part in (held, kept)
                ]
                told.append(float(auroc(*(torch.tensor(x) for x in near)).value))
            found[f"accuracy | {way}"] = float(torch.cat(right).double().mean())
            found[f"changed | {way}"] = float(torch.cat(changed).double().mean())
            found[f"attack | {way}"] = float(np.mean(told))
    return found


def tokens_of(stream: Stream, texts: Sequence[str]) -> Tokens:
    """Return the states of a stream's texts and the bytes after them, without the last of each.

    Parameters
    ----------
    stream : Stream
        Its ids are numbers of ``texts``.
    texts : sequence of str
    """
    states, after = list[Tensor](), list[Tensor]()
    for batch in stream:
        (key,) = batch.rows
        for i, name in enumerate(batch.ids):
            raw = torch.tensor([*texts[int(name)].encode()])
            mine = batch.rows[key][batch.example[key] == i]
            n = min(len(mine), len(raw) - 1)
            states.append(mine[:n].double())
            after.append(raw[1 : n + 1])
    return Tokens(torch.cat(states), torch.cat(after))


def _nearness(view: View, plain: Tensor, state: Tensor) -> float:
    """Return how near a text is to the index, beside its distance to the reader's raw rows."""
    far = view.distances(state).amin(1).mean()
    return -float(far / torch.cdist(state, plain).amin(1).mean())


def _tokens(model: Model, text: str) -> Tokens:
    return tokens_of(_read(model, [text]), [text])


def _read(model: Model, texts: Sequence[str]) -> Stream:
    """Return the states of all tokens after the last block; no text is padded by another."""
    items = [{"text": text, "id": str(i)} for i, text in enumerate(texts)]
    how: dict[str, Any] = {"long": "truncate", "check": False, "batch_size": 1}
    return read(model, items, sites="blocks.-1", reducer="tokens", **how)


def _whitening(stream: Stream) -> Any:
    found = fit(Mahalanobis(), stream, calibrate=0, progress=False)
    (scorer,) = found.scorers.values()
    return scorer
