"""Pairs of columns that are selected by a gate for each column, or by a gate for each pair."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.layers import UnitGate
from sonde_studies._field_arms import r_squared
from sonde_studies.worlds.learning import drawn, minimise

COLUMNS, PLANTED, ROWS, FIT = 12, ((0, 1), (2, 3)), 900, 600


def pair_selection(seed: int, steps: int) -> dict[str, float]:
    """Return what gates of pairs keep, and R^2 on test rows; two pairs of four columns matter.

    ``products`` are products of a gate for each column: of the 64 pairs that do not matter, the 4
    between columns of both planted pairs stay with them. ``free`` is a gate for each pair. ``kept``
    is the fraction of planted pairs that are kept, minus that of other pairs. R^2 is that of a
    linear map trained anew on the pairs that are kept, ``all`` on every pair.
    """
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, COLUMNS, generator=draw)
    y = sum(2 * x[:, i] * x[:, j] for i, j in PLANTED) + 0.3 * torch.randn(ROWS, generator=draw)
    y = torch.as_tensor(y)
    first, second = torch.triu_indices(COLUMNS, COLUMNS, 1)
    pairs, here = x[:, first] * x[:, second], zip(first.tolist(), second.tolist(), strict=True)
    planted = torch.tensor([pair in PLANTED for pair in here])
    every = torch.ones(len(first))
    found = {"all": _pair_error(pairs, y, every, seed, steps)}
    for arm, gate in (("products", UnitGate(COLUMNS)), ("free", UnitGate(len(first)))):

        def opened(gate: UnitGate = gate, joined: bool = arm == "products") -> Tensor:
            return gate.pair_gates()[first, second] if joined else gate.gates()

        _fit_gates(pairs, y, gate, opened, seed, steps)
        kept = opened().detach()
        found[f"kept | {arm}"] = float(kept[planted].mean() - kept[~planted].mean())
        found[arm] = _pair_error(pairs, y, kept, seed, steps)
    return found


def _fit_gates(
    pairs: Tensor, y: Tensor, gate: UnitGate, opened: Callable[[], Tensor], seed: int, steps: int
) -> None:
    """Learn gates beside a linear map, with a penalty on their mean, and make them hard."""
    head, done = drawn(lambda: nn.Linear(pairs.shape[1], 1), seed), 0

    def loss(rows: Tensor) -> Tensor:
        nonlocal done
        gate.progress.fill_(min(1.0, done / steps))
        done += 1
        both = opened()
        return mse_loss(head(pairs[rows] * both)[:, 0], y[rows]) + 0.5 * both.mean()

    weights = [*head.parameters(), *gate.parameters()]
    minimise(loss, weights, FIT, steps=steps, seed=seed, rate=1e-2)
    gate.harden()


def _pair_error(pairs: Tensor, y: Tensor, kept: Tensor, seed: int, steps: int) -> float:
    """Return R^2 on test rows of a linear map that is trained on the pairs that are kept."""
    head, shown = drawn(lambda: nn.Linear(pairs.shape[1], 1), seed), pairs * kept
    minimise(
        lambda rows: mse_loss(head(shown[rows])[:, 0], y[rows]), head.parameters(), FIT,
        steps=steps, seed=seed, rate=1e-2,
    )  # fmt: skip
    with torch.no_grad():
        return r_squared(head(shown[FIT:])[:, 0], y[FIT:])
