"""How much each block of a network adds, and how much later blocks depend on it.

For one block's update over all data see ``update_size`` and ``update_similarity``; for what blocks
would answer, ``sonde.explain.LogitLens``.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.chart import Chart, cells, matrix
from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Model
from sonde.core.result import Direction, Result
from sonde.core.site import Site
from sonde.tap import editing, right_padded
from sonde.tap.decoding.layers import Layers
from sonde.tap.model.probe import find_logits
from sonde.tap.model.watch import watch


@final
@dataclass(frozen=True, kw_only=True)
class DepthUseResult(Result):
    """Share of the second half of the blocks in all contributions.

    Means over tokens, a number for each block: ``contribution`` is the length of what a block adds
    over that of its input, ``largest_contribution`` the largest, ``cosine`` that between what it
    adds and its input (below 0 it takes away). ``skip_effect[s, l]`` is by how much block ``l``
    adds something else where block ``s`` is skipped, relative to what it adds (0 unless ``l > s``);
    ``largest_skip_effect`` its maximum over tokens. ``answer_change`` is the Euclidean distance of
    the probabilities. ``depth`` is the mean block number, from 1, weighted by the mean effect that
    skipping it has on those after it.
    """

    title: ClassVar[str] = "Effect of skipping a block on those after it"
    direction: Direction = "higher"
    layers: tuple[str, ...]
    contribution: Float[Tensor, "layer"]
    largest_contribution: Float[Tensor, "layer"]
    cosine: Float[Tensor, "layer"]
    skip_effect: Float[Tensor, "layer layer"]
    largest_skip_effect: Float[Tensor, "layer layer"]
    answer_change: Float[Tensor, "layer"]
    depth: float

    def chart(self) -> Chart:
        """Return a heat map of skipped blocks and those after them."""
        rows = cells(self.skip_effect.tolist(), "later", "skipped", "effect")
        later = [row for row in rows if row["later"] > row["skipped"]]
        return matrix(self.title, later, "later", "skipped", "effect")


def depth_use(
    model: Model | nn.Module, batches: Iterable[InputBatch], *, leave_out: int = 0
) -> DepthUseResult:
    """Return how much the blocks of a network add and how much later blocks need them.

    A block adds ``out - in``. It is skipped by handing its input on in place of its output; what
    the blocks after it then add is compared with what they added before, token by token.

    Range        [0, 1]: above ``null``, where all blocks add alike, the second half adds more.
                 Contributions fall with depth in an untrained pre-norm network too: compare with a
                 copy with random weights. Invariant to  scale of the stream.
    Cost         a forward for each block and one more, on every batch.
    Assumes      blocks that keep the width of their input, in one stream. First tokens may be far
                 longer than others: ``leave_out`` them and see.
    Differs      from the paper: means beside maxima, and nothing is hidden from earlier tokens.

    Parameters
    ----------
    model : Model or nn.Module
    batches : iterable of InputBatch
        Such as ``sonde.data.open_inputs(model, data).batches(0, n)`` gives.
    leave_out : int, default=0
        So many tokens at the beginning of each text are not counted.

    Raises
    ------
    InputError
        If there is no token, the model has fewer than two blocks, or a block changes the width.

    Examples
    --------
    >>> from sonde.data import open_inputs
    >>> net = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(4)))
    >>> for block in net:
    ...     _ = nn.init.eye_(block.weight).data.mul_(1.5)
    >>> inputs = open_inputs(Model(net), list(torch.ones(2, 3)))
    >>> found = depth_use(net, inputs.batches(0, 2))
    >>> found.contribution.tolist(), round(float(found.skip_effect[0, 3]), 6)
    ([0.5, 0.5, 0.5, 0.5], 0.333333)

    References
    ----------
    csordas2025depth
    """
    module = model.module if isinstance(model, Model) else model
    paths = Layers(module).paths
    if len(paths) < 2:
        raise InputError(f"depth_use: expected a network of at least two blocks, got {len(paths)}.")
    with torch.no_grad():
        found = [_measured(module, right_padded(b), paths, leave_out) for b in batches]
    texts = [text for batch in found for text in batch]
    if not texts:
        raise InputError(
            f"depth_use: expected texts of more than {leave_out} tokens, got none. Give longer "
            "texts, or leave out fewer tokens."
        )
    n = sum(t.n for t in texts)
    sums = torch.stack([t.sums for t in texts])
    mean = sums.sum(0) / n
    contribution, cosine = mean[:, 0], mean[:, 1]
    effect = mean[:, 3:].tril().T
    later = effect[:-1].sum(1) / torch.arange(len(paths) - 1, 0, -1)
    number = torch.arange(1, len(paths), dtype=torch.float64)
    half = len(paths) // 2
    dead = not bool(contribution.isfinite().all() and contribution.sum() > 0)
    left_out = sums.sum(0)[:, 0] - sums[:, :, 0]
    each = left_out[:, half:].sum(1) / left_out.sum(1)
    spread = (each - each.mean()).square().sum() * (len(texts) - 1) / len(texts)
    largest = torch.stack([t.largest for t in texts]).amax(0)
    return DepthUseResult(
        value=math.nan if dead else float(contribution[half:].sum() / contribution.sum()),
        se=float(spread.sqrt()) if len(texts) > 1 and not dead else None,
        null=(len(paths) - half) / len(paths),
        n=len(texts),
        range=(0.0, 1.0),
        flags=("dead",) if dead else (),
        conventions={
            "second half": f"{len(paths) - half} of {len(paths)} blocks",
            "se": "jackknife over examples" if len(texts) > 1 else "none: one example",
            "left out": f"the first {leave_out} tokens",
        },
        layers=tuple(paths),
        contribution=contribution,
        largest_contribution=largest[:, 0],
        cosine=cosine,
        skip_effect=effect,
        largest_skip_effect=largest[:, 3:].tril().T,
        answer_change=mean[:, 2],
        depth=float((number * later).sum() / later.sum()) if bool(later.sum() > 0) else math.nan,
    )


@dataclass(frozen=True)
class _Text:
    """Sums and maxima over ``n`` tokens of one example.

    Columns: contribution, cosine, change of the answer, and the effect of skipping each block.
    """

    n: int
    sums: Float[Tensor, "layer figure"]
    largest: Float[Tensor, "layer figure"]


@final
@dataclass(frozen=True, eq=False)
class _Put(Edit):
    """States in place of those that are there."""

    state: Tensor

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the states."""
        return self.state.to(x)


@dataclass(frozen=True)
class _Forward:
    before: list[Tensor]
    after: list[Tensor]
    answer: Tensor | None

    @property
    def added(self) -> Float[Tensor, "layer *axes"]:
        return torch.stack([b - a for a, b in zip(self.before, self.after, strict=True)]).double()


def _measured(
    module: nn.Module, batch: InputBatch, paths: list[str], leave_out: int
) -> list[_Text]:
    """Return the figures of each example of a batch."""
    plain = _run(module, batch, paths)
    before, added = torch.stack(plain.before).double(), plain.added
    size, length = before.norm(dim=-1), added.norm(dim=-1)
    n_layers = len(paths)
    figures = torch.zeros(n_layers, 3 + n_layers, *size.shape[1:], dtype=torch.float64)
    figures[:, 0] = length / size
    figures[:, 1] = (before * added).sum(-1) / (size * length)
    for s, path in enumerate(paths):
        with editing(module, _Put(plain.before[s]), Site(path)):
            skipped = _run(module, batch, paths)
        change = (skipped.added[s + 1 :] - added[s + 1 :]).norm(dim=-1) / length[s + 1 :]
        figures[s + 1 :, 3 + s] = change
        if plain.answer is not None and skipped.answer is not None:
            figures[s, 2] = (skipped.answer - plain.answer).norm(dim=-1).reshape(size.shape[1:])
    if figures.ndim == 3:  # one row for each example
        figures = figures[..., None]
    kept = _kept(batch, figures, leave_out)
    return [
        _Text(int(mask.sum()), own.sum(-1), own.amax(-1))
        for i, mask in enumerate(kept)
        if bool(mask.any())
        for own in (figures[:, :, i][..., mask],)
    ]


def _kept(
    batch: InputBatch, figures: Float[Tensor, "layer figure example pos"], leave_out: int
) -> Bool[Tensor, "example pos"]:
    """Return which tokens count."""
    if batch.mask is None:
        kept = torch.ones(figures.shape[2:], dtype=torch.bool)
    else:
        kept = batch.mask.bool().clone()
    kept[:, :leave_out] = False
    return kept


def _run(module: nn.Module, batch: InputBatch, paths: list[str]) -> _Forward:
    """Return the inputs and outputs of every block, and the probabilities of the answer."""
    sites = [Site(path, port=port) for path in paths for port in ("in", "out")]
    seen = watch(module, batch, sites)
    states = [seen.tensors[str(site)].cpu() for site in sites]
    before, after = states[::2], states[1::2]
    for path, a, b in zip(paths, before, after, strict=True):
        if a.shape != b.shape or a.shape != before[0].shape:
            raise InputError(
                "depth_use: expected blocks that keep the shape of one stream, got "
                f"{tuple(a.shape)} in and {tuple(b.shape)} out at {path}."
            )
    logits = find_logits(seen.output)
    return _Forward(before, after, None if logits is None else logits.double().softmax(-1).cpu())
