"""Clients that train one model together: what compressed updates cost and what they save."""

import itertools
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sonde import InputError, Model
from sonde.compress import QsgdCodec, SignCodec, TopKCodec
from sonde.core import ChartAxis, Codec, curves
from sonde.data import ItemInputs, open_inputs, rows_of
from sonde.report import Answer
from sonde.tap import RowLosses, live_stream, place_of

QUESTION = "How many bits of uplink does training together need?"
LEAST, TEST, WORSE = 60, 0.3, 0.02
PLAIN, CONTROL = "plain averaging", "control variates"
ARMS = (PLAIN, CONTROL, f"{CONTROL}, 7 bits", f"{CONTROL}, top 5 %", f"{CONTROL}, signs")


def federated_bits(
    model: Model,
    data: Any,
    *,
    client_column: str = "client",
    label_column: str | None = None,
    rounds: int = 20,
    local_steps: int = 5,
    batch_size: int = 32,
    rate: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Train a classifier as a federation of clients would, and count what they send.

    Arms: averaging of local steps; control variates, which take out the drift of clients with
    different data; and control variates if clients send 7 bits a number, the largest 5 %, or signs
    alone. All is simulated on this machine; three tenths of the rows judge.

    Example: sonde recipe federated-bits MODEL DATA --client-column hospital -o federation.html

    Parameters
    ----------
    model : Model
        The classifier that all start from, trained or not. It is not changed.
    data : str, path or iterable
        Labelled rows with the client that holds them.
    client_column : str, default="client"
        Column of the client.
    label_column : str, optional
        Column of the class, where its name does not say so.
    rounds : int, default=20
        How often clients send.
    local_steps : int, default=5
        Steps of a client in each round.
    batch_size : int, default=32
        Rows of a step.
    rate : float, default=0.1
        Of gradient descent.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the rows that judge, batches and the rounding of codecs.
    """
    options = {"label_column": label_column, "limit": limit, "ignore_columns": client_column}
    inputs = open_inputs(model, data, batch_size=batch_size, **options)
    owner = [row.get(client_column) for row in rows_of(data, limit)]
    clients, held = _dealt(inputs, owner, client_column, seed)
    found: dict[str, tuple[float, list[dict[str, Any]]]] = {}
    for arm in ARMS:
        federation = _Federation(model, inputs, clients, held, rate, local_steps, seed)
        found[arm] = federation.trained(arm, rounds)
    score = {arm: value for arm, (value, _) in found.items()}
    sent = {arm: curve[-1]["megabytes"] for arm, (_, curve) in found.items()}
    fits = [arm for arm in ARMS if score[arm] >= score[PLAIN] - WORSE]
    chosen = min(fits, key=lambda arm: sent[arm])
    share = sent[chosen] / sent[PLAIN]
    return Answer(
        question=QUESTION,
        verdict=chosen,
        level="clear",
        sentence=f"{PLAIN.capitalize()} reaches accuracy {score[PLAIN]:.3f} with "
        f"{sent[PLAIN]:.3g} MB of uplink; {chosen} reaches {score[chosen]:.3f} with {share:.1%} of "
        f"that. Control variates in full reach {score[CONTROL]:.3f}.",
        value=share,
        n=sum(len(b) for b in held),
        range=(0.0, float("inf")),
        direction="lower",
        rows=tuple(
            {"arm": arm, "accuracy": score[arm], "megabytes up": sent[arm],
             "of plain": sent[arm] / sent[PLAIN]} for arm in ARMS
        ),
        drawn=curves(
            "Accuracy against what clients sent",
            [row | {"arm": arm} for arm, (_, curve) in found.items() for row in curve],
            ChartAxis("megabytes", title="megabytes of uplink, all clients", log=True),
            ChartAxis("accuracy", share=True),
            by="arm",
        ),
        facts={"clients": str(len(clients)), "parameters": str(_size(model.module))},
        advice=(
            f"Chosen is what sends least among what is at most {WORSE:.0%} worse than plain "
            "averaging. Bytes are those of the coded streams; the downlink is not counted.",
        ),
    )  # fmt: skip


class _Federation:
    """A server and clients that send it changes of gradients."""

    def __init__(
        self, model: Model, inputs: ItemInputs, clients: list[list[Any]], held: list[Any],
        rate: float, steps: int, seed: int,
    ) -> None:  # fmt: skip
        self._clients, self._held, self._rate, self._steps = clients, held, rate, steps
        self._seed, self._draw = seed, np.random.default_rng(seed)
        self._module = deepcopy(model.module).eval()
        self._weights = [p for p in self._module.parameters() if p.is_floating_point()]
        for weight in self._weights:
            weight.requires_grad_(True)
        logits = live_stream(model, inputs, logits_asked=True).logits_key
        place = place_of(self._module, held[0])
        self._losses = RowLosses(model, self._module, "label", logits, place)

    def trained(self, arm: str, rounds: int) -> tuple[float, list[dict[str, Any]]]:
        """Return the accuracy at the end, and the curve of accuracy against megabytes."""
        state = nn.utils.parameters_to_vector(self._weights).detach()
        variates = torch.zeros(len(self._clients), len(state))
        send, controls, n_bytes = _codec(arm, self._seed), arm != PLAIN, 0
        curve = list[dict[str, Any]]()
        for turn in range(rounds):
            told, mean = list[Tensor](), variates.mean(0)
            for i, batches in enumerate(self._clients):
                drift = variates[i] - mean if controls else torch.zeros(())
                own = self._gradient(state, batches, drift)
                update, size = send(own - variates[i] if controls else own)
                n_bytes += size
                told.append(update)
            step = torch.stack(told)
            variates = variates + step if controls else variates
            state = state - self._steps * self._rate * (variates if controls else step).mean(0)
            if turn % max(1, rounds // 8) == 0 or turn == rounds - 1:
                right = self._accuracy(state)
                curve.append({"megabytes": n_bytes / 1e6, "accuracy": right})
        return curve[-1]["accuracy"], curve

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
    def _accuracy(self, state: Tensor) -> float:
        nn.utils.vector_to_parameters(state, self._weights)
        told = [self._losses.answers(batch) for batch in self._held]
        right = torch.cat([t.log_p.argmax(1) == t.truth for t in told])
        return float(right.double().mean())


def _codec(arm: str, seed: int) -> Callable[[Tensor], tuple[Tensor, int]]:
    """Return what gives of an update what the server reads, and its bytes."""
    seeds = itertools.count(10_000 * seed)
    codecs: dict[str, Callable[[], Codec]] = {
        "7 bits": lambda: QsgdCodec(levels=63, seed=next(seeds)),
        "top 5 %": lambda: TopKCodec(0.05),
        "signs": SignCodec,
    }
    make = codecs.get(arm.rpartition(", ")[2])

    def sent(update: Tensor) -> tuple[Tensor, int]:
        if make is None:
            return update, 4 * update.numel()
        codec = make()
        stream = codec.encode(update)
        return codec.decode(stream), len(stream)

    return sent


def _dealt(
    inputs: ItemInputs, owner: list[Any], column: str, seed: int
) -> tuple[list[list[Any]], list[Any]]:
    """Return the batches of each client, and those that judge."""
    draw = np.random.default_rng(seed).permutation(len(inputs))
    n_held = int(TEST * len(inputs))
    whose = np.array([str(owner[i]) for i in inputs.source_rows])
    names = sorted(set(whose[draw[n_held:]]))
    if None in owner or len(names) < 2 or len(inputs) < LEAST or not inputs.label_names:
        raise InputError(
            f"federated_bits: expected {LEAST} or more labelled rows of two or more clients, each "
            f"with the column {column!r}, got {len(inputs)} rows, {len(names)} clients, "
            f"{owner.count(None)} rows without the column, and {len(inputs.label_names)} classes."
        )

    def batches(rows: Any) -> list[Any]:
        part = inputs.at(np.sort(rows))
        return list(part.batches(0, len(part)))

    ours = draw[n_held:]
    return [batches(ours[whose[ours] == name]) for name in names], batches(draw[:n_held])


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
