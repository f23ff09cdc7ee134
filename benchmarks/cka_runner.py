"""Runs in the environment of a peer: debiased CKA of all pairs of layers, ours and theirs."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.against import against
from benchmarks.child import added_peak
from benchmarks.environments import peer_version
from sonde.measure import layer_cka

Layers = Sequence[Tensor]


class Take(nn.Module):
    """A layer whose output is known: the rows that are asked for."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, index: Tensor) -> Tensor:
        """Return rows."""
        return self.rows[index]


class Bank(nn.Module):
    """A model that consists of such layers, because peers read models, not arrays."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Take(x) for x in layers)

    @property
    def names(self) -> list[str]:
        """Return the layers' names."""
        return [f"layers.{i}" for i in range(len(self.layers))]

    def forward(self, index: Tensor) -> Tensor:
        """Run every layer."""
        return torch.stack([layer(index)[0, :1] for layer in self.layers])


def made(count: int, width: int, n: int) -> list[Tensor]:
    """Return layers that share less and less with the first one."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(n, width, generator=generator)]
    for _ in range(count - 1):
        step = torch.randn(n, width, generator=generator)
        found.append(0.9 * found[-1] + 0.45 * step)
    return found


def nearly_constant(width: int, n: int) -> list[Tensor]:
    """Return a layer, the same around a mean that is 100,000 times its spread, and a dead one."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, width, generator=generator)
    return [x, 100.0 + 1e-3 * x, torch.full((n, width), 3.0)]


def ours(layers: Layers) -> Tensor:
    """Return our matrix, with its error bars made too."""
    return torch.as_tensor(layer_cka(layers).value)


def pytorch_cka(layers: Layers) -> Tensor:
    """Return the matrix of pytorch-cka on one batch of all rows."""
    from cka import compute_cka  # pyright: ignore[reportMissingImports]

    bank = Bank(layers)
    return compute_cka(bank, bank, _loader(layers), layers=bank.names, progress=False)[0]


def torch_cka(layers: Layers) -> Tensor:
    """Return the matrix of torch-cka on one batch of all rows."""
    from torch_cka import CKA  # pyright: ignore[reportMissingImports]

    first, second = Bank(layers), Bank(layers)
    found = CKA(first, second, "one", "two", first.names, second.names)
    found.compare(_loader(layers), _loader(layers))
    return found.hsic_matrix


def _loader(layers: Layers) -> DataLoader[Any]:
    n = len(layers[0])
    return DataLoader(TensorDataset(torch.arange(n)), batch_size=n)


ARMS: dict[str, Callable[[Layers], Tensor]] = {
    "sonde": ours,
    "pytorch-cka": pytorch_cka,
    "torch-cka": torch_cka,
}


def times(peer: str, count: int, width: int, n: int, rounds: int) -> dict[str, Any]:
    """Return our time over the peer's, and how far the two matrices are apart."""
    layers, theirs = made(count, width, n), ARMS[peer]
    kept: dict[str, Tensor] = {}
    found = against(
        lambda: kept.update(ours=ours(layers)), lambda: kept.update(theirs=theirs(layers)), rounds
    )
    apart = float((kept["ours"] - kept["theirs"]).abs().max())
    return found | {"apart": apart, "version": peer_version(peer)}


def memory(arm: str, count: int, width: int, n: int) -> float:
    """Return the MiB that one arm takes beyond the layers themselves."""
    layers = made(count, width, n)
    ARMS[arm](made(2, 8, 16))  # imports and buffers of libraries
    return added_peak(lambda: ARMS[arm](layers))


def answers(peer: str, width: int, n: int) -> dict[str, Any]:
    """Return what ours and the peer say about nearly constant layers, and the truth."""
    layers = nearly_constant(width, n)
    began = time.monotonic()
    try:
        said = [[float(v) for v in row] for row in ARMS[peer](layers)]
        theirs = f"{said[0][1]:.3g}, dead {said[2][2]:.3g}"
    except AssertionError as error:
        theirs = f"AssertionError: {error}"
    mine, right = ours(layers), truth(layers[0], layers[1])
    return {
        "error": abs(float(mine[0, 1]) - right),
        "ours": f"{float(mine[0, 1]):.6f}, dead {float(mine[2, 2])}",
        "theirs": theirs,
        "truth": right,
        "seconds": time.monotonic() - began,
    }


def truth(x: Tensor, y: Tensor) -> float:
    """Return debiased CKA in double precision by its definition, rows centred first."""
    grams = []
    for rows in (x.double(), y.double()):
        centred = rows - rows.mean(0)
        grams.append((centred @ centred.T).fill_diagonal_(0.0))
    k, m = grams
    return float(_hsic(k, m) / (_hsic(k, k) * _hsic(m, m)).sqrt())


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    n = len(k)
    cross = 2.0 / (n - 2) * (k.sum(0) @ m.sum(0))
    return (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - cross
