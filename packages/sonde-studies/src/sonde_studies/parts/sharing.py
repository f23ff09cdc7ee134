"""Information flow between users who share an index or a model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sonde import InputError, Model, Stream, gather, read
from sonde.data import open_inputs
from sonde.store import Cleared, Policy, Store, interference, write_store
from sonde.weights import mean_loss, tuned
from sonde_studies.arms import note, part
from sonde_studies.parts.rows import Values
from sonde_studies.parts.serving import Serving
from sonde_studies.parts.states import last_states, with_module
from sonde_studies.parts.words import WORD, private_words


@final
@dataclass(eq=False)
class Sharing:
    """Users who store half of their texts and query with the rest; one user's are replaced.

    An answer is the stored text of the nearest state. Replaced texts keep their characters in
    another order.

    Parameters
    ----------
    model : Model
    texts : list of str
    user : array of str
        Whose each text is.
    seed : int
        Draws what is stored, and the user whose texts are replaced.
    progress : bool, default=True
    """

    model: Model
    texts: list[str]
    user: Values
    seed: int
    progress: bool = True

    def __post_init__(self) -> None:
        draw, users = np.random.default_rng(self.seed), np.unique(self.user)
        order = draw.permutation(len(self.texts))
        own = [order[self.user[order] == name] for name in users]
        self.kept = np.concatenate([o[: len(o) // 2] for o in own])
        self.gone = str(draw.choice(users))
        self.other = [
            "".join(text[int(i)] for i in draw.permutation(len(text))) if is_gone else text
            for text, is_gone in zip(self.texts, self.user == self.gone, strict=True)
        ]
        asked = np.setdiff1d(order, self.kept)
        self.asked = asked[self.user[asked] != self.gone]

    @cached_property
    def private(self) -> dict[str, str]:
        """Words that only one user uses, with their user."""
        return private_words(self.texts, self.user)

    def by_index(self, labelled: bool = False, redacted: bool = False) -> dict[str, float]:
        """Return the fractions of answers from another user, changed, or with private words.

        Parameters
        ----------
        labelled : bool, default=False
            A query sees rows of its own user alone, through ``sonde.store.Cleared``.
        redacted : bool, default=False
            Words that one user alone uses are replaced by pseudonyms of ``sonde.store.Policy``.
        """
        sides = [self.texts, self.other]
        if redacted:
            # a key by the seed: other pseudonyms are other states, and other answers
            key = (self.seed % 2**64).to_bytes(16, "little")
            policy = Policy(tuple(rf"\b{word}\b" for word in self.private) or (r"(?!)",), key)
            sides = [policy.redacted(side) for side in sides]
        user, owner = self.user[self.asked], self.user[self.kept]
        query = self._states(sides[0], self.asked)
        stored = [self._states(side, self.kept) for side in sides]
        near = nearest_cleared if labelled else _nearest
        first, second = (near(query, x, user, owner) for x in stored)
        said = [sides[0][self.kept[i]] for i in first]
        leaked = [
            any(self.private.get(word, name) != name for word in WORD.findall(text))
            for text, name in zip(said, user, strict=True)
        ]
        return {
            "another's row": float((owner[first] != user).mean()),
            "changed": float(((first != second) | (owner[first] == self.gone)).mean()),
            "private words": float(np.mean(leaked)),
        }

    def by_tuning(self, epochs: int, rate: float, orders: bool = False) -> dict[str, float]:
        """Return how many next-token distributions change after tuning on all, and how much.

        Parameters
        ----------
        epochs : int
        rate : float
        orders : bool, default=False
            Also tune on the same texts in another order, which changes distributions too.
        """
        one = self._after_tuning(self.texts, self.kept, epochs, rate)
        with part("one user's rows replaced"):
            two = self._after_tuning(self.other, self.kept, epochs, rate)
        found = {
            "changed": float((one != two).any(1).double().mean()),
            "nats": float((one - two).abs().amax(1).mean()),
        }
        if orders:
            mixed = np.random.default_rng(self.seed).permutation(self.kept)
            with part("another order"):
                again = self._after_tuning(self.texts, mixed, epochs, rate)
            found["nats, in another order"] = float((one - again).abs().amax(1).mean())
        return found

    def by_serving(self, way: str, epochs: int, rate: float) -> dict[str, float]:
        """Return the fraction of predictions that change for others, and the loss on all queries.

        Parameters
        ----------
        way : str
            One of ``sonde_studies.parts.serving.SERVED``.
        epochs : int
        rate : float
        """
        serving = Serving(self.model, epochs, rate, self.seed, batch=8, progress=self.progress)
        pipeline, kept, is_kept = serving.pipeline(way), self.kept, np.isin(self.numbers, self.kept)
        stored, other = (
            {name: [side[i] for i in kept if self.user[i] == name] for name in self.users}
            for side in (self.texts, self.other)
        )
        asked = {
            name: [self.texts[i] for i in self.numbers[~is_kept] if self.user[i] == name]
            for name in self.users
        }
        found = interference(pipeline, stored, {self.gone: other[self.gone]}, asked)
        n = {name: len(own) for name, own in asked.items() if name != self.gone}
        changed = sum(n[name] * found.changed[name, self.gone] for name in n) / sum(n.values())
        return {
            "changed": changed,
            "nats a token": serving.nats(pipeline(stored), asked),
        }

    @property
    def numbers(self) -> Values:
        """The number of each text."""
        return np.arange(len(self.texts))

    @property
    def users(self) -> list[str]:
        """The names of all users."""
        return [str(name) for name in np.unique(self.user)]

    def _states(self, side: list[str], numbers: Any) -> Tensor:
        options: dict[str, Any] = {"reducer": "mean", "long": "truncate", "check": False}
        chosen = [side[i] for i in numbers]
        return last_states(self.model, chosen, progress=self.progress, **options)

    def _after_tuning(
        self, side: list[str], kept: Values, epochs: int, rate: float
    ) -> Float[Tensor, "query token"]:
        """Return log-probabilities after each query, of a copy tuned on the stored texts."""
        items, queries = (
            [{"text": texts[i], "id": str(i)} for i in numbers]
            for texts, numbers in ((side, kept), (self.texts, self.asked))
        )
        note(rows=len(items))
        inputs = open_inputs(self.model, items, long="truncate", batch_size=8)
        how: dict[str, Any] = {"seed": self.seed, "label": "fine-tune", "progress": self.progress}
        module = tuned(self.model, inputs, mean_loss, rate=rate, epochs=epochs, **how)
        stream = read(
            with_module(self.model, module), queries, long="truncate", check=False, logits=True
        )
        found = gather(stream, self.progress)
        if found.logits is None:
            raise InputError("expected a causal model that gives logits. Set epochs=0.")
        return found.logits.double().log_softmax(1)


def nearest_cleared(
    query: Float[Tensor, "query dim"], stored: Float[Tensor, "row dim"], user: Values, owner: Values
) -> Values:
    """Return the number of the nearest stored row that the user of each query may read.

    Parameters
    ----------
    query, stored : Float[Tensor, "row dim"]
    user, owner : array
        Whose each query and each stored row is; every user owns a row.
    """
    found = np.empty(len(query), dtype=int)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        ids = [str(i) for i in range(len(stored))]
        write_store(Stream.of({"0": stored}, ids=ids), path, columns={"user": owner.tolist()})
        for name in np.unique(user):
            batches = [*Cleared(Store(path), "user", {str(name)})]
            mine = torch.cat([batch.rows["0"] for batch in batches])
            number = np.array([int(i) for batch in batches for i in batch.ids])
            is_own = user == name
            far = torch.cdist(query[torch.from_numpy(is_own)], mine.to(query))
            found[is_own] = number[far.argmin(1).numpy()]
    return found


def _nearest(query: Tensor, stored: Tensor, *_: Values) -> Values:
    return torch.cdist(query, stored).argmin(1).numpy()
