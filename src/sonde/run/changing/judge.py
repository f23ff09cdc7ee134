"""Four numbers on every change of a model: effect, damage, size, and a control.

The *effect* is how far the target moves: the log-probability of some texts or labels, less that of
others. The *damage* is what else changes: cross-entropy and Kullback-Leibler divergence on neutral
data. The *size* is the change of states in standard deviations of the unedited states. The
*control* is the effect of random changes of the same size: an effect that is no larger is no
evidence.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.engine.errorbars import group_error
from sonde.engine.progress import Bar
from sonde.stats.spreads import spreads
from sonde.tap import live_stream
from sonde.tap.streams.answers import Answers, answers

Act = Callable[[], AbstractContextManager[nn.Module]]
"""Opens a change and gives the module to run: the model under an edit, or a changed copy."""

LARGEST_SIZE, LARGEST_DAMAGE = 4.0, 0.5
N_CONTROLS = 10
CLEAR = 3.0
"""An effect this many standard deviations above those of random changes is called one."""


@dataclass(frozen=True)
class Difference:
    """Mean change over examples, with its standard error.

    Parameters
    ----------
    value : float
        In nats per answer.
    se : float
        Standard error over groups of examples; NaN for fewer than two.
    n : int
        Examples.
    """

    value: float
    se: float
    n: int


@dataclass(frozen=True)
class JudgedSide:
    """Data whose answers a change should make likelier (``sign`` 1) or less likely (-1)."""

    name: str
    inputs: Inputs
    sign: Literal[1, -1] = 1


@dataclass(frozen=True)
class Judgement:
    """Measured effects of a change.

    Parameters
    ----------
    effect : Difference
        Rise of the target's log-probability, nats per answer.
    by_side : dict of str to Difference
        Rise of the log-probability of each side's answers.
    loss : Difference
        Rise of the cross-entropy on neutral data.
    kl : Difference
        Divergence of the changed answers from the old ones on neutral data.
    size : float
        Root mean square change of a state, in standard deviations of the unedited states along
        the change, by the formula of ``sonde.stats.spreads.spreads``; NaN if not measured.
    controls : tuple of float
        Effects of random changes of the same size.
    separation : float, default=NaN
        ``2 P - 1`` with P the probability that an example moves further in the requested direction
        than an example of the opposite side, or of the neutral data: 0 for no change, 1 if all do.
    kept : float, default=NaN
        Fraction of the confident answers on neutral data that stay.
    """

    effect: Difference
    by_side: dict[str, Difference]
    loss: Difference
    kl: Difference
    size: float
    controls: tuple[float, ...]
    separation: float = float("nan")
    kept: float = float("nan")

    @property
    def control(self) -> tuple[float, float]:
        """Mean and standard deviation of the effects of random changes; NaN without any."""
        rises = torch.tensor(self.controls, dtype=torch.float64)
        spread = float(rises.std()) if len(rises) > 1 else float("nan")
        return float(rises.mean()), spread

    @property
    def beyond_control(self) -> float:
        """Effect minus the mean of random effects, in standard deviations of random effects."""
        mean, spread = self.control
        return (self.effect.value - mean) / spread if spread > 0 else float("nan")

    @property
    def no_effect(self) -> str:
        """Reason why the effect may be chance; empty if it is significant or has no controls."""
        if not self.controls or self.beyond_control >= CLEAR:
            return ""
        mean, spread = self.control
        if math.isnan(self.beyond_control) and self.effect.value > mean:
            return ""  # controls that all do the same
        return (
            f"its effect of {self.effect.value:+.3g} nats is not significantly larger than that "
            f"of random changes of the same size ({mean:+.3g} ± {spread:.2g})"
        )

    @property
    def too_large(self) -> str:
        """Reason why the change is too large to accept; empty if it is not too large."""
        reasons: list[str] = []
        if self.size > LARGEST_SIZE:
            reasons.append(f"it moves states by {self.size:.3g} of their standard deviations")
        worst = max(self.loss.value, self.kl.value)
        if worst > LARGEST_DAMAGE:
            reasons.append(f"it costs {worst:.3g} nats on neutral data")
        limits = f"limits: {LARGEST_SIZE:g} standard deviations, {LARGEST_DAMAGE:g} nats"
        return f"{' and '.join(reasons)} ({limits})" if reasons else ""

    def json(self) -> dict[str, Any]:
        """Return the judgement as JSON values for reports."""
        mean, spread = self.control
        control = {"mean": mean, "sd": spread, "n": len(self.controls)}
        sides = {name: asdict(d) for name, d in self.by_side.items()}
        return {
            "effect": asdict(self.effect),
            "by_side": sides,
            "loss": asdict(self.loss),
            "kl": asdict(self.kl),
            "size": self.size,
            "separation": self.separation,
            "kept": self.kept,
            "control": control | {"effects": list(self.controls)},
            "beyond_control": self.beyond_control,
            "too_large": self.too_large,
            "no_effect": self.no_effect,
        }


def judge(
    model: Model,
    act: Act,
    target: Sequence[JudgedSide],
    neutral: Inputs,
    *,
    controls: Sequence[Act] = (),
    sites: Sequence[str] = (),
    progress: bool = True,
) -> Judgement:
    """Measure what a change of a model does to its target and to all other answers.

    Parameters
    ----------
    model : Model
        Unchanged.
    act : callable
        Opens the change: ``lambda: editing(...)`` wrapped so that it gives the module, or a
        folded copy.
    target : sequence of JudgedSide
        Data of the target.
    neutral : Inputs
        Data that the change should leave alone.
    controls : sequence of callable, optional
        Random changes of the same size.
    sites : sequence of str, optional
        Where the size of the change is measured.
    progress : bool, default=True

    Raises
    ------
    InputError
        If a side or the neutral data have no example, or no answer with a known truth.
    """
    if not target or any(not len(side.inputs) for side in target) or not len(neutral):
        raise InputError(
            "judge: expected at least one example on each side of the target and in the neutral "
            "data, got at least one empty set. Give examples for all three."
        )
    total = sum(len(side.inputs) for side in target) * (2 + len(controls)) + 2 * len(neutral)
    with Bar("judge", total, shown=progress) as bar:
        trial = _ModelTrial(model, live_stream(model, neutral, logits_asked=True).logits_key, bar)
        plain = {side.name: trial.log_p(_unchanged(model), side.inputs) for side in target}
        rises = trial.rises(act, target, plain)
        by_side = _differences(target, rises)
        damage = trial.damage(act, neutral)
        effects = tuple(
            _together(target, _differences(target, trial.rises(control, target, plain))).value
            for control in controls
        )
    moved = change_size(model, act, neutral, sites) if sites else float("nan")
    return Judgement(
        _together(target, by_side),
        by_side,
        *damage.means(neutral),
        moved,
        effects,
        _separation(target, rises, damage),
        damage.kept,
    )


def measure_damage(model: Model, act: Act, neutral: Inputs) -> "Damage":
    """Return what a change does to the answers on neutral data."""
    logits = live_stream(model, neutral, logits_asked=True).logits_key
    with Bar("judge", 2 * len(neutral), shown=False) as bar:
        return _ModelTrial(model, logits, bar).damage(act, neutral)


STRENGTHS = (8.0, 5.6, 4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.09)


def largest_strength(
    model: Model, act_of: Callable[[float], Act], neutral: Inputs, sites: Sequence[str]
) -> float:
    """Return the largest strength from a fixed list, 8 to 0.09, at which an edit is not too large.

    Found by bisection, which assumes that the change grows with the strength. If every strength is
    too large, the smallest is returned.

    Parameters
    ----------
    model : Model
    act_of : callable
        Returns the act of a strength.
    neutral : Inputs
    sites : sequence of str
    """
    none, low, high = Difference(0.0, 0.0, 0), 0, len(STRENGTHS) - 1
    while low < high:
        middle = (low + high) // 2
        act = act_of(STRENGTHS[middle])
        size = change_size(model, act, neutral, sites)
        small = Judgement(none, {}, none, none, size, ())
        if not small.too_large:
            damage = measure_damage(model, act, neutral).means(neutral)
            small = Judgement(none, {}, *damage, size, ())
        low, high = (middle + 1, high) if small.too_large else (low, middle)
    return STRENGTHS[low]


def _unchanged(model: Model) -> Act:
    return lambda: nullcontext(model.module)


@dataclass(frozen=True)
class _ModelTrial:
    """Runs a model unchanged and changed."""

    model: Model
    logits: str | None
    bar: Bar

    def log_p(self, act: Act, inputs: Inputs) -> Tensor:
        """Return the mean log-probability of each example's true answers."""
        parts: list[Tensor] = []
        with act() as module:
            for batch in inputs.batches(0, len(inputs)):
                answered = answers(self.model, module, batch, self.logits)
                parts.append(answered.per_example(answered.log_p_of_truth, len(batch)))
                self.bar.advance(len(batch))
        return torch.cat(parts)

    def rises(
        self, act: Act, target: Sequence[JudgedSide], plain: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the rise in log-probability of each example of each side."""
        return {side.name: self.log_p(act, side.inputs) - plain[side.name] for side in target}

    def damage(self, act: Act, inputs: Inputs) -> "Damage":
        """Return the rise of cross-entropy, the divergence and the answers that stay."""
        losses: list[Tensor] = []
        divergences: list[Tensor] = []
        stay: list[Tensor] = []
        for batch in inputs.batches(0, len(inputs)):
            old, n = answers(self.model, self.model.module, batch, self.logits), len(batch)
            with act() as module:  # for one batch: an edit changes the model that runs above
                new = answers(self.model, module, batch, self.logits)
            loss, kl = costs(old, new, n)
            losses.append(loss)
            divergences.append(kl)
            stay.append(stays(old.log_p, new.log_p))
            self.bar.advance(2 * n)
        return Damage(torch.cat(losses), torch.cat(divergences), torch.cat(stay))


@dataclass(frozen=True, eq=False)
class Damage:
    """Rise of the cross-entropy and divergence of each example, and the confident answers.

    Parameters
    ----------
    loss, kl : Float[Tensor, "example"]
        In nats per answer.
    stay : Bool[Tensor, "answer"]
        Whether a confident answer is still the most likely one.
    """

    loss: Tensor
    kl: Tensor
    stay: Tensor

    @property
    def kept(self) -> float:
        """Fraction of the confident answers that stay; NaN without one."""
        return float(self.stay.double().mean())

    def means(self, inputs: Inputs) -> tuple[Difference, Difference]:
        """Return the mean rise of the cross-entropy and the mean divergence."""
        keys = inputs.group_keys
        return difference(self.loss, keys), difference(self.kl, keys)


CONFIDENT = 0.3
"""Least probability of an answer that a change should not replace."""


def stays(old: Tensor, new: Tensor) -> Tensor:
    """Return whether each confident answer is still the most likely, from log-probabilities.

    Parameters
    ----------
    old, new : Float[Tensor, "answer classes"]
    """
    best, answer = old.max(1)
    return (new.argmax(1) == answer)[best >= math.log(CONFIDENT)]


def costs(old: Answers, new: Answers, n: int) -> tuple[Tensor, Tensor]:
    """Return the rise of cross-entropy and the divergence of each of ``n`` examples, in nats."""
    gap = old.log_p.exp() * (old.log_p - new.log_p)  # 0 * inf where p is 0
    every = replace(old, truth=torch.zeros_like(old.truth))
    kl = every.per_example(gap.nan_to_num(0.0).sum(1), n)
    return old.per_example(old.log_p_of_truth - new.log_p_of_truth, n), kl


def difference(rises: Tensor, keys: Sequence[bytes]) -> Difference:
    """Return the mean over examples with an answer, and its standard error over their groups.

    Parameters
    ----------
    rises : Float[Tensor, "example"]
        NaN for an example without an answer.
    keys : sequence of bytes
        The group of each example.
    """
    is_known = ~rises.isnan()
    n = int(is_known.sum())
    if not n:
        raise InputError(
            "judge: expected examples whose correct answer is known (labels, or texts of at "
            "least two tokens), got none. Give data with labels."
        )
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    group = torch.tensor([numbers[key] for key in keys])[is_known]
    se = group_error(rises[is_known] / n, group, len(group.unique()))
    return Difference(float(rises[is_known].mean()), se, n)


def _together(target: Sequence[JudgedSide], by_side: Mapping[str, Difference]) -> Difference:
    """Return the rise of the wanted answers minus the rise of the unwanted answers."""
    parts = [(side.sign, by_side[side.name]) for side in target]
    se = math.sqrt(sum(d.se**2 for _, d in parts))
    return Difference(sum(sign * d.value for sign, d in parts), se, sum(d.n for _, d in parts))


def _differences(
    target: Sequence[JudgedSide], rises: Mapping[str, Tensor]
) -> dict[str, Difference]:
    return {s.name: difference(rises[s.name], s.inputs.group_keys) for s in target}


def _separation(target: Sequence[JudgedSide], rises: Mapping[str, Tensor], damage: Damage) -> float:
    """Return how surely an example of the target moves further than one of the others."""
    ups = [rises[side.name] for side in target if side.sign > 0]
    downs = [rises[side.name] for side in target if side.sign < 0]
    others = [-damage.loss]
    high, low = torch.cat(ups or others), torch.cat(downs or others)
    high, low = high[~high.isnan()], low[~low.isnan()]
    return float((high[:, None] - low).sign().double().mean())


MOST_ROWS = 2048


def change_size(
    model: Model,
    act: Callable[[], AbstractContextManager[nn.Module]],
    inputs: Inputs,
    sites: Sequence[str],
) -> float:
    """Return the size of a change at the site where it is largest, from about 2,048 rows.

    Whole batches are read until there are 2,048 rows, or no more data.

    Parameters
    ----------
    model : Model
        Unchanged.
    act : callable
        Opens the change and gives the module to run.
    inputs : Inputs
    sites : sequence of str
        Patterns of sites.
    """
    plain = live_stream(model, inputs, sites, _reducer(model), logits=False)
    with act() as module:
        other, same = replace(model, module=module), str(plain.found_sinks)
        changed = live_stream(other, inputs, sites, _reducer(model), logits=False, sinks=same)
        _ = changed.schema
    old: dict[str, list[Tensor]] = {s.key: [] for s in plain.schema}
    new: dict[str, list[Tensor]] = {s.key: [] for s in plain.schema}
    n_rows = 0
    for batch in plain.batches(0, len(inputs)):
        for key in old:
            old[key].append(batch.rows[key].cpu())
        n_rows += max(len(rows) for rows in batch.rows.values())
        if n_rows >= MOST_ROWS:
            break
    with act():
        for batch, _ in zip(
            changed.batches(0, len(inputs)), next(iter(old.values())), strict=False
        ):
            for key in new:
                new[key].append(batch.rows[key].cpu())
    return max(spreads(torch.cat(old[key]), torch.cat(new[key])) for key in old)


def _reducer(model: Model) -> str:
    return "tokens" if model.task in ("causal", "seq2seq") else "auto"
