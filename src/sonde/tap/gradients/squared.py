"""Squared gradients of every parameter, summed over examples: the diagonal Fisher information."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError, StateError, near
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.state import State
from sonde.engine.progress import Bar
from sonde.files.state_file import read_one, write_one
from sonde.tap.gradients.graph import Use
from sonde.tap.gradients.losses import Loss, RowLosses, check_loss, one_of
from sonde.tap.gradients.meeting import Finder, gradients_at
from sonde.tap.gradients.rules import GradientRule, rule_for
from sonde.tap.hooks.session import Session
from sonde.tap.model.input_types import place_of
from sonde.tap.model.record import difference_of_models, model_record
from sonde.tap.streams.live import live_stream

CHUNK_BYTES, MANY = 2**20, 16


KEY = "squared_gradients"


@final
@dataclass(frozen=True)
class SquaredGradients(State):
    """Sums over examples of the squared gradient of each example's own loss.

    Parameters
    ----------
    names : tuple of str
        Parameters, as in ``model.named_parameters()``.
    sums : tuple of Float[Tensor, "..."]
        In float64, of the parameters' shapes.
    total_loss : float
        Sum of the losses in nats: near zero the squares are mostly noise.
    n : int
        Examples.
    model : str
        Record of the model that the gradients were taken at, as of ``sonde.tap.model_record``.
    loss : str
        What the loss was.
    """

    names: tuple[str, ...]
    sums: tuple[Tensor, ...]
    total_loss: float
    n: int
    model: str
    loss: str

    @property
    def mean_loss(self) -> float:
        """Mean loss of an example in nats."""
        return self.total_loss / self.n

    def means(self) -> dict[str, Float[Tensor, "..."]]:
        """Return the diagonal Fisher information of each parameter."""
        return {name: total / self.n for name, total in zip(self.names, self.sums, strict=True)}

    def merge(self, other: "SquaredGradients") -> "SquaredGradients":
        """Return the joined state of two sets of examples.

        Raises
        ------
        StateError
            If the gradients are of different models, parameters or losses.
        """
        apart = difference_of_models(self.model, other.model)
        if apart is not None:
            raise StateError(
                f"SquaredGradients.merge: the two states are of different models: {apart}. Merge "
                "states of one model."
            )
        for what in ("names", "loss"):
            if getattr(self, what) != getattr(other, what):
                raise StateError(
                    f"SquaredGradients.merge: the two states differ in their {what}. Merge "
                    "states of one model, with the same parameters and loss."
                )
        sums = tuple(a + b for a, b in zip(self.sums, other.sums, strict=True))
        total = self.total_loss + other.total_loss
        return SquaredGradients(self.names, sums, total, self.n + other.n, self.model, self.loss)

    def save(self, path: Path | str) -> str:
        """Write the state to a ``.sonde`` file and return its id."""
        return write_one(path, KEY, self)

    @classmethod
    def load(cls, path: Path | str) -> "SquaredGradients":
        """Load a state written by ``save``."""
        return read_one(path, KEY, cls)


def squared_gradients(
    model: Model | nn.Module,
    inputs: Inputs,
    loss: Loss = "label",
    *,
    parameters: Collection[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SquaredGradients:
    """Return the sums of per-example squared gradients, with one backward pass per batch.

    The model is read in eval mode and left as it was. Batches may be of any size: the numbers are
    those of one backward pass for each example, to rounding.

    Parameters
    ----------
    model : Model or nn.Module
        Model whose gradients are summed.
    inputs : Inputs
        Examples; those without a label are left out.
    loss : {"label", "sampled"} or callable, default="label"
        Cross-entropy with the true label, summed over the tokens of a text; the same with answers
        drawn from the model; or ``(outputs, batch) -> Float["example"]``.
    parameters : collection of str, optional
        By name; all that are floating point by default.
    seed : int, default=0
        Key of the answers that are drawn.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.

    Raises
    ------
    InputError
        If a parameter does not exist, no example has a label, or a gradient is not finite.
    """
    check_loss(loss)
    live = (
        model if isinstance(model, Model) else Model(model, config=getattr(model, "config", None))
    )
    chosen = _chosen(live.module, parameters)
    logits = None if callable(loss) else live_stream(live, inputs, logits_asked=True).logits_key
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in chosen.items()}
    finder, compute, total, n = Finder(), None, 0.0, 0
    with Bar("gradients", len(inputs), shown=progress) as bar:
        for batch in inputs.batches(0, len(inputs)):
            if compute is None:
                place = place_of(live.module, batch)
                compute = RowLosses(live, live.module, loss, logits, place, seed)
            with Session(live.module), torch.enable_grad(), _differentiable(chosen):
                losses, n_known = _add(sums, finder, compute, batch, chosen)
            total, n = total + losses, n + n_known
            bar.advance(len(batch))
    _check(sums, n)
    name = loss if isinstance(loss, str) else getattr(loss, "__qualname__", "callable")
    mark = model_record(live.module)
    return SquaredGradients(tuple(sums), tuple(sums.values()), total, n, mark, name)


def _add(
    sums: dict[str, Tensor],
    finder: Finder,
    compute: RowLosses,
    batch: InputBatch,
    chosen: Mapping[str, Tensor],
) -> tuple[float, int]:
    """Add the squares of a batch; return the sum of its losses and the number of known losses."""
    computed = compute(batch)
    squares, alone = squares_together(finder, computed.losses, chosen)

    def loss_of(row: int) -> Tensor:
        return compute(one_of(batch, row), computed.drawn_for(row)).losses

    if alone:
        squares |= squares_alone(loss_of, len(batch), {name: chosen[name] for name in alone})
    for name, values in squares.items():
        sums[name] += values
    return float(computed.losses.detach().double().sum()), int(computed.known.sum())


def _chosen(module: nn.Module, names: Collection[str] | None) -> dict[str, Tensor]:
    every: dict[str, Tensor] = {n: p for n, p in module.named_parameters() if p.is_floating_point()}
    if not every:
        raise InputError(
            "squared_gradients: expected a model with floating-point parameters, got none in "
            f"{type(module).__name__}. Pass the model before its weights are packed."
        )
    for name in names or ():
        if name not in every:
            raise InputError(
                f"squared_gradients: the model has no floating-point parameter {name!r}."
                f"{near(name, every)}"
            )
    return every if names is None else {name: every[name] for name in every if name in names}


@contextmanager
def _differentiable(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Enable gradients of parameters, including frozen ones."""
    frozen = [p for p in parameters.values() if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _check(sums: Mapping[str, Tensor], n: int) -> None:
    if n == 0:
        raise InputError(
            "squared_gradients: expected labels, or texts of two tokens, got no example that has a "
            "loss. Give data with labels, or loss='sampled'."
        )
    for name, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise InputError(
                "squared_gradients: expected finite gradients, got NaN or infinity at "
                f"{name}. Check the data for broken examples, or read the model in float32."
            )


def squares_together(
    finder: Finder, losses: Float[Tensor, "row"], parameters: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return sums over rows of squared gradients, and the parameters that still lack them.

    Parameters
    ----------
    finder : Finder
        Of this model.
    losses : Float[Tensor, "row"]
        Loss of each row, with its graph.
    parameters : mapping of str to Tensor
        What gradients are taken of.

    Returns
    -------
    dict of str to Tensor, tuple of str
        The second are parameters whose rows cannot be told apart in the batch.
    """
    meetings = finder.find(losses, parameters)
    nodes = {use.node: None for met in meetings.uses.values() for use in met}
    missing = [node for node in nodes if node not in meetings.gradients]
    gradients = {**meetings.gradients, **gradients_at(losses, missing)}
    sums: dict[str, Tensor] = {}
    alone = list(meetings.alone)
    with torch.no_grad():
        for name, uses in meetings.uses.items():
            parts = [(use, gradients[use.node]) for use in uses]
            rules = [(u, rule_for(u, g, len(losses))) for u, g in parts if g is not None]
            sound = [(use, rule) for use, rule in rules if rule is not None]
            if len(sound) < len(rules):
                alone.append(name)
            else:
                sums[name] = _summed(sound, parameters[name], len(losses))
    return sums, tuple(alone)


def squares_alone(
    losses: Callable[[int], Float[Tensor, "1"]], n: int, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return sums over rows of squared gradients, with one backward pass per row.

    Parameters
    ----------
    losses : callable
        From the number of a row to its loss.
    n : int
    parameters : mapping of str to Tensor
    """
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    for row in range(n):
        loss = losses(row).sum()
        if not loss.requires_grad:
            continue
        slopes = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, slopes, strict=True):
            if gradient is not None:
                sums[name] += gradient.double().square()
    return sums


def _summed(rules: list[tuple[Use, GradientRule]], parameter: Tensor, n: int) -> Tensor:
    """Return the sum over rows of a parameter's squared gradient, over all its uses."""
    if not rules:
        return torch.zeros_like(parameter)
    use, rule = rules[0]
    if len(rules) > 1 or not _only_form(use):
        return _squares([(r.rows, partial(_back, u)) for u, r in rules], parameter.shape, n)
    squares = rule.squares()
    if squares is None:
        squares = _squares([(rule.rows, _as_it_is)], use.shape, n)
    return _back(use, squares[None])[0]


Making = tuple[Callable[[int, int], Tensor], Callable[[Tensor], Tensor]]
"""What gives the gradients of some rows by one use, and what puts them into a common form."""


def _squares(making: Sequence[Making], shape: Sequence[int], n: int) -> Tensor:
    """Return the sum over rows of the squared sum over uses, a few rows at a time."""
    size = max(1, CHUNK_BYTES // (4 * math.prod(shape)))
    total: Tensor | None = None
    for start in range(0, n, size):
        stop = min(n, start + size)
        rows = reduce(torch.add, (form(make(start, stop)) for make, form in making))
        total = rows.new_zeros(rows.shape[1:]) if total is None else total
        if len(rows) > MANY:
            total += rows.square().sum(0)
        else:  # each row and the total stay in the cache
            for row in rows:
                total.addcmul_(row, row)
    assert total is not None
    return total


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


def _only_form(use: Use) -> bool:
    """Return whether a parameter is only transposed or cast before it meets rows."""
    return all(node.name() in ("TBackward0", "ToCopyBackward0") for node, _ in use.chain)


def _back(use: Use, rows: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
    """Return a parameter's gradients from those of a tensor computed from it."""
    for node, index in reversed(use.chain):
        if node.name() == "TBackward0":
            rows = rows.mT
        elif node.name() != "ToCopyBackward0":
            kind = node._input_metadata[0].dtype
            given = [node(row.to(kind)) for row in rows]
            rows = torch.stack([g[index] if isinstance(g, tuple) else g for g in given]).to(rows)
    return rows
