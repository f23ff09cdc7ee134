"""The cost limit of a scan's trials: forward passes of changed inputs and models.

Budgets are counted in operations, which do not depend on the machine, so that two scans of the
same model and data try the same changes. One example is run once to count them: products of
layers, and tensors that are written, because memory bounds depthwise convolutions and norms.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from sonde.core.inputs import InputBatch
from sonde.core.operations import OperationMode
from sonde.core.repacking import count_weights
from sonde.core.wording import plural
from sonde.engine.progress import Bar
from sonde.tap import LiveStream
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import metered, watch
from sonde.tap.streams.small_batches import single, token_length

if TYPE_CHECKING:
    from sonde.findings.evidence.record import Evidence

SPEED: Final = 1e11
"""Operations of one core in a second, which convert a budget into approximate seconds."""
SECONDS: Final = 3.0
OF_ROWS, OF_TOKENS = 3.0, 0.25
"""Most that trials cost, in forwards of the data; more only up to ``SECONDS``."""
WRITTEN, CALL, READ = 100.0, 1e6, 40.0
"""Operations that take as long as a number that is written, an operator that is called, and a
weight that is read."""
INSIDE: Final = 5e4
"""Operations that take as long as an operator which a recurrent layer calls: no Python runs."""


Trial = TypeVar("Trial")
Kind = tuple[str, str]
"""What is tried, in the singular and in the plural."""


@dataclass(frozen=True)
class ForwardCost:
    """Operations of a forward pass: a constant, plus an amount per row or per token."""

    call: float = 0.0
    each: float = 0.0

    def of(self, n: float) -> float:
        """Return the operations of a forward pass of ``n`` rows or tokens."""
        return self.call + self.each * n


class _Counter(OperationMode):
    """Counts operators, multiplications, and the size of written tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls, self.n_inside, self.n_numbers, self.products = 0, 0, 0, 0
        self.is_inside = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.n_inside += self.is_inside
        self.n_calls += not self.is_inside
        formula = flop_registry.get(func._overloadpacket)
        self.products += 0 if formula is None else formula(*args, **kwargs, out_val=out)
        if not func.is_view:
            tensors = out if isinstance(out, tuple | list) else (out,)
            self.n_numbers += sum(x.numel() for x in tensors if isinstance(x, Tensor))
        return out

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Tell the operators that recurrent layers call from those that Python calls."""

        def enter(*_: Any) -> None:
            self.is_inside = True

        def leave(*_: Any) -> None:
            self.is_inside = False

        layers = [m for m in module.modules() if isinstance(m, nn.RNNBase)]
        hooks = [m.register_forward_pre_hook(enter) for m in layers]
        hooks += [m.register_forward_hook(leave, always_call=True) for m in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def forward_cost(stream: LiveStream) -> ForwardCost:
    """Return the cost of a forward pass, counted while one example runs."""
    module, batch = stream.model.module, single(stream.inputs, 0)
    if batch is None:
        return ForwardCost()
    counter = _Counter()
    with untouched(module), torch.no_grad(), metered(None), counter.watching(module):
        try:
            watch(module, batch, (), around=counter, place=stream.probe.place)
        except Exception:  # a model whose operators cannot be counted is taken for linear layers
            return ForwardCost(CALL, 2.0 * count_weights(module))
    whole = counter.products + WRITTEN * counter.n_numbers
    tables = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Embedding))
    read = READ * max(0, count_weights(module) - tables)
    calls = CALL * counter.n_calls + INSIDE * counter.n_inside
    return ForwardCost(calls + read, whole / _size(batch))


class TrialBudget:
    """Budget of a scan's trials, the cost so far, and the skipped trials.

    Parameters
    ----------
    limits : callable
        Returns the cost of a forward, and the operations that all trials together may take. Asked
        for once, before the first trial.
    shown : bool, default=False
        Whether a bar shows how many trials are done.
    """

    def __init__(self, limits: Callable[[], tuple[ForwardCost, float]], shown: bool = False):
        self._limits, self.shown = limits, shown
        self._sizes: Counter[int] = Counter()
        self.left_out: dict[Kind, int] = {}
        self._beside = 0.0

    @cached_property
    def _known(self) -> tuple[ForwardCost, float]:
        return self._limits()

    @property
    def cost(self) -> ForwardCost:
        """The cost of a forward pass."""
        return self._known[0]

    @property
    def total(self) -> float:
        """Operations that all trials together may take."""
        return self._known[1]

    @property
    def spent(self) -> float:
        """Operations of the forward passes that were counted."""
        return sum(times * self.cost.of(n) for n, times in self._sizes.items())

    def beside(self, part: float) -> "TrialBudget":
        """Return a budget of its own, as a part of this one, that takes nothing from the others."""
        own = TrialBudget(lambda: (self.cost, part * self.total), self.shown)
        own.left_out = self.left_out
        self._beside += part
        return own

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count every forward pass that runs inside this context."""
        with metered(lambda batch: self.note(_size(batch))):
            yield

    def note(self, n: int) -> None:
        """Count a forward pass of ``n`` rows or tokens."""
        self._sizes[n] += 1

    def left(self, part: float = 1.0) -> float:
        """Return the operations left in this part of the budget."""
        return max(0.0, part * self.total - self.spent)

    def rows(self, most: int, least: int, n_forwards: int, part: float = 1.0) -> int:
        """Return how many one-token rows ``n_forwards`` forward passes may have."""
        able = (self.left(part) / max(n_forwards, 1) - self.cost.call) / max(self.cost.each, 1e-9)
        return int(min(most, max(least, able)))

    def affords(self, n: float, part: float = 1.0) -> bool:
        """Return whether a forward pass of ``n`` rows or tokens fits the remaining budget."""
        return self.cost.of(n) <= self.left(part)

    def affordable(
        self, trials: Mapping[str, Trial], n: int, kind: Kind, part: float = 1.0
    ) -> Iterator[tuple[str, Trial]]:
        """Yield trials of ``n`` rows or tokens while the budget lasts, but at least one."""
        with self.bar(kind, len(trials)) as bar:
            for i, (name, trial) in enumerate(trials.items()):
                if i and not self.affords(n, part):
                    self.leave_out(kind, len(trials) - i)
                    return
                yield name, trial
                bar.advance(1)

    def leave_out(self, kind: Kind, n: int) -> None:
        """Record that ``n`` trials of a kind were skipped."""
        if n > 0:
            self.left_out[kind] = self.left_out.get(kind, 0) + n

    def bar(self, kind: Kind, n: int) -> Bar:
        """Return the progress bar of the trials, which names and counts them."""
        return Bar(f"trying {kind[1]}", n, self.shown, of="trial")

    def text(self) -> str:
        """Describe the skipped trials; empty if none was skipped."""
        if not self.left_out:
            return ""
        words = " and ".join(plural(n, *kind) for kind, n in self.left_out.items())
        total = (1 + self._beside) * self.total
        return (
            f"{words} not tried: trials may take about {total / SPEED:.0f} s on one core "
            "(--deep tries all)"
        )


def unlimited() -> TrialBudget:
    """Return a budget without a limit."""
    return TrialBudget(lambda: (ForwardCost(), math.inf))


def counted(
    part: Callable[[LiveStream, "Evidence"], Trial],
) -> Callable[[LiveStream, "Evidence"], Trial]:
    """Return a part of the evidence whose forward passes count as trials of the scan."""

    @wraps(part)
    def counting(stream: LiveStream, evidence: "Evidence") -> Trial:
        with evidence.budget.counting():
            return part(stream, evidence)

    return counting


def trial_budget(stream: LiveStream, evidence: "Evidence", shown: bool) -> TrialBudget:
    """Return the budget of a scan's trials, relative to the forward pass of its data."""

    def limits() -> tuple[ForwardCost, float]:
        cost, n, times = forward_cost(stream), float(evidence.data.n), OF_ROWS
        length = evidence.columns.get("length")
        if length is not None:
            n, times = n * float(length.rows.double().mean()), OF_TOKENS
        whole = max(SECONDS * SPEED, times * cost.of(n))
        return cost, math.inf if evidence.deep else whole

    return TrialBudget(limits, shown)


def _size(batch: InputBatch) -> int:
    """Return the number of rows of a batch, or of its tokens including padding."""
    return len(batch) * (token_length(batch) or 1)
