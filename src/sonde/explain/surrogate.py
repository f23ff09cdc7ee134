"""A small decision tree that imitates a model with its most important inputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.chart import Chart, bars
from sonde.core.errors import InputError
from sonde.core.explainer import Explainer
from sonde.core.inputs import Model
from sonde.core.random_state import kept_random_state
from sonde.core.result import Result
from sonde.explain._held_groups import RowGroups
from sonde.explain.objective import Objective
from sonde.tap.hooks.session import Session

ROWS = 4096
"""Rows of one forward."""
RIDGE = 1e-3
"""Of the mean variance of the inputs, which are scaled to 1."""
Rows = Float[Tensor, "row dim"]
Answers = Float[Tensor, "row out"]


@final
@dataclass(frozen=True)
class Rule:
    """One path of the tree, from the root to a leaf.

    Parameters
    ----------
    bounds : dict of int to (float, float)
        Lower bound (exclusive) and upper bound (inclusive) of each input in the rule, by its index.
    answer : float
        The class, or the number, that the rule gives.
    coverage : float
        Share of the held-out rows that fall under the rule.
    precision : float
        Share of these rows where the model gives this class; for numbers, the root mean squared
        error. NaN if no row falls under the rule.
    """

    bounds: dict[int, tuple[float, float]]
    answer: float
    coverage: float
    precision: float

    def __str__(self) -> str:
        asked = [_asked(f"x[{i}]", low, high) for i, (low, high) in sorted(self.bounds.items())]
        return f"{' and '.join(asked) or 'always'} -> {self.answer:g}"


@final
@dataclass(frozen=True, kw_only=True)
class SurrogateResult(Result):
    """Agreement of the rules with the model on held-out rows.

    ``value`` is the share of equal classes, or the share of variance explained. ``features`` are
    the inputs kept, the most important first. Their ``importance`` is the mean squared change of
    the model's own answers after an input is shuffled.
    """

    title: ClassVar[str] = "Fraction of answers that change if an input is shuffled"
    features: Int[Tensor, "feature"]
    importance: Float[Tensor, "feature"]
    rules: tuple[Rule, ...]

    def chart(self) -> Chart:
        """Return the importance of the inputs."""
        pairs = zip(self.features.tolist(), self.importance.tolist(), strict=True)
        rows = [{"input": f"x[{i}]", "importance": v} for i, v in pairs]
        return bars(self.title, rows, "importance", "input")


@final
@dataclass(frozen=True)
class SurrogateRules(Explainer):
    """Rules of a decision tree that imitates a model of many inputs from its answers.

    A linear probe of the model's own answers picks ``4 k`` inputs, shuffling each of them picks
    ``k``, and a tree of these imitates the answers; its paths are the rules.

    Range        [0, 1] for classes, (-inf, 1] for numbers; higher = the rules answer as the model
                 does. ``null`` is the best constant answer.
    Cost         ``4 k + 1`` forwards of all rows; a tree.
    Assumes      rows of numbers; inputs that count alone, at least a little: one that counts only
                 together with others may be missed by the probe.

    Parameters
    ----------
    k : int or None, default=20
        Inputs of the tree; None for all.
    depth : int, default=5
        Largest depth of the tree.
    held_out : float, default=0.3
        Share of the rows that rules are judged on.
    seed : int, default=0
        Seed of the held-out inputs, the shuffles and the tree.

    Examples
    --------
    >>> x = torch.randn(400, 30, generator=torch.Generator().manual_seed(0))
    >>> found = SurrogateRules(k=2, depth=1).explain(lambda x: (x[:, 7:8] > 0) * 1.0 @ torch.tensor(
    ...     [[-1.0, 1.0]]) + torch.tensor([[0.5, -0.5]]), x)
    >>> found.value, int(found.features[0]), len(found.rules)
    (1.0, 7, 2)

    References
    ----------
    craven1996trepan
    """

    k: int | None = 20
    depth: int = 5
    held_out: float = 0.3
    seed: int = 0
    paper: ClassVar[str] = "craven1996trepan"

    def __post_init__(self) -> None:
        is_right = (self.k is None or self.k >= 1) and self.depth >= 1 and 0.0 < self.held_out < 1.0
        if not is_right:
            raise InputError(
                "SurrogateRules: expected k and depth of at least 1 and a held-out fraction in "
                "(0, 1),"
                f" got {self.k}, {self.depth} and {self.held_out}."
            )

    def explain(
        self,
        model: Model | nn.Module | Callable[[Rows], Tensor],
        inputs: Any,
        *,
        group: Int[Tensor, "row"] | None = None,
    ) -> SurrogateResult:
        """Return the rules, evaluated on held-out rows.

        Parameters
        ----------
        model : Model, nn.Module or callable
            Rows to logits (row, class) or numbers (row,), (row, 1).
        inputs : Float[Tensor, "row dim"]
        group : Int[Tensor, "row"], optional
            Group of each row. Groups are held out as a whole, and the error counts them; without,
            rows that copy each other are one group.

        Raises
        ------
        InputError
            If the inputs are no rows or too few, or the model always answers alike.
        """
        x = inputs
        if not isinstance(x, Tensor) or x.ndim != 2:
            kind = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"SurrogateRules: expected one tensor of rows (row, dim), got {kind}. For a "
                "model of several inputs, pass a function that takes the concatenated rows, "
                "splits them and calls the model."
            )
        if len(x) < 20:
            raise InputError(f"SurrogateRules: expected 20 rows or more, got {len(x)}.")
        generator = torch.Generator().manual_seed(self.seed)
        groups = RowGroups.of("SurrogateRules", group, x)
        order = torch.randperm(len(groups), generator=generator)
        parts = groups.parted("SurrogateRules", self.held_out, order)
        held, used = (x[part.to(x.device)] for part in parts)
        answer = _answering(model)
        answers, truth = answer(used), answer(held)
        is_class = answers.shape[1] > 1
        if bool((_read(answers) == _read(answers)[0]).all()):
            raise InputError(
                f"SurrogateRules: the model gives the same answer for all {len(used)} rows, "
                "so there is nothing to imitate. Give rows with different answers."
            )
        chosen, importance = self._chosen(answer, used, answers, generator)
        tree = self._tree(used[:, chosen], answers)
        rules = _rules(tree, chosen, held, _read(truth), is_class=is_class)
        given = torch.from_numpy(tree.predict(held[:, chosen].float().cpu().numpy())).double()
        usual = float(_read(answers).mode().values)
        judged = given, _read(truth), groups.at(parts[0])
        return self._result(rules, *judged, usual, chosen, importance, is_class)

    def _chosen(
        self, answer: Callable[[Rows], Answers], x: Rows, said: Answers, draw: torch.Generator
    ) -> tuple[Int[Tensor, "feature"], Float[Tensor, "feature"]]:
        """Return the most important inputs, and the change of the answers when each is shuffled."""
        n = x.shape[1]
        k = n if self.k is None else min(self.k, n)
        likely = _probed(x, said).argsort(descending=True, stable=True)[: min(4 * k, n)]
        moved = torch.zeros(len(likely), dtype=torch.float64)
        for row, i in enumerate(likely.tolist()):
            shuffled = x.clone()
            shuffled[:, i] = x[torch.randperm(len(x), generator=draw), i]
            moved[row] = (answer(shuffled) - said).square().sum(1).mean()
        best = moved.argsort(descending=True, stable=True)[:k]
        return likely[best], moved[best]

    def _tree(self, x: Rows, said: Answers) -> Any:
        with kept_random_state():
            from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

        kind = DecisionTreeClassifier if said.shape[1] > 1 else DecisionTreeRegressor
        tree = kind(max_depth=self.depth, random_state=self.seed)
        return tree.fit(x.float().cpu().numpy(), _read(said).numpy())

    def _result(
        self,
        rules: Sequence[Rule],
        given: Float[Tensor, "row"],
        truth: Float[Tensor, "row"],
        groups: RowGroups,
        usual: float,
        chosen: Tensor,
        importance: Tensor,
        is_class: bool,
    ) -> SurrogateResult:
        if is_class:
            right = (given == truth).double()
            value, se = float(right.mean()), groups.error(right)
            null = float((truth == usual).double().mean())
        else:
            left = (given - truth).square().sum()
            value, null, se = float(1.0 - left / (truth - truth.mean()).square().sum()), 0.0, None
        judged = SurrogateResult(
            value=value,
            se=se,
            null=null,
            n=len(groups),
            range=(0.0, 1.0) if is_class else (-float("inf"), 1.0),
            direction="higher",
            conventions={
                "method": repr(self),
                "fidelity": "share of equal classes" if is_class else "variance explained",
                "rows": "held out",
                "se": "over groups held out" if is_class else "not known",
            },
            features=chosen,
            importance=importance,
            rules=tuple(rules),
        )
        return groups.flagged(judged)


def _answering(model: Any) -> Callable[[Rows], Answers]:
    """Return the model as a function from rows to class probabilities, or to numbers."""
    module = model.module if isinstance(model, Model) else model

    def answer(x: Rows) -> Answers:
        logit_parts: list[Tensor] = []
        for part in x.split(ROWS):
            if isinstance(module, nn.Module):
                with Session(module) as session:
                    outputs = session.run((part,), {})
            else:
                with torch.no_grad():
                    outputs = module(part)
            logits = Objective()._logits(outputs).detach().double().cpu()
            logit_parts.append(logits[:, None] if logits.ndim == 1 else logits)
        every = torch.cat(logit_parts)
        return every.softmax(1) if every.shape[1] > 1 else every

    return answer


def _read(said: Answers) -> Float[Tensor, "row"]:
    """Return the class of each row, or the number for regression."""
    return said.argmax(1).double() if said.shape[1] > 1 else said[:, 0]


def _probed(x: Rows, said: Answers) -> Float[Tensor, "dim"]:
    """Return the absolute weight of each input in a ridge regression of the answers."""
    x = x.double().cpu()
    spread = x.std(0)
    z = torch.where(spread > 0, (x - x.mean(0)) / spread.clamp(min=1e-30), 0.0)
    gram = z.T @ z / len(z) + RIDGE * torch.eye(z.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, z.T @ (said - said.mean(0)) / len(z)).norm(dim=1)


def _rules(
    tree: Any, chosen: Tensor, held: Rows, truth: Float[Tensor, "row"], *, is_class: bool
) -> list[Rule]:
    """Return the paths of a tree, evaluated on held-out rows."""
    parts, features = tree.tree_, chosen.tolist()
    leaf = torch.from_numpy(tree.apply(held[:, chosen].float().cpu().numpy()))
    rules: list[Rule] = []

    def walk(node: int, bounds: dict[int, tuple[float, float]]) -> None:
        left, right = int(parts.children_left[node]), int(parts.children_right[node])
        if left == right:
            level = parts.value[node].ravel()
            predicted = float(tree.classes_[level.argmax()]) if is_class else float(level[0])
            reached = truth[leaf == node]
            right_share = (reached == predicted).double().mean() if is_class else None
            error = (
                (reached - predicted).square().mean().sqrt() if right_share is None else right_share
            )
            rules.append(Rule(bounds, predicted, len(reached) / len(truth), float(error)))
            return
        i, bar = features[int(parts.feature[node])], float(parts.threshold[node])
        low, high = bounds.get(i, (-np.inf, np.inf))
        walk(left, bounds | {i: (low, min(high, bar))})
        walk(right, bounds | {i: (max(low, bar), high)})

    walk(0, {})
    return rules


def _asked(name: str, low: float, high: float) -> str:
    if low == -np.inf:
        return f"{name} <= {high:.4g}"
    return f"{name} > {low:.4g}" if high == np.inf else f"{low:.4g} < {name} <= {high:.4g}"
