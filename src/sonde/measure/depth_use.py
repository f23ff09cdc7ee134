"""Contribution of each block and sublayer, and the change of the answer without it.

For a block's update over all data see ``update_size`` and ``update_similarity``; for the answer
that each block would give, ``sonde.explain.LogitLens``.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.chart import Chart, cells, matrix
from sonde.core.edit import Edit, EditContext, Replace
from sonde.core.errors import InputError
from sonde.core.few_groups import widen_error
from sonde.core.inputs import InputBatch, Model
from sonde.core.result import Direction, Result
from sonde.core.site import Site
from sonde.core.wording import plural
from sonde.engine.errorbars import with_copies, with_few_groups
from sonde.measure._sublayers import Sublayers, is_sum, sublayers_of
from sonde.tap import editing
from sonde.tap.decoding.layers import ModelBlocks
from sonde.tap.model.probe import find_logits
from sonde.tap.model.watch import watch


@dataclass(frozen=True)
class Forward:
    """States of one stream around each block, and log-probabilities of the answer."""

    before: list[Tensor]
    after: list[Tensor]
    log_p: Tensor | None

    @property
    def added(self) -> Float[Tensor, "layer *axes"]:
        """Update added by each block."""
        return torch.stack([b - a for a, b in zip(self.before, self.after, strict=True)]).double()


def forward(module: nn.Module, batch: InputBatch, paths: list[str]) -> Forward:
    """Return each block's input and output, and the log-probabilities of the answer."""
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
    return Forward(before, after, log_probabilities(seen.output))


def log_probabilities(output: Any) -> Tensor | None:
    """Return the log-probabilities of a model's logits, or None without logits."""
    logits = find_logits(output)
    return None if logits is None else logits.double().log_softmax(-1).cpu()


def size_and_cosine(
    stream: Float[Tensor, "*axes dim"], added: Float[Tensor, "*axes dim"]
) -> Float[Tensor, "2 *axes"]:
    """Return the relative length of an update to its stream, and the cosine of both."""
    size, length = stream.norm(dim=-1), added.norm(dim=-1)
    return torch.stack([length / size, (stream * added).sum(-1) / (size * length)])


def answer_changes(plain: Forward, log_p: Tensor | None) -> Float[Tensor, "2 *axes"]:
    """Return each token's distance and divergence in nats from the original answer.

    A single answer for an example counts for each of its tokens; NaN if an answer is missing.
    """
    axes = plain.before[0].shape[:-1]
    if plain.log_p is None or log_p is None:
        return torch.full((2, *axes), math.nan, dtype=torch.float64)
    p = plain.log_p.exp()
    nats = torch.where(p > 0, p * (plain.log_p - log_p), 0.0).sum(-1)
    changes = torch.stack([(log_p.exp() - p).norm(dim=-1), nats])
    return changes.reshape(*changes.shape, *[1] * (1 + len(axes) - changes.ndim)).expand(2, *axes)


@final
@dataclass(frozen=True, kw_only=True)
class SublayerUse:
    """Contribution of each sublayer to its block, and the change of the answer without it.

    Means over tokens for each sublayer of ``names``, such as the attention and the MLP of each
    block. ``contribution`` is the length of its output over the length of the stream before the
    addition, ``cosine`` the cosine of the two (NaN if the output is zero at a token).
    ``answer_change`` and ``answer_kl_nats`` are as in ``DepthUseResult``, with the sublayer's
    output set to zero.
    Standard errors (``_se``) are jackknives over groups of examples, NaN for one group.
    """

    names: tuple[str, ...]
    contribution: Float[Tensor, "sublayer"]
    contribution_se: Float[Tensor, "sublayer"]
    cosine: Float[Tensor, "sublayer"]
    cosine_se: Float[Tensor, "sublayer"]
    answer_change: Float[Tensor, "sublayer"]
    answer_change_se: Float[Tensor, "sublayer"]
    answer_kl_nats: Float[Tensor, "sublayer"]
    answer_kl_nats_se: Float[Tensor, "sublayer"]

    def least_needed(self, n: int = 5) -> tuple[str, ...]:
        """Return the ``n`` sublayers whose removal changes the answer least."""
        order = self.answer_kl_nats.argsort(stable=True)[:n]
        return tuple(self.names[i] for i in order.tolist())


@final
@dataclass(frozen=True, kw_only=True)
class DepthUseResult(Result):
    """Fraction of all contributions made by the second half of the blocks.

    Means over tokens for each block. ``contribution`` is the length of the block's addition over
    the length of its input, ``largest_contribution`` its maximum over tokens, ``cosine`` the cosine
    of addition and input (below 0 the block takes away). ``skip_effect[s, l]`` is the change of
    block ``l``'s addition if block ``s`` is skipped, relative to the length of that addition (0
    unless ``l > s``); ``largest_skip_effect`` is its maximum over tokens. ``answer_change`` is the
    Euclidean distance of the probabilities with the block and without it, ``answer_kl_nats`` the
    divergence of the second from the first; NaN if the model returns no logits. ``depth`` is the
    mean block number, from 1, weighted by the mean effect of skipping the block on later blocks.
    If one block makes at least half of all contributions (flag ``one_block``; often the first,
    whose input is short), ``conventions`` names the block and ``without_owner`` is the fraction
    among the other blocks; else it equals ``value``.
    """

    title: ClassVar[str] = "Effect of skipping a block on later blocks"
    direction: Direction = "higher"
    layers: tuple[str, ...]
    contribution: Float[Tensor, "layer"]
    contribution_se: Float[Tensor, "layer"]
    without_owner: float
    largest_contribution: Float[Tensor, "layer"]
    cosine: Float[Tensor, "layer"]
    skip_effect: Float[Tensor, "layer layer"]
    largest_skip_effect: Float[Tensor, "layer layer"]
    answer_change: Float[Tensor, "layer"]
    answer_kl_nats: Float[Tensor, "layer"]
    depth: float
    sublayers: SublayerUse | None = None

    def chart(self) -> Chart:
        """Return a chart with a heat map of skipped blocks and the blocks after them."""
        rows = cells(self.skip_effect.tolist(), "later", "skipped", "effect")
        later = [row for row in rows if row["later"] > row["skipped"]]
        return matrix(self.title, later, "later", "skipped", "effect")


def depth_use(
    model: Model | nn.Module,
    batches: Iterable[InputBatch],
    *,
    leave_out: int = 0,
    sublayers: bool = False,
) -> DepthUseResult:
    """Return each block's contribution, and how much later blocks depend on it.

    A block adds ``out - in``. A skipped block returns its input, and the additions of later blocks
    are compared with their additions before, token by token. A sublayer is a module whose output
    the block adds to the stream, one sublayer after the other. A skipped sublayer returns zero.

    Range        [0, 1]: above ``null``, where all blocks add alike, the second half adds more.
                 Contributions fall with depth in an untrained pre-norm network too: compare with a
                 copy with random weights. Invariant to the scale of the stream.
    Cost         a forward for each block and one more, on every batch; with ``sublayers`` also one
                 for each sublayer and one more, and once a forward for each block.
    Assumes      blocks that keep the width of their input, in one stream. Tokens whose
                 contributions are not finite are left out and counted. States of first tokens
                 may be far longer than others: compare with ``leave_out``. Blocks that are not
                 their input plus one sublayer after the other on all tokens (post-norm and parallel
                 blocks) have no sublayers (flag ``whole_blocks``); ``conventions`` names them and
                 says why.
    Differs      from the paper: means beside maxima, and nothing is hidden from earlier tokens.

    Parameters
    ----------
    model : Model or nn.Module
        Model to read; it is left as it was.
    batches : iterable of InputBatch
        For example ``sonde.data.open_inputs(model, data).batches(0, n)``.
    leave_out : int, default=0
        Number of tokens at the beginning of each text that are not counted.
    sublayers : bool, default=False
        Measure and skip the parts of each block too, such as attention and MLP.

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
    paths = ModelBlocks(module).paths
    if len(paths) < 2:
        raise InputError(f"depth_use: expected a network of at least two blocks, got {len(paths)}.")
    parts: dict[str, Sublayers] | None = {} if sublayers else None
    with torch.no_grad():
        measured = [_measured(module, b, paths, leave_out, parts) for b in batches]
    texts = _of_groups([text for batch in measured for text in batch.texts])
    n_broken = sum(batch.n_broken for batch in measured)
    if not texts:
        raise InputError(
            f"depth_use: expected texts of more than {leave_out} tokens with finite states, got "
            f"none ({plural(n_broken, 'token was', 'tokens were')} not finite). Give "
            "longer texts, or leave out fewer tokens."
        )
    whole = [] if parts is None else [one.why for one in parts.values() if one.why]
    conventions = {
        "left out": f"the first {leave_out} tokens",
        **({"whole blocks": "; ".join(whole)} if whole else {}),
    }
    if n_broken:
        conventions["not finite"] = (
            f"{plural(n_broken, 'token')} with states or additions that were not finite"
        )
    by_part = None if parts is None else _sublayer_use(parts, texts)
    flags = (*(["whole_blocks"] if whole else []), *(["nonfinite"] if n_broken else []))
    result = replace(_of_blocks(paths, texts, flags, conventions), sublayers=by_part)
    result = with_few_groups(result, len(texts))
    return with_copies(
        result, sum(b.n_copies for b in measured), sum(len(b.texts) for b in measured)
    )


FIGURES = 4
"""Contribution, cosine, and what skipping changes of the answer: distance and divergence."""


@dataclass(frozen=True)
class _Text:
    """Sums and maxima over ``n`` tokens of one example.

    Columns: contribution, cosine, changes of the answer; for blocks also the effect of skipping
    each block. ``group`` names the document that the example belongs to.
    """

    group: bytes
    n: int
    sums: Float[Tensor, "layer figure"]
    largest: Float[Tensor, "layer figure"]
    parts: dict[str, Float[Tensor, "part_figure"]]

    def joined(self, other: "_Text") -> "_Text":
        """Return the sums and maxima over both sets of tokens."""
        parts = {k: v + other.parts[k] for k, v in self.parts.items() if k in other.parts}
        largest = torch.maximum(self.largest, other.largest)
        return _Text(self.group, self.n + other.n, self.sums + other.sums, largest, parts)


@dataclass(frozen=True)
class _Measured:
    """Statistics of the examples of a batch, and how many of them are duplicates.

    ``n_broken`` counts tokens that were left out because their contributions are not finite.
    """

    texts: list[_Text]
    n_copies: int
    n_broken: int


def _of_groups(texts: list[_Text]) -> list[_Text]:
    """Return the statistics of each group; equal examples form one group."""
    by_group: dict[bytes, _Text] = {}
    for text in texts:
        one = by_group.get(text.group)
        by_group[text.group] = text if one is None else one.joined(text)
    return [*by_group.values()]


def _of_blocks(
    paths: list[str], texts: list[_Text], flags: tuple[str, ...], conventions: dict[str, str]
) -> DepthUseResult:
    sums = torch.stack([t.sums for t in texts])
    mean, error = _means(sums, texts)
    contribution = mean[:, 0]
    effect = mean[:, FIGURES:].tril().T
    later = effect[:-1].sum(1) / torch.arange(len(paths) - 1, 0, -1)
    number = torch.arange(1, len(paths), dtype=torch.float64)
    half = len(paths) // 2
    owner, without = _owner(paths, contribution, half)
    dead = not bool(contribution.isfinite().all() and contribution.sum() > 0)
    left_out = sums.sum(0)[:, 0] - sums[:, :, 0]
    each = left_out[:, half:].sum(1) / left_out.sum(1)
    largest = torch.stack([t.largest for t in texts]).amax(0)
    return DepthUseResult(
        value=math.nan if dead else float(contribution[half:].sum() / contribution.sum()),
        se=float(_jackknife(each)) if len(texts) > 1 and not dead else None,
        null=(len(paths) - half) / len(paths),
        n=len(texts),
        range=(0.0, 1.0),
        flags=(*(("dead",) if dead else ()), *(("one_block",) if owner else ()), *flags),
        conventions={
            **({"one block": owner} if owner else {}),
            "second half": f"{len(paths) - half} of {len(paths)} blocks",
            "se": "jackknife over groups" if len(texts) > 1 else "none: one group",
            **conventions,
        },
        layers=tuple(paths),
        contribution=contribution,
        contribution_se=error[:, 0],
        without_owner=without,
        largest_contribution=largest[:, 0],
        cosine=mean[:, 1],
        skip_effect=effect,
        largest_skip_effect=largest[:, FIGURES:].tril().T,
        answer_change=mean[:, 2],
        answer_kl_nats=mean[:, 3],
        depth=float((number * later).sum() / later.sum()) if bool(later.sum() > 0) else math.nan,
    )


OWNED = 0.5
"""Fraction of all contributions at which one block decides the figure."""


def _owner(paths: list[str], contribution: Float[Tensor, "layer"], half: int) -> tuple[str, float]:
    """Return which block makes most contributions, in words, and the figure without it."""
    total = float(contribution.sum())
    if not total > 0:
        return "", math.nan
    block = int(contribution.argmax())
    owned = float(contribution[block]) / total
    if owned < OWNED or len(paths) < 3:
        return "", float(contribution[half:].sum()) / total
    others = contribution.clone()
    others[block] = 0.0
    without = float(others[half:].sum() / others.sum()) if bool(others.sum() > 0) else math.nan
    sentence = f"{paths[block]} makes {owned:.0%} of all contributions; without it {without:.3g}"
    return sentence, without


def _sublayer_use(parts: dict[str, Sublayers], texts: list[_Text]) -> SublayerUse:
    names = tuple(name for one in parts.values() for name in one.names)
    nothing = torch.zeros(0, FIGURES, dtype=torch.float64)
    sums = [torch.cat([nothing, *(t.parts[name][None] for name in names)]) for t in texts]
    mean, error = _means(torch.stack(sums), texts)
    return SublayerUse(
        names=names,
        contribution=mean[:, 0],
        contribution_se=error[:, 0],
        cosine=mean[:, 1],
        cosine_se=error[:, 1],
        answer_change=mean[:, 2],
        answer_change_se=error[:, 2],
        answer_kl_nats=mean[:, 3],
        answer_kl_nats_se=error[:, 3],
    )


def _means(
    sums: Float[Tensor, "text one figure"], texts: list[_Text]
) -> tuple[Float[Tensor, "one figure"], Float[Tensor, "one figure"]]:
    """Return means over all tokens, and their standard errors."""
    n = torch.tensor([t.n for t in texts], dtype=torch.float64)[:, None, None]
    total = sums.sum(0)
    return total / n.sum(), _jackknife((total - sums) / (n.sum() - n))


def _jackknife(left_out: Float[Tensor, "text *figure"]) -> Float[Tensor, "*figure"]:
    """Return the jackknife standard error over texts; NaN for one text.

    From fewer than 32 texts it is widened by Student's t.
    """
    n = len(left_out)
    spread = (left_out - left_out.mean(0)).square().sum(0) * (n - 1) / n
    return widen_error(spread.sqrt(), n)


@final
@dataclass(frozen=True, eq=False)
class _Put(Edit):
    """An edit that replaces the model's states by given states."""

    state: Tensor

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the states."""
        return self.state.to(x)


def _measured(
    module: nn.Module,
    batch: InputBatch,
    paths: list[str],
    leave_out: int,
    parts: dict[str, Sublayers] | None,
) -> _Measured:
    """Return the statistics of each example of a batch."""
    plain = forward(module, batch, paths)
    before, added = torch.stack(plain.before).double(), plain.added
    length, n_layers = added.norm(dim=-1), len(paths)
    figures = torch.zeros(n_layers, FIGURES + n_layers, *length.shape[1:], dtype=torch.float64)
    figures[:, :2] = size_and_cosine(before, added).movedim(0, 1)
    for s, path in enumerate(paths):
        with editing(module, _Put(plain.before[s]), Site(path), here=True):
            skipped = forward(module, batch, paths)
        change = (skipped.added[s + 1 :] - added[s + 1 :]).norm(dim=-1) / length[s + 1 :]
        figures[s + 1 :, FIGURES + s] = change
        figures[s, 2:FIGURES] = answer_changes(plain, skipped.log_p)
    if figures.ndim == 3:  # one row for each example
        figures = figures[..., None]
    counted = _kept(batch, figures, leave_out)
    kept = counted & figures[:, 0].isfinite().all(0)
    by_part = {} if parts is None else _of_parts(module, batch, paths, plain, kept, parts)
    texts = [
        _Text(
            batch.group_keys[i],
            int(mask.sum()),
            own.sum(-1),
            own.amax(-1),
            {name: f[:, i][:, mask].sum(-1) for name, f in by_part.items()},
        )
        for i, mask in enumerate(kept)
        if bool(mask.any())
        for own in (figures[:, :, i][..., mask],)
    ]
    return _Measured(texts, int((batch.occurrence > 0).sum()), int((counted & ~kept).sum()))


def _of_parts(
    module: nn.Module,
    batch: InputBatch,
    paths: list[str],
    plain: Forward,
    kept: Bool[Tensor, "example pos"],
    parts: dict[str, Sublayers],
) -> dict[str, Float[Tensor, "figure example pos"]]:
    """Return the statistics of sublayers, found on the first batch and checked on each."""
    if not parts and bool(kept.any()):
        parts |= {path: sublayers_of(module, batch, path, kept) for path in paths}
    names = [name for one in parts.values() for name in one.names]
    sites = [*map(Site, names), *(Site(p, port=port) for p in parts for port in ("in", "out"))]
    seen = {s: x.cpu() for s, x in watch(module, batch, sites).tensors.items()}
    figures = dict[str, Tensor]()
    for path in parts:
        before, after = seen[str(Site(path, port="in"))], seen[str(Site(path))]
        names = parts[path].names
        added = {n: seen[k].reshape(before.shape) for n in names if (k := str(Site(n))) in seen}
        rows = [x.reshape(*kept.shape, -1)[kept] for x in (after, before, *added.values())]
        if len(added) < len(names) or (names and not is_sum(*rows)):
            parts[path] = Sublayers(why=f"{path} is not such a sum for every batch")
            continue
        stream = before.double()
        for name, x in added.items():
            with editing(module, Replace(torch.zeros(1)), Site(name), here=True):
                log_p = log_probabilities(watch(module, batch, []).output)
            own = torch.cat([size_and_cosine(stream, x.double()), answer_changes(plain, log_p)])
            figures[name] = own.reshape(FIGURES, *kept.shape)
            stream = stream + x.double()
    return figures


def _kept(
    batch: InputBatch, figures: Float[Tensor, "layer figure example pos"], leave_out: int
) -> Bool[Tensor, "example pos"]:
    """Return the mask of included tokens."""
    if batch.mask is None:
        kept = torch.ones(figures.shape[2:], dtype=torch.bool)
    else:
        kept = batch.mask.bool().clone()
    return kept & (kept.cumsum(1) > leave_out)
