"""A language model that serves users with what they stored: own rows, own models, or one for all.

Every way is a pipeline for ``sonde.store.interference``: it takes the texts of all users, and
returns a function of a user and a text, which gives the log-probabilities of the text's tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde import Model, Stream, read
from sonde.data import open_inputs
from sonde.store import Cleared, Store, write_store
from sonde.tap import place_of
from sonde.weights import mean_loss, tuned
from sonde_studies.arms import note

PUBLIC, OWN_ROWS, OWN_MODELS, ONE_MODEL = "public model", "own rows", "own models", "one model"
SERVED = (PUBLIC, OWN_ROWS, OWN_MODELS, ONE_MODEL)
Texts = Mapping[str, Sequence[str]]
Ask = Callable[[str, str], Float[Tensor, "pos token"]]


class Own(NamedTuple):
    """States of a user's stored tokens, the token after each, and the states' variance."""

    state: Float[Tensor, "row dim"]
    token: Int[Tensor, "row"]
    variance: float


@final
@dataclass(frozen=True)
class Serving:
    """Ways to predict a user's texts with a public model and the texts that users stored.

    ``public model`` reads no stored text. ``own rows`` mixes the public model's distribution with
    that of the tokens after the nearest states of the user's own texts, read from one store of all
    users through ``sonde.store.Cleared``. ``own models`` asks a copy that was tuned on the user's
    texts, and ``one model`` a copy that was tuned on the texts of all.

    Parameters
    ----------
    model : Model
        Causal.
    epochs : int
        Passes over the texts in fine-tuning.
    rate : float
        Rate of Adam.
    seed : int
        Draws the order of the texts.
    site : str, default="auto"
        Where states are read; of several sites the last counts.
    batch : int, default=4
        Texts of a batch in fine-tuning.
    nearest : int, default=32
        Rows that vote for the next token.
    weight : float, default=0.2
        Probability that is left to the votes.
    width : float, default=0.06
        Width of the kernel of the votes, in variances of the user's states.
    progress : bool, default=True
    """

    model: Model
    epochs: int
    rate: float
    seed: int
    site: str = "auto"
    batch: int = 4
    nearest: int = 32
    weight: float = 0.2
    width: float = 0.06
    progress: bool = True

    def pipeline(self, way: str) -> Callable[[Texts], Ask]:
        """Return the function that makes a way of ``SERVED`` from texts of all users."""
        return {
            PUBLIC: lambda _: lambda _, text: self._said(self.model.module, text),
            OWN_ROWS: self._own_rows,
            OWN_MODELS: self._own_models,
            ONE_MODEL: self._one_model,
        }[way]

    def nats(self, ask: Ask, asked: Texts) -> float:
        """Return the cross-entropy of the tokens of texts, mean over users, in nats a token."""
        each = list[Tensor]()
        for user, texts in asked.items():
            lost = [-ask(user, t).gather(1, self._ids(t)[1:, None])[:, 0] for t in texts]
            each.append(torch.cat(lost).mean())
        return float(torch.stack(each).mean())

    def _own_rows(self, stored: Texts) -> Ask:
        texts = [text for own in stored.values() for text in own]
        users = [name for name, own in stored.items() for _ in own]
        note(rows=len(texts))
        with TemporaryDirectory() as folder:
            write_store(self._stream(texts), Path(folder) / "rows", columns={"user": users})
            store = Store(Path(folder) / "rows")
            own = {user: self._own(Cleared(store, "user", {user}), texts) for user in stored}

        def answer(user: str, text: str) -> Tensor:
            state, (rows, token, variance) = self._states(text), own[user]
            said = self._said(self.model.module, text)
            far = torch.cdist(state[:-1], rows).square()
            near = far.topk(min(self.nearest, len(rows)), largest=False)
            votes = (-near.values / (self.width * variance)).softmax(1)
            found = torch.zeros_like(said).scatter_add_(1, token[near.indices], votes)
            return (said.exp() * (1 - self.weight) + found * self.weight).log()

        return answer

    def _own(self, stream: Stream, texts: Sequence[str]) -> Own:
        """Return the rows of a stream, with the token after each; its ids are numbers of texts."""
        states, after = list[Tensor](), list[Tensor]()
        for batch in stream:
            key = [*batch.rows][-1]
            for i, name in enumerate(batch.ids):
                states.append(batch.rows[key][batch.example[key] == i][:-1].double())
                after.append(self._ids(texts[int(name)])[1:])
        rows = torch.cat(states)
        variance = float((rows - rows.mean(0)).square().sum(1).mean())
        return Own(rows, torch.cat(after), variance)

    def _own_models(self, stored: Texts) -> Ask:
        own = {user: self._tuned(texts) for user, texts in stored.items()}
        note(rows=sum(map(len, stored.values())))
        return lambda user, text: self._said(own[user], text)

    def _one_model(self, stored: Texts) -> Ask:
        module = self._tuned([text for own in stored.values() for text in own])
        return lambda _, text: self._said(module, text)

    def _tuned(self, texts: Sequence[str]) -> nn.Module:
        note(rows=len(texts))
        items = [{"text": text, "id": str(i)} for i, text in enumerate(texts)]
        inputs = open_inputs(self.model, items, long="truncate", batch_size=self.batch)
        how: dict[str, Any] = {"rate": self.rate, "epochs": self.epochs, "seed": self.seed}
        label = "fine-tune"
        return tuned(self.model, inputs, mean_loss, label=label, progress=self.progress, **how)

    def _stream(self, texts: Sequence[str]) -> Stream:
        """Return the states of all tokens; no text is padded by another."""
        items = [{"text": text, "id": str(i)} for i, text in enumerate(texts)]
        how: dict[str, Any] = {"long": "truncate", "check": False, "batch_size": 1}
        return read(self.model, items, sites=self.site, reducer="tokens", **how)

    def _states(self, text: str) -> Float[Tensor, "pos dim"]:
        return [x for batch in self._stream([text]) for x in batch.rows.values()][-1].double()

    def _ids(self, text: str) -> Int[Tensor, "pos"]:
        return self._inputs(text)[1]["input_ids"][0]

    def _inputs(self, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        inputs = open_inputs(self.model, [{"text": text}], long="truncate", batch_size=1)
        batch = next(iter(inputs.batches(0, 1)))
        return place_of(self.model.module, batch).call(batch.args, batch.kwargs)

    @torch.no_grad()
    def _said(self, module: nn.Module, text: str) -> Float[Tensor, "pos token"]:
        """Return log-probabilities of the tokens after each token but the last."""
        args, kwargs = self._inputs(text)
        return module(*args, **kwargs).logits[0, :-1].double().log_softmax(1)
