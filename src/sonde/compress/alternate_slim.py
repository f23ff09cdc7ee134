"""Slim a transformer in two steps, each followed by training on states of unchanged shape.

For a model that may be trained on unlabelled inputs. ``SliceWidth`` and ``PruneChannels`` fit
without training.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.compress._blocks import placed_call
from sonde.compress._coupled import (
    IN,
    OUT,
    CoupledSet,
    axis_of,
    coupled_sets,
    cut_changes,
)
from sonde.compress._grid import method_of
from sonde.compress._stream import Stream
from sonde.compress.grams import without_padding
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.stats.divergence import kl_divergence
from sonde.tap.hand.recording import Forward, intercepted
from sonde.tap.hooks.holding import in_eval
from sonde.tap.hooks.outputs import find
from sonde.tap.rows.padding import right_padded
from sonde.weights import Change, Examples, Exchange, Resized, Rewrite, RewritePlan
from sonde.weights._kinds import kind_of
from sonde.weights.own_config import with_own_config
from sonde.weights.tuning import Trainee, each_batch, row_losses, tuned, with_copy

Cut = tuple[CoupledSet, list[int]]


@renamed(remove="share")
@final
@dataclass(frozen=True)
class AlternateSlim(Rewrite):
    """Remove features of the residual stream, train, remove heads and neurons, train again.

    The first step keeps the shapes inside blocks, and trains queries, keys, values and neurons to
    match the model's own. The second step keeps the stream's shape, and trains the stream to match
    the model's stream at the features that stayed. The parts with the
    smallest scores are left out. ``disturbed``: ``sum |w dL/dw|``, where ``L`` is the squared
    distance between the outputs and the outputs plus noise: without noise the gradient is 0. How
    much noise does not matter: all scores grow with it alike. ``answers``: the same, where ``L`` is
    the cross-entropy of the model's own likeliest answers. ``size``: ``sum |w|``.

    Range        the same share of features of the stream, and of all heads and of all neurons.
    Cost         two passes with gradients for the scores, ``2 epochs`` more for the training.
    Assumes      a stream that is a sum of layers' outputs, read by norms alone; inputs that the
                 model will meet, without labels.
    Differs      from the paper: answers are compared by their divergence, and scores of a set of
                 units are divided by their mean before units of several blocks are compared.

    Parameters
    ----------
    remove : float, default=0.5
        Fraction of the features, of the heads and of the neurons that is removed, in [0, 1); 0
        changes nothing.
    epochs : int, default=10
        Number of passes over the examples in each step; the loss moves from states to answers
        within a step.
    rate : float, default=1e-3
        Learning rate of Adam.
    alternate : bool, default=True
        False leaves out both at once and trains for the epochs of both steps, on both.
    seed : int, default=0
        Seed of the order of examples.
    score : {"disturbed", "answers", "size"}, default="disturbed"
        What tells which parts are left out; the paper's is "disturbed".

    References
    ----------
    chen2024slimsam
    """

    remove: float = 0.5
    epochs: int = 10
    rate: float = 1e-3
    alternate: bool = True
    seed: int = 0
    score: Literal["disturbed", "answers", "size"] = "disturbed"
    paper: ClassVar[str] = "chen2024slimsam"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"epochs": 1},
        {"remove": 0.3, "epochs": 0, "alternate": False, "seed": 1},
        {"remove": 0.3, "epochs": 0, "score": "answers"},
        {"remove": 0.3, "epochs": 0, "score": "size"},
    )

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)", rate="> 0", epochs=">= 0")
        check_ranges(self, score=("disturbed", "answers", "size"))

    def reads(self) -> dict[str, Examples]:
        """Read examples, on which outputs and states are compared."""
        return {"calibration": Examples()}

    def planned(self, model: Model, calibration: Inputs) -> RewritePlan:
        """Return the smaller, trained layers.

        Raises
        ------
        InputError
            If the model has no stream that norms read.
        """
        word = method_of("AlternateSlim", asdict(self))
        if self.remove == 0:
            return RewritePlan.of(model, {}, word)
        stream = Stream.of("AlternateSlim", model, calibration)
        sets, _ = coupled_sets(model, calibration)
        student = with_copy(model.module)
        scores = self._scores(model, student, calibration)
        kept = _kept_features(stream, student, scores, self.remove)
        if self.alternate:
            student = _folded(student, stream.cut(student, kept))
            student = self._trained(model, student, calibration, _inner(model, sets))
            scores = self._scores(model, student, calibration)
            cuts = _kept_units(sets, student, scores, self.remove)
            student, forms = _without(student, cuts)
            student = self._trained(model, student, calibration, _outer(stream, kept))
        else:
            cuts = _kept_units(sets, student, scores, self.remove)
            student = _folded(student, stream.cut(student, kept))
            student, forms = _without(student, cuts)
            seen = _inner(model, sets, cuts) | _outer(stream, kept)
            student = self._trained(model, student, calibration, seen, 2)
        figures = {
            "width": float(len(kept)),
            "units": float(sum(len(one) - len(left) for one, left in cuts)),
        }
        changes = _changes(model.module.state_dict(), student.state_dict())
        plan = RewritePlan.shaped(model, changes, word, figures, forms=forms)
        counts = {len(one): len(left) for one, left in cuts}
        return with_own_config(model, plan, counts)

    def _scores(self, model: Model, module: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        own = replace(model, module=module)
        if self.score == "disturbed":
            return disturbed_taylor(own, inputs, self.seed)
        return answer_taylor(own, inputs) if self.score == "answers" else weight_sizes(module)

    def _trained(
        self,
        model: Model,
        student: nn.Module,
        inputs: Inputs,
        sites: "Mapping[tuple[str, str], list[int] | None]",
        times: int = 1,
    ) -> nn.Module:
        """Train a student on the model's states at some sites, and on its answers."""
        if not self.epochs:
            return student
        epochs = times * self.epochs
        n_steps = epochs * sum(1 for _ in each_batch(inputs))
        teacher, step = row_losses(model, model.module, inputs), count()

        def loss(trainee: Trainee, batch: InputBatch) -> Tensor:
            with torch.no_grad(), _watched(model.module, sites) as wanted:
                p = teacher.answers(batch).log_p
            with _watched(trainee.module, sites) as states:
                q = trainee.losses.answers(batch).log_p
            gaps = list[Tensor]()
            for site, places in sites.items():
                for x, y in zip(wanted[site], states[site], strict=True):
                    x, y = (without_padding(z, batch) for z in (x, y))
                    x = x if places is None else x[..., places]
                    gaps.append((x - y).square().mean() / x.square().mean().clamp(min=1e-12))
            final = kl_divergence(p, q).mean()
            t = next(step) / max(1, n_steps - 1)
            return (1 - t) * torch.stack(gaps).mean() + t * final

        return tuned(model, inputs, loss, rate=self.rate, epochs=epochs, seed=self.seed,
                     label="alternate slim", start=student, progress=False)  # fmt: skip


def disturbed_taylor(model: Model, inputs: Inputs, seed: int) -> dict[str, Float[Tensor, "..."]]:
    """Return the sum over batches of ``|w dL/dw|`` for each entry of each parameter.

    ``L`` is the sum of squared distances between the outputs of a batch and the same with noise of
    their own standard deviation.

    Parameters
    ----------
    model : Model
    inputs : Inputs
    seed : int
    """
    draw = torch.Generator().manual_seed(seed)

    def loss(batch: InputBatch) -> Tensor:
        args, kwargs = placed_call(model, batch)
        output = find(model.module(*args, **kwargs), None)
        assert output is not None  # a model that returned a tensor before
        f = without_padding(output, batch)
        drawn = torch.randn(f.shape, generator=draw, dtype=torch.float64).to(f)
        target = f.detach() + f.detach().std() * drawn
        return (f - target).square().sum()

    return _taylor(model.module, inputs, loss)


def answer_taylor(model: Model, inputs: Inputs) -> dict[str, Float[Tensor, "..."]]:
    """Return the same, where ``L`` is the cross-entropy of the model's own likeliest answers.

    Parameters
    ----------
    model : Model
    inputs : Inputs
    """
    losses = row_losses(model, model.module, inputs)

    def loss(batch: InputBatch) -> Tensor:
        return -losses.answers(batch).log_p.amax(-1).sum()

    return _taylor(model.module, inputs, loss)


def weight_sizes(module: nn.Module) -> dict[str, Float[Tensor, "..."]]:
    """Return the absolute value of each entry of each parameter."""
    named = module.named_parameters(remove_duplicate=False)
    return {name: p.detach().double().abs() for name, p in named if p.requires_grad}


def _taylor(
    module: nn.Module, inputs: Inputs, loss: Callable[[InputBatch], Tensor]
) -> dict[str, Tensor]:
    """Return the sum over batches of ``|w dL/dw|`` for each entry of each parameter."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    scores = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in named.items()}
    for batch in map(right_padded, inputs.batches(0, len(inputs))):
        with torch.enable_grad(), in_eval(module):
            own = loss(batch)
            slopes = torch.autograd.grad(own, list(named.values()), allow_unused=True)
        for (name, p), slope in zip(named.items(), slopes, strict=True):
            if slope is not None:
                scores[name] += (p.detach().double() * slope.double()).abs()
    every = {id(p): name for name, p in named.items()}
    for name, p in module.named_parameters(remove_duplicate=False):
        if id(p) in every:
            scores[name] = scores[every[id(p)]]
    return scores


def _along(x: Tensor, axis: int) -> Float[Tensor, "place"]:
    """Return sums over all axes except one."""
    return x.movedim(axis, 0).flatten(1).sum(1) if x.ndim > 1 else x


def _kept_features(
    stream: Stream, module: nn.Module, scores: Mapping[str, Tensor], share: float
) -> list[int]:
    """Return the kept features of the residual stream, in order."""
    each = [_along(scores[name], axis) for name, axis in stream.axes(module) if name in scores]
    n = max(1, stream.width - round(share * stream.width))
    total = torch.stack(each).sum(0)
    return sorted(total.argsort(descending=True, stable=True)[:n].tolist())


def _kept_units(
    sets: Sequence[CoupledSet], module: nn.Module, scores: Mapping[str, Tensor], share: float
) -> list[Cut]:
    """Return the kept units of each set. Sets of one kind compete, and each keeps a unit."""
    kinds: dict[tuple[int, ...], list[tuple[int, Tensor]]] = defaultdict(list)
    for i, one in enumerate(sets):
        each = torch.zeros(len(one), dtype=torch.float64)
        for name, side in one.units[0]:
            part, own = module.get_submodule(name), scores.get(f"{name}.weight")
            grouped = side == IN and getattr(part, "groups", 1) > 1
            if own is None or kind_of(part) is None or grouped:
                continue
            along = _along(own, axis_of(part, side)).cpu()
            each += torch.stack([along[list(unit[name, side])].sum() for unit in one.units])
        each = each / each.mean().clamp(min=1e-300)
        each[each.argmax()] = torch.inf
        kinds[tuple(sorted(map(len, one.units[0].values())))].append((i, each))
    kept: dict[int, list[int]] = {}
    for several in kinds.values():
        every = torch.cat([each for _, each in several])
        gone = torch.zeros(len(every), dtype=torch.bool)
        gone[every.argsort(stable=True)[: round(share * len(every))]] = True
        gone &= every.isfinite()
        parts = gone.split([len(each) for _, each in several])
        for (i, _), own in zip(several, parts, strict=True):
            kept[i] = (~own).nonzero()[:, 0].tolist()
    return [(one, kept[i]) for i, one in enumerate(sets)]


def _inner(
    model: Model, sets: Sequence[CoupledSet], cuts: Sequence[Cut] = ()
) -> dict[tuple[str, str], list[int] | None]:
    """Return the layers whose outputs hold the units of sets, with the kept positions."""
    kept = {id(one): left for one, left in cuts}
    sites: dict[tuple[str, str], list[int] | None] = {}
    for one in sets:
        for name in one.sides(OUT):
            if kind_of(model.module.get_submodule(name)) in ("matrix", "transposed"):
                places = one.places(kept[id(one)], name, OUT) if cuts else None
                sites[name, OUT] = places
    return sites


def _outer(stream: Stream, kept: list[int]) -> dict[tuple[str, str], list[int] | None]:
    """Return the inputs of the norms that read the stream, with the kept features."""
    return {(name, IN): kept for name in stream.readers}


@contextmanager
def _watched(
    module: nn.Module, sites: Mapping[tuple[str, str], Any]
) -> Iterator[dict[tuple[str, str], list[Tensor]]]:
    """Record the inputs or outputs of modules in forward passes inside a ``with`` block."""
    states: dict[tuple[str, str], list[Tensor]] = {site: [] for site in sites}
    parts = {module.get_submodule(name): (name, side) for name, side in sites}

    def around(part: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        x = find((args, kwargs) if parts[part][1] == IN else output, None)
        if x is not None:
            states[parts[part]].append(x)
        return output

    with intercepted(list(parts), around):
        yield states


def _folded(module: nn.Module, tensors: Mapping[str, Tensor], forms: Any = None) -> nn.Module:
    """Return a trainable copy with some tensors replaced."""
    changes = {name: Resized(x) for name, x in tensors.items()}
    return with_copy(RewritePlan.shaped(module, changes, forms=forms).fold(module))


def _without(module: nn.Module, cuts: Sequence[Cut]) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
    """Return a copy cut to the kept units, and the new sizes in modules' attributes."""
    changes, forms = cut_changes(module, cuts, {})
    return with_copy(RewritePlan.shaped(module, changes, forms=forms).fold(module)), forms


def _changes(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Change]:
    """Return the changes that turn the old tensors into the new."""
    changes: dict[str, Change] = {}
    for name, x in new.items():
        values = x.detach()
        if values.shape != old[name].shape:
            changes[name] = Resized(values)
        elif not torch.equal(values, old[name]):
            changes[name] = Exchange(values)
    return changes
