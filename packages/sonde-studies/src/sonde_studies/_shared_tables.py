"""Simulated categorical fields, read through a shared embedding table or a table for each field."""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.layers import SharedTable
from sonde_studies._field_arms import r_squared
from sonde_studies.worlds.learning import drawn, minimise

FIELDS, VALUES, ROWS, PRICE = 4, 200, 3_000, 0.02


def value_gates(seed: int, steps: int) -> dict[str, float]:
    """Return the share of values that learned gates keep: those that help, and those that do not.

    Half of each field's values are worth nothing, drawn by lot, so no field is useless: gates of
    whole fields could leave none of them out.
    """
    draw = torch.Generator().manual_seed(seed)
    size = VALUES // FIELDS
    ids = torch.randint(size, (ROWS, FIELDS), generator=draw)
    helps = torch.rand(FIELDS, size, generator=draw).argsort(1) < size // 2
    worth = helps * torch.randn(FIELDS, size, generator=draw)
    y = torch.as_tensor(sum(worth[f][ids[:, f]] for f in range(FIELDS))) / 2
    y = y + 0.3 * torch.randn(ROWS, generator=draw)
    table = SharedTable(FIELDS, 4, size, "per_field", seed=seed, gated=True)
    head, done = drawn(lambda: nn.Linear(4 * FIELDS, 1), seed), 0
    assert table.gate is not None  # it was asked for
    gate = table.gate

    def loss(rows: Tensor) -> Tensor:
        nonlocal done
        gate.progress.fill_(min(1.0, done / steps))
        done += 1
        told = head(table(ids[rows]).flatten(1))[:, 0]
        return mse_loss(told, y[rows]) + PRICE * gate.gates().mean()

    weights = [*table.parameters(), *head.parameters()]
    minimise(loss, weights, ROWS, steps=steps, seed=seed, rate=1e-2)
    gate.harden()
    kept = gate.gates().detach().reshape(FIELDS, size)
    return {"that help": float(kept[helps].mean()), "worth nothing": float(kept[~helps].mean())}


def field_values(
    seed: int, steps: int, tables: str, size: int, lookups: int
) -> tuple[float, float]:
    """Return R^2 on test rows, and the mean absolute cosine of the head's weights for two fields.

    The target is a sum of a number for each field's value. ``tables``, ``size`` and ``lookups`` are
    those of ``SharedTable``.
    """
    draw = torch.Generator().manual_seed(seed)
    ids = (VALUES * torch.rand(ROWS, FIELDS, generator=draw) ** 3).long()  # few values are common
    worth = torch.randn(FIELDS, VALUES, generator=draw)
    y = sum(worth[f][ids[:, f]] for f in range(FIELDS)) / 2
    y = torch.as_tensor(y) + 0.1 * torch.randn(ROWS, generator=draw)
    table = SharedTable(FIELDS, 4, size, tables, lookups, seed=seed)  # pyright: ignore
    asked = ids % size if tables == "per_field" else ids
    head, n = drawn(lambda: nn.Linear(4 * FIELDS, 1), seed), ROWS * 2 // 3

    def loss(rows: Tensor) -> Tensor:
        return mse_loss(head(table(asked[rows]).flatten(1))[:, 0], y[rows])

    weights = [*table.parameters(), *head.parameters()]
    minimise(loss, weights, n, steps=steps, seed=seed, rate=1e-2)
    with torch.no_grad():
        parts = nn.functional.normalize(head.weight.reshape(FIELDS, -1), dim=1)
        alike = (parts @ parts.T)[*torch.triu_indices(FIELDS, FIELDS, 1)].abs().mean()
        return r_squared(head(table(asked[n:]).flatten(1))[:, 0], y[n:]), float(alike)
