"""Simulation of clients that train one model together on a single machine."""

import itertools
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sonde import InputError, Model
from sonde.core import Codec
from sonde.data import ItemInputs
from sonde.tap import RowLosses, live_stream, place_of
from sonde_studies.parts.owners import judges, parted
from sonde_studies.parts.rows import Rows, Values

LEAST, TEST = 60, 0.3


class Federation:
    """A server, and clients that train its model and send gradient updates.

    All is simulated on this machine.

    Parameters
    ----------
    model : Model
        What all start from; it is not changed.
    inputs : ItemInputs
        All rows.
    owner : list
        Whose each row of the data is.
    groups : array (row,)
        Group of each row of the data, such as a person.
    rate : float
        Of gradient descent.
    steps : int
        Local steps of a client in each round.
    seed : int
        Draws the rows that judge, three tenths, and batches.
    """

    def __init__(
        self,
        model: Model,
        inputs: ItemInputs,
        owner: list[Any],
        groups: Values,
        rate: float,
        steps: int,
        seed: int,
    ) -> None:
        self.clients, self.held = _dealt(inputs, owner, groups, seed)
        self._model, self._rate, self._steps, self._seed = model, rate, steps, seed
        logits = live_stream(model, inputs, logits_asked=True).logits_key
        self._module = deepcopy(model.module).eval()
        place = place_of(self._module, self.held[0])
        self._losses = RowLosses(model, self._module, "label", logits, place)
        self.label: Values = np.zeros(0, int)
        """Classes of the rows that judge, once a training was judged."""
        self._weights = [p for p in self._module.parameters() if p.is_floating_point()]
        for weight in self._weights:
            weight.requires_grad_(True)
        self._start = nn.utils.parameters_to_vector(self._weights).detach().clone()

    def trained(
        self,
        rounds: int,
        controls: bool = True,
        codec: Callable[[int], Codec] | None = None,
        *,
        take_part: float = 1.0,
        inertia: float = 0.0,
        two_streams: bool = False,
    ) -> tuple[Rows, Values]:
        """Return accuracy by megabytes sent, and the final correctness of each row.

        The accuracy is taken about eight times during the rounds.

        Parameters
        ----------
        rounds : int
            How often clients send.
        controls : bool, default=True
            Take out the drift of clients with control variates.
        codec : callable, optional
            From a seed to how an update is sent; by default in full.
        take_part : float, default=1.0
            Share of the clients that train and send in each round, drawn by lot; at least one.
        inertia : float, default=0.0
            Share of a client's older gradients in the one that it sends, for codecs that are
            biased; from 0, below 1.
        two_streams : bool, default=False
            Send the change of the weights beside that of the client's variate, as in the older
            form of control variates, for twice the bytes.
        """
        if not 0 < take_part <= 1 or not 0 <= inertia < 1:
            raise InputError(
                "expected a share of clients above 0, at most 1, and an inertia from 0, below 1, "
                f"got {take_part} and {inertia}."
            )
        self._draw, n_bytes = np.random.default_rng(self._seed), 0
        lot = np.random.default_rng([self._seed, 1])
        state, seeds = self._start, itertools.count(10_000 * self._seed)
        variates = torch.zeros(len(self.clients), len(state))
        older: dict[int, Tensor] = {}
        curve, right = list[dict[str, Any]](), np.zeros(0)

        def sent(update: Tensor) -> tuple[Tensor, int]:
            if codec is None:
                return update, 4 * update.numel()
            sender = codec(next(seeds))
            stream = sender.encode(update)
            return sender.decode(stream), len(stream)

        n = max(1, round(take_part * len(self.clients)))
        for turn in range(rounds):
            mean = variates.mean(0)
            some = sorted(lot.permutation(len(self.clients))[:n].tolist())
            changes, moves = list[Tensor](), list[Tensor]()
            for i in some:
                drift = variates[i] - mean if controls else torch.zeros(())
                own = self._gradient(state, self.clients[i], drift)
                own = older[i] = inertia * older.get(i, own) + (1 - inertia) * own
                change, size = sent(own - variates[i] if controls else own)
                move, more = sent(own - drift) if two_streams else (mean + change, 0)
                n_bytes += size + more
                changes.append(change)
                moves.append(move)
            if controls:
                variates[some] += torch.stack(changes)
            state = state - self._steps * self._rate * torch.stack(moves).mean(0)
            if turn % max(1, rounds // 8) == 0 or turn == rounds - 1:
                right = self._right(state)
                curve.append({"megabytes": n_bytes / 1e6, "accuracy": float(right.mean())})
        return curve, right

    def _gradient(self, state: Tensor, batches: list[Any], drift: Tensor) -> Tensor:
        """Return the mean gradient of a client over its local steps."""
        local = state.clone()
        for _ in range(self._steps):
            batch = batches[int(self._draw.integers(len(batches)))]
            nn.utils.vector_to_parameters(local, self._weights)
            with torch.enable_grad():
                loss = self._losses(batch).losses.mean()
            slopes = torch.autograd.grad(loss, self._weights, allow_unused=True)
            flat = [torch.zeros_like(w) if g is None else g
                    for w, g in zip(self._weights, slopes, strict=True)]  # fmt: skip
            local = local - self._rate * (torch.cat([g.flatten() for g in flat]) - drift)
        return (state - local) / (self._steps * self._rate) + drift

    @torch.no_grad()
    def _right(self, state: Tensor) -> Values:
        nn.utils.vector_to_parameters(state, self._weights)
        told = [self._losses.answers(batch) for batch in self.held]
        self.label = torch.cat([t.truth for t in told]).cpu().numpy()
        return torch.cat([t.log_p.argmax(1) == t.truth for t in told]).double().cpu().numpy()


def _dealt(
    inputs: ItemInputs, owner: list[Any], groups: Values, seed: int
) -> tuple[list[list[Any]], list[Any]]:
    """Return the batches of each client, and the test rows, one of each other group."""
    own = groups[inputs.source_rows]
    held, ours = parted(own, TEST, np.random.default_rng(seed))
    whose = np.array([str(owner[i]) for i in inputs.source_rows])
    names = sorted(set(whose[ours]))
    if None in owner or len(names) < 2 or len(inputs) < LEAST or not inputs.label_names:
        raise InputError(
            f"expected {LEAST} or more labelled rows of two or more clients, got {len(inputs)} rows"
            f" of {len(inputs.label_names)} classes, {len(names)} clients and {owner.count(None)} "
            "rows without a client. Name the column of the client."
        )

    def batches(rows: Any) -> list[Any]:
        part = inputs.at(np.sort(rows))
        return list(part.batches(0, len(part)))

    return [batches(ours[whose[ours] == name]) for name in names], batches(judges(own, held))
