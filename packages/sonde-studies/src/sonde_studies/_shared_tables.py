"""Simulated categorical fields, read through a shared embedding table or a table for each field."""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.layers import SharedTable
from sonde_studies._field_arms import r_squared
from sonde_studies.worlds.learning import drawn, minimise

FIELDS, VALUES, ROWS = 4, 200, 3_000


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
