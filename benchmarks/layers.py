"""What layers cost beside the same work in plain torch, and what an insertion costs."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.child import added_peak, run_child
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row
from benchmarks.size import Size
from benchmarks.train import against_peer

DENSE, AXIAL, CHUNKED, INSERTED, FLAT = 1.02, 0.15, 0.2, 1.01, 1.05


def layer_rows(size: Size) -> Iterator[Row]:
    """Time of attentions, of an inserted layer and of codes; memory of long texts and columns."""
    with torch.no_grad():
        yield _dense(size)
        yield _axial(size)
        yield _chunked(size)
        yield _inserted(size)
    yield from _memory(size)
    shape = size.pick({"n": 65536, "dim": 256, "n_codes": 1024}, {"n": 64, "dim": 8, "n_codes": 16})
    yield from against_peer(size, "layers", "codes", "VectorQuantizer in training", shape)


def _dense(size: Size) -> Row:
    from sonde.layers import Attention

    dim, heads, n = size.pick((256, 8, 1024), (16, 2, 32))
    torch.manual_seed(0)
    layer, x = Attention(dim, heads).eval(), torch.randn(4, n, dim)
    maps: Any = layer.maps

    def plain() -> Tensor:
        q, k, v = (
            maps[name](x).unflatten(2, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        made = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + layer.out(made)

    what = f"Attention({dim}, {heads}) on 4 x {n} tokens, against plain torch"
    return _row(size, what, lambda: layer(x), plain, DENSE)


def _axial(size: Size) -> Row:
    from sonde.layers import Attention

    side, dim = size.pick((64, 64), (6, 8))
    torch.manual_seed(0)
    axial = Attention(dim, 2, "axial", grid=(side, side)).eval()
    dense, x = Attention(dim, 2).eval(), torch.randn(1, side * side, dim)
    what = f"Attention axial on {side} x {side}, against all pairs"
    return _row(size, what, lambda: axial(x), lambda: dense(x), AXIAL)


def _chunked(size: Size) -> Row:
    from sonde.layers import LinearAttention

    n, dim = size.pick((8192, 64), (64, 8))
    torch.manual_seed(0)
    chunked, x = LinearAttention(dim, 2).eval(), torch.randn(1, n, dim)
    parallel = LinearAttention(dim, 2, form="parallel").eval()
    what = f"LinearAttention chunked on {n:,} tokens, against its parallel form"
    return _row(size, what, lambda: chunked(x), lambda: parallel(x), CHUNKED)


def _memory(size: Size) -> Iterator[Row]:
    """Memory of a pass: of more tokens for each token, and of more columns."""
    n, dim = size.pick((8192, 64), (64, 8))
    few, many = (
        run_child("benchmarks.layers:added_by_tokens", steady=True, n=tokens, dim=dim)
        for tokens in (n // 4, n)
    )
    what = f"LinearAttention, memory for each of {n:,} tokens over each of {n // 4:,}"
    note = f"adds {many:.1f} and {few:.1f} MiB: the state does not grow"
    yield Row("layers", what, many / 4 / max(few, 0.1), budget=FLAT, note=note)
    rows, few_columns = size.pick((16384, 4), (32, 2))
    arms = ((few_columns, True), (4 * few_columns, True), (4 * few_columns, False))
    target = "benchmarks.layers:added_by_columns"
    low, high, stored = (
        run_child(target, steady=True, columns=columns, recompute=how, rows=rows)
        for columns, how in arms
    )
    what = f"Reversible, memory of {4 * few_columns} columns over that of {few_columns}"
    note = f"adds {high:.0f} and {low:.0f} MiB; {stored:.0f} where all columns are stored"
    yield Row("layers", what, high / max(low, 0.1), budget=FLAT, note=note)


def added_by_tokens(n: int, dim: int) -> float:
    """Return by how many MiB a forward of linear attention raises the memory of this process."""
    from sonde.layers import LinearAttention

    torch.manual_seed(0)
    layer, x = LinearAttention(dim, 2).eval(), torch.randn(4, n, dim)
    with torch.no_grad():
        layer(x[:, :64])
        return added_peak(lambda: layer(x))


def added_by_columns(rows: int, columns: int, recompute: bool) -> float:
    """Return by how many MiB a forward and a backward pass raise the memory of this process."""
    from sonde.layers import Reversible

    torch.manual_seed(0)
    layer = Reversible(64, 2, columns, recompute=recompute)
    x = torch.randn(rows, 2, 64)
    layer(x[:8]).square().mean().backward()
    return added_peak(lambda: layer(x).square().mean().backward())


class _Written(nn.Module):
    """A model with the layer written into its forward."""

    def __init__(self, blocks: nn.ModuleList, layer: nn.Module) -> None:
        super().__init__()
        self.blocks, self.layer = blocks, layer

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            x = self.layer(x) if i == 1 else x
        return x


def _inserted(size: Size) -> Row:
    import sonde
    from sonde.layers import Adapter

    dim, n = size.pick((512, 512), (16, 8))
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))]
    parts += [nn.Sequential(nn.Linear(dim, dim), nn.GELU()) for _ in range(3)]
    layer, x = Adapter(dim, 64), torch.randn(4, n, dim)
    written = _Written(nn.ModuleList(parts), layer).eval()
    inserted = sonde.inserted(nn.Sequential(*parts), {"1": Adapter(dim, 64)}).eval()
    what = f"Adapter({dim}, 64) inserted in four blocks, against written into the model"
    return _row(size, what, lambda: inserted(x), lambda: written(x), INSERTED)


def _row(
    size: Size,
    what: str,
    arm: Callable[[], object],
    plain: Callable[[], object],
    budget: float,
) -> Row:
    taken = interleaved({"arm": arm, PLAIN: plain, AGAIN: plain}, size.rounds)
    found = ratio_of(taken, "arm")
    return Row(
        "layers",
        what,
        found.median,
        budget=budget,
        spread=found.spread,
        rounds=found.rounds,
        note=found.noise,
    )
