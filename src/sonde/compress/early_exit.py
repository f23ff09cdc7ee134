"""Answer from an early block if a readout is confident enough, and skip the later blocks.

For classifiers of single inputs whose easy cases are common. Where every input needs the last
block the readouts only cost.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.state import State, map_tensors
from sonde.engine.steps import minimise
from sonde.stats.intervals import clopper_pearson
from sonde.tap import place_of
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import arguments
from sonde.tap.hooks.session import Session
from sonde.tap.model.blocks import block_paths
from sonde.tap.rows.padding import right_padded

GRID = 1 - torch.logspace(-4, 0, 65, dtype=torch.float64)
"""Thresholds that are tried, from the safest to 0: fixed before any row is seen."""
STEPS = 200
Pool = Literal["first", "last", "mean"]


@final
@dataclass(frozen=True)
class EarlyExit:
    """Readouts after blocks, each with a confidence threshold for answering early.

    A readout is a linear softmax classifier of a block's pooled states, fitted to the model's own
    probabilities. It answers if its largest probability is at least the block's threshold. This is
    the smallest threshold at which the share of leaving rows that disagree with the whole model is
    at most ``tolerance``, by the upper limit of Clopper and Pearson on calibration rows.
    Thresholds are tested from the safest down until the first that fails, at level ``delta`` shared
    among the blocks.

    Range        with probability ``1 - delta`` at most ``tolerance`` of the rows that leave at any
                 block get another class than from the whole model; ``tolerance=0`` never exits.
    Cost         one forward of the data, a linear fit and a count for each block.
    Assumes      later inputs are drawn as those of ``calibration``; one class for each input.
    Differs      from the paper: single answers, not the tokens of a text.

    Parameters
    ----------
    tolerance : float, default=0.05
        Largest fraction of early answers that may differ from the last readout's, in [0, 1).
    delta : float, default=0.05
        Probability that the tolerance is exceeded, in (0, 0.5).
    sites : sequence of str, optional
        Modules behind which inputs may leave; all blocks but the last by default.
    pool : {"mean", "first", "last"}, default="mean"
        Which tokens a readout reads; of maps it reads the mean.
    penalty : float, default=1e-3
        Weight of the squared coefficients of a readout on standardised states.

    References
    ----------
    schuster2022confident, clopper1934use
    """

    tolerance: float = 0.05
    delta: float = 0.05
    sites: Sequence[str] | None = None
    pool: Pool = "mean"
    penalty: float = 1e-3
    paper: ClassVar[str] = "schuster2022confident"

    def __post_init__(self) -> None:
        check_ranges(self, tolerance="[0, 1)", delta="(0, 0.5)", pool=get_args(Pool))

    def fit(self, model: Model, train: Inputs, calibration: Inputs) -> "EarlyExits":
        """Return readouts fitted on some inputs, with thresholds calibrated on others.

        Parameters
        ----------
        model : Model
            A classifier.
        train, calibration : Inputs
            Without an input in common.

        Raises
        ------
        InputError
            If an input is in both, or the model does not give one answer for each input.
        """
        if set(train.group_keys) & set(calibration.group_keys):
            raise InputError(
                "EarlyExit.fit: expected inputs to calibrate on that no readout was fitted on, "
                "got inputs that occur in both. Split them by group."
            )
        sites = self._sites(model.module)
        states, logits = _read(model, train, sites, self.pool)
        readouts = [_readout(x, logits.softmax(1), self.penalty) for x in states]
        states, logits = _read(model, calibration, sites, self.pool)
        answer = logits.argmax(1)
        staying = torch.ones(len(answer), dtype=torch.bool)
        thresholds: list[float] = []
        for x, (weight, bias) in zip(states, readouts, strict=True):
            sure, own = (x @ weight + bias).softmax(1).max(1)
            threshold = exit_threshold(
                sure[staying], (own != answer)[staying], self.tolerance, self.delta / len(sites)
            )
            thresholds.append(threshold)
            staying &= sure < threshold
        weights, biases = (tuple(x) for x in zip(*readouts, strict=True))
        return EarlyExits(tuple(sites), self.pool, weights, biases, tuple(thresholds))

    def _sites(self, module: nn.Module) -> list[str]:
        names = list(self.sites) if self.sites is not None else _blocks(module)[:-1]
        modules = dict(module.named_modules())
        missing = [name for name in names if name not in modules]
        if missing or not names:
            raise SiteError(
                f"EarlyExit: expected modules after which to exit, got {missing or 'no block'} "
                f"in {type(module).__name__}. Name them with sites."
            )
        return names


def exit_threshold(
    sure: Float[Tensor, "row"], wrong: Bool[Tensor, "row"], tolerance: float, delta: float
) -> float:
    """Return the lowest confidence threshold with at most a fraction ``tolerance`` of errors.

    With probability ``1 - delta`` this holds for rows drawn like these. Infinity if no threshold is
    certain, as always below ``log(delta) / log(1 - tolerance)`` rows. Thresholds that fewer than an
    eighth of the rows reach are not tried: one wrong row among few would end the search.

    Parameters
    ----------
    sure : Float[Tensor, "row"]
        Confidence of each row, in [0, 1].
    wrong : Bool[Tensor, "row"]
        Whether each early answer is wrong.
    tolerance : float
        Largest fraction of errors, in (0, 1).
    delta : float
        Probability that the tolerance is exceeded, in (0, 0.5).
    """
    lowest = math.inf
    least = math.inf if tolerance == 0 else math.log(delta) / math.log(1 - tolerance)
    least = max(least, len(sure) / 8)
    for threshold in GRID.tolist():
        leaves = sure >= threshold
        n = int(leaves.sum())
        if n < least:
            continue
        if clopper_pearson(int(wrong[leaves].sum()), n, 1 - 2 * delta)[1] > tolerance:
            break
        lowest = threshold
    return lowest


@final
@dataclass(frozen=True, eq=False)
class ExitAnswers:
    """Answers of a model with exits.

    Parameters
    ----------
    logits : Float[Tensor, "row class"]
    depth : Int[Tensor, "row"]
        Number of the exit that each row left by, from 0; the number of exits if it never left.
    """

    logits: Float[Tensor, "row class"]
    depth: Int[Tensor, "row"]


@final
@dataclass(frozen=True)
class EarlyExits(State):
    """Readouts with their thresholds, for the model on which they were fitted.

    Parameters
    ----------
    sites : tuple of str
        Modules behind which inputs may leave.
    pool : str
    weights : tuple of Float[Tensor, "dim class"]
    biases : tuple of Float[Tensor, "class"]
    thresholds : tuple of float
        Confidence from which a row leaves; infinity = never.
    """

    sites: tuple[str, ...]
    pool: str
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    thresholds: tuple[float, ...]

    @torch.no_grad()
    def answer(self, model: Model | nn.Module, *args: Any, **kwargs: Any) -> ExitAnswers:
        """Return the answers to a batch; blocks run only on the rows that have not left.

        The model is called with ``args`` and ``kwargs``, in its current mode. Tensors of a
        block's arguments whose first axis is as long as the batch are taken to hold a row for each
        input.
        """
        module = model.module if isinstance(model, Model) else model
        run = _Run(self, arguments(module, args, kwargs).get("attention_mask"))
        names = ModuleNames(module)
        exits = [i for i, t in enumerate(self.thresholds) if math.isfinite(t)]
        outputs = [(names.modules[self.sites[i]], partial(run.behind, i)) for i in exits]
        inputs = [(names.modules[path], run.before) for path in _blocks(module)]
        with Session(module, outputs, inputs, reading=False, owner="EarlyExits") as session:
            run.session = session
            output = session.run(args, kwargs)
        return run.answers(output)


class _Run:
    """A forward pass in which rows leave at exits."""

    def __init__(self, exits: EarlyExits, mask: Tensor | None) -> None:
        self.exits, self.mask = exits, mask
        self.session: Session | None = None
        self.n = 0
        self.rows: Tensor | None = None  # those left, among the rows of the call
        self.logits: Tensor | None = None
        self.depth: Tensor | None = None

    def behind(self, number: int, output: Any) -> Any:
        """Let rows exit after a module, and return the output of the remaining rows."""
        x = output if isinstance(output, Tensor) else output[0]
        if self.rows is None:
            self.n = len(x)
            self.rows = torch.arange(self.n, device=x.device)
            self.depth = self.rows.new_full((self.n,), len(self.exits.sites))
        mask = None if self.mask is None else self.mask.to(x.device)[self.rows]
        weight, bias = self.exits.weights[number].to(x), self.exits.biases[number].to(x)
        logits = _pooled(x, mask, self.exits.pool).to(x) @ weight + bias
        leaves = logits.double().softmax(1).amax(1) >= self.exits.thresholds[number]
        if not bool(leaves.any()):
            return None
        self._keep(logits[leaves], self.rows[leaves], number)
        self.rows = self.rows[~leaves]
        if len(self.rows) == 0 and self.session is not None:
            self.session.stop()
        return map_tensors(output, lambda t: t[~leaves] if len(t) == len(leaves) else t)

    def before(self, args: Any, kwargs: Any) -> Any:
        """Restrict a block's arguments to the rows that have not left."""
        if self.rows is None or len(self.rows) == self.n:
            return None
        own = self.rows
        change = lambda t: t[own] if t.ndim and len(t) == self.n else t  # noqa: E731
        return map_tensors(args, change), {k: map_tensors(v, change) for k, v in kwargs.items()}

    def _keep(self, logits: Tensor, rows: Tensor, number: int) -> None:
        if self.logits is None:
            self.logits = logits.new_zeros(self.n, logits.shape[1])
        assert self.depth is not None
        self.logits[rows], self.depth[rows] = logits, number

    def answers(self, output: Any) -> ExitAnswers:
        """Return all answers; rows that never left get the whole model's answer."""
        if output is not None:
            logits = _logits(output)
            if self.rows is None:
                depth = torch.full((len(logits),), len(self.exits.sites), device=logits.device)
                return ExitAnswers(logits, depth)
            if len(logits) != len(self.rows):
                raise SiteError(
                    f"EarlyExits: expected {len(self.rows)} answers for the remaining rows, got "
                    f"{len(logits)}: the model uses its first inputs again after the blocks."
                )
            if self.logits is None:
                self.logits = logits.new_zeros(self.n, logits.shape[1])
            self.logits[self.rows] = logits
        assert self.logits is not None
        assert self.depth is not None
        return ExitAnswers(self.logits, self.depth)


def _blocks(module: nn.Module) -> list[str]:
    return block_paths(ModuleNames(module), None)


def _logits(output: Any) -> Float[Tensor, "row class"]:
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", output[0])
    if logits.ndim != 2:
        raise InputError(
            "EarlyExit: expected a classifier with logits (row, class), got an output of shape "
            f"{tuple(logits.shape)}."
        )
    return logits


def _pooled(x: Tensor, mask: Tensor | None, pool: str) -> Float[Tensor, "row dim"]:
    """Return one vector for each row, in float32 at least."""
    x = x.float() if x.dtype != torch.float64 else x
    if x.ndim != 3:
        return x.flatten(2).mean(2) if x.ndim > 3 else x
    real = torch.ones(x.shape[:2], device=x.device) if mask is None else mask.float()
    if pool == "mean":
        return (x * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
    place = torch.arange(x.shape[1], device=x.device)
    at = (real * (place + 1)).argmax(1) if pool == "last" else real.argmax(1)
    return x[torch.arange(len(x), device=x.device), at]


def _read(
    model: Model, inputs: Inputs, sites: Sequence[str], pool: str
) -> tuple[list[Float[Tensor, "row dim"]], Float[Tensor, "row class"]]:
    """Return the pooled states after each module, and the model's logits."""
    rows: list[list[Tensor]] = [[] for _ in sites]
    logits: list[Tensor] = []
    mask: list[Tensor | None] = [None]
    modules = [model.module.get_submodule(name) for name in sites]

    def keep(i: int, output: Any) -> None:
        x = output if isinstance(output, Tensor) else output[0]
        rows[i].append(_pooled(x, mask[0], pool).double().cpu())

    outputs = [(module, partial(keep, i)) for i, module in enumerate(modules)]
    with Session(model.module, outputs, owner="EarlyExit") as session:
        for batch in map(right_padded, inputs.batches(0, len(inputs))):
            args, kwargs = place_of(model.module, batch).call(batch.args, batch.kwargs)
            mask[0] = arguments(model.module, args, kwargs).get("attention_mask")
            logits.append(_logits(session.run(args, kwargs)).double().cpu())
    return [torch.cat(x) for x in rows], torch.cat(logits)


def _readout(
    x: Float[Tensor, "row dim"], probs: Float[Tensor, "row class"], penalty: float
) -> tuple[Float[Tensor, "dim class"], Float[Tensor, "class"]]:
    """Return the linear softmax classifier with the least cross-entropy to given probabilities."""
    mean, spread = x.mean(0), x.std(0, correction=0).clamp(min=1e-12)
    z = (x - mean) / spread
    weight = torch.zeros(x.shape[1], probs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(probs.shape[1], dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        return cross_entropy(z @ weight + bias, probs) + penalty * weight.square().sum()

    minimise(loss, [weight, bias], STEPS)
    own = (weight / spread[:, None]).detach()
    return own, (bias - mean @ own).detach()
