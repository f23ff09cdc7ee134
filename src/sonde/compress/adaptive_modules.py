"""Replace modules by several small learners; each token runs only as many as it needs.

For MLPs and projections of trained transformers whose tokens differ in difficulty. The learners are
fitted to the model's own states and answers; no labels are needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.compress._distilled import answers_of, batches_of, copied
from sonde.core.errors import SiteError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.engine.steps import Descent
from sonde.stats import CrossMoments, Moments
from sonde.stats.divergence import kl_divergence

MOST_ROWS = 16_384


@final
@dataclass(frozen=True, eq=False)
class AdaptiveModel:
    """A model in which a gate chooses the number of learners that each token runs.

    Parameters
    ----------
    module : nn.Module
        A copy of the model, in eval mode.
    losses : tuple of float
        Loss of each step of the last stage.
    """

    module: nn.Module
    losses: tuple[float, ...]


@final
@dataclass(frozen=True)
class AdaptiveModules:
    """Split modules into learners, and train gates that choose their number for each token.

    The output of ``k`` learners is the mean output plus ``h_1(x) + .. + h_k(x)``. Each learner
    starts as a slice of the best linear map of its rank, and has a small hidden layer of its own
    that starts at zero. First the learners are trained on the module's own inputs, for every ``k``
    alike. Then the gates learn the ``k`` beyond which one more learner lowers the error by less
    than the share ``patience``. Last, learners and gates are trained on the model's answers, with a
    penalty if the mean share of learners differs from ``budget``.

    Range        from 0 to ``learners`` learners for each token.
    Cost         the rows of each module in memory (at most 16,384), then a forward and a backward
                 for each step.
    Assumes      modules that map each token on its own, with one input and one output.
    Differs      from the paper: learners have linear parts; the gate's labels are relative gains.

    Parameters
    ----------
    modules : sequence of str
        Names of the modules that are replaced.
    learners : int, default=4
        Number of learners of each module.
    budget : float, default=0.5
        Mean share of the learners that run, in [0, 1].
    patience : float, default=0.1
        Relative fall of the error, in (0, 1), below which a gate learns to stop adding learners.
    steps : int, default=200
        Number of training steps of each stage.
    rate : float, default=1e-3
        Learning rate of Adam.
    weights : (float, float, float), default=(0.1, 0.05, 0.05)
        Weights of the gates' losses: the distance from the budget, the gates' entropy for each
        token, and (subtracted) the entropy of their mean.
    seed : int, default=0
        Seed of the initial weights and of the order of batches.

    References
    ----------
    wojcik2023acm
    """

    modules: Sequence[str]
    learners: int = 4
    budget: float = 0.5
    patience: float = 0.1
    steps: int = 200
    rate: float = 1e-3
    weights: tuple[float, float, float] = (0.1, 0.05, 0.05)
    seed: int = 0
    paper: ClassVar[str] = "wojcik2023acm"

    def __post_init__(self) -> None:
        check_ranges(self, learners=">= 1", budget="[0, 1]", steps=">= 0")

    def fit(self, model: Model, inputs: Inputs) -> AdaptiveModel:
        """Return a copy of a model with learners and trained gates in place of modules."""
        net, draw = copied(model.module).eval(), torch.Generator().manual_seed(self.seed)
        modules = dict(model.module.named_modules())
        missing = [name for name in self.modules if name not in modules]
        if missing or not self.modules:
            raise SiteError(
                f"AdaptiveModules: expected names of modules, got {missing or 'none'} in "
                f"{type(model.module).__name__}."
            )
        rows = _inputs_and_outputs(model.module, inputs, self.modules)
        gates: list[GatedLearners] = []
        for number, name in enumerate(self.modules):
            x, y = rows[name]
            learners = gated_learners(x, y, self.learners, self.seed + number)
            self._alone(learners, x, y, draw)
            owner, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(owner), leaf, learners)
            gates.append(learners)
        losses = self._together(model.module, net, gates, inputs, draw)
        return AdaptiveModel(net.eval(), losses)

    def _alone(self, made: "GatedLearners", x: Tensor, y: Tensor, draw: torch.Generator) -> None:
        """Train the learners of one module on its recorded inputs, then its gate."""
        scale = y.var(0, correction=0).sum().clamp(min=1e-12)

        def part() -> Tensor:
            return torch.randint(len(x), (min(256, len(x)),), generator=draw)

        def error(at: Tensor) -> Tensor:
            return (made.partial(x[at]) - y[at, None]).square().sum(2)  # (row, number of learners)

        learners = [p for name, p in made.named_parameters() if not name.startswith("gate")]
        Descent("AdaptiveModules", learners, self.rate).run(
            lambda at: error(at).mean() / scale, (part() for _ in range(self.steps))
        )
        with torch.no_grad():
            wanted = enough(error(torch.arange(len(x))), self.patience)
        Descent("AdaptiveModules", made.gate.parameters(), 10 * self.rate).run(
            lambda at: cross_entropy(made.gate(x[at]), wanted[at]),
            (part() for _ in range(self.steps)),
        )

    def _together(
        self,
        teacher: nn.Module,
        net: nn.Module,
        gates: Sequence["GatedLearners"],
        inputs: Inputs,
        draw: torch.Generator,
    ) -> tuple[float, ...]:
        """Train all learners and gates together on the model's answers and the budget."""
        near, sharp, spread = self.weights
        for gate in gates:
            gate.train()
            gate.draw = draw

        def loss(batch: Any) -> Tensor:
            wanted = answers_of(teacher, *batch).log_softmax(1).detach()
            log_q = answers_of(net, *batch, training=True).log_softmax(1)
            task = kl_divergence(wanted, log_q).mean()
            probs = [gate.probs for gate in gates if gate.probs is not None]
            cost = torch.stack([gate.cost for gate in gates]).mean()
            each = torch.stack([_entropy(p).mean() for p in probs]).mean()
            mean = torch.stack([_entropy(p.mean(0)) for p in probs]).mean()
            return task + near * (cost - self.budget).abs() + sharp * each - spread * mean

        parameters = [p for gate in gates for p in gate.parameters()]
        losses = Descent("AdaptiveModules", parameters, self.rate).run(
            loss, batches_of(teacher, inputs, self.steps, draw)
        )
        for gate in gates:  # a module that holds a graph can be neither copied nor stored
            gate.probs, gate.cost, gate.draw = None, gate.cost.detach(), None
        return losses


def enough(error: Float[Tensor, "row number"], patience: float) -> Int[Tensor, "row"]:
    """Return the smallest number of learners after which another gains less than a fraction.

    Parameters
    ----------
    error : Float[Tensor, "row number"]
        Squared error with 0, 1, .. learners.
    patience : float
        Share of the error that one more learner must take away.
    """
    gains = error[:, 1:] < (1 - patience) * error[:, :-1]
    return gains.long().cumprod(1).sum(1)


class GatedLearners(nn.Module):
    """Learners whose outputs are summed, and a gate that chooses their number for each token.

    Parameters
    ----------
    mean_in, mean_out : Float[Tensor, "dim"]
    right : Float[Tensor, "learner rank dim"]
    left : Float[Tensor, "learner dim2 rank"]
    hidden : int
        Units of each learner's hidden layer.
    seed : int
    """

    mean_in: Tensor
    mean_out: Tensor

    def __init__(
        self, mean_in: Tensor, mean_out: Tensor, right: Tensor, left: Tensor, hidden: int, seed: int
    ) -> None:
        super().__init__()
        self.register_buffer("mean_in", mean_in)
        self.register_buffer("mean_out", mean_out)
        n, _, dim = right.shape
        self.right, self.left = nn.Parameter(right), nn.Parameter(left)
        draw = torch.Generator().manual_seed(seed)
        into = torch.randn(n, hidden, dim, generator=draw) / dim**0.5
        self.into = nn.Parameter(into.to(right))
        self.back = nn.Parameter(right.new_zeros(n, len(mean_out), hidden))
        self.gate = nn.Linear(dim, n + 1).to(right)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.draw: torch.Generator | None = None
        self.probs: Tensor | None = None
        self.cost: Tensor = right.new_zeros(())
        self.number: Tensor | None = None

    def learner(self, i: int, z: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim2"]:
        """Return the output of one learner for centred rows."""
        bent = (z @ self.into[i].T).relu()
        return z @ self.right[i].T @ self.left[i].T + bent @ self.back[i].T

    def partial(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row number dim2"]:
        """Return the sums of the first 0, 1, ... learners."""
        z = x - self.mean_in
        each = [self.learner(i, z) for i in range(len(self.right))]
        return torch.stack([self.mean_out.expand(len(x), -1), *each], 1).cumsum(1)

    def forward(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim2"]:
        """Return the sum of the learners that the gate selects, without computing the others."""
        rows = x.reshape(-1, x.shape[-1])
        logits = self.gate(rows)
        if self.training:
            self.probs = logits.softmax(1)
            noise = torch.rand(logits.shape, generator=self.draw).to(logits).clamp(1e-9, 1 - 1e-9)
            soft = (logits - (-noise.log()).log()).softmax(1)
            hard = torch.zeros_like(soft).scatter(1, soft.argmax(1, keepdim=True), 1.0)
            chosen = hard + soft - soft.detach()
            self.cost = (chosen @ torch.arange(logits.shape[1]).to(chosen)).mean() / len(self.right)
            runs = chosen.flip(1).cumsum(1).flip(1)[:, 1:]  # of each learner
            z = rows - self.mean_in
            each = [self.learner(i, z) * runs[:, i : i + 1] for i in range(len(self.right))]
            out = self.mean_out + torch.stack(each).sum(0)
        else:
            number = self.number = logits.argmax(1)
            out = self.mean_out.expand(len(rows), -1).clone()
            for i in range(len(self.right)):
                at = (number > i).nonzero()[:, 0]
                if len(at) == 0:
                    break
                out[at] += self.learner(i, rows[at] - self.mean_in)
        return out.reshape(*x.shape[:-1], out.shape[-1])


def gated_learners(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"], n: int, seed: int = 0
) -> GatedLearners:
    """Return learners that start as consecutive parts of a reduced-rank regression.

    The first ``k`` learners together are the reduced-rank regression of ``y`` on ``x`` of ``k / n``
    of the full rank. Directions are the eigenvectors of the fitted values' covariance, in order.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Inputs of the module.
    y : Float[Tensor, "row dim2"]
        Outputs of the module.
    n : int
        Number of learners.
    seed : int, default=0
        Seed of the initial weights.
    """
    own, pair = Moments().observe(x), CrossMoments().observe(x, y)
    spread = own.covariance
    floor = 1e-9 * spread.diagonal().mean()
    slope = torch.linalg.solve(spread + floor * torch.eye(len(spread)).to(spread), pair.covariance)
    fitted = slope.T @ spread @ slope
    vectors = torch.linalg.eigh(fitted).eigenvectors.flip(1)  # (dim2, rank), widest first
    full = min(len(own.mean), len(pair.mean_y))
    rank = -(-full // n)
    padded = torch.zeros(len(vectors), n * rank, dtype=vectors.dtype)
    padded[:, :full] = vectors[:, :full]
    left = padded.unflatten(1, (n, rank)).permute(1, 0, 2)
    right = left.mT @ slope.T
    tensors = (own.mean, pair.mean_y, right.contiguous(), left.contiguous())
    return GatedLearners(*(t.to(x.dtype) for t in tensors), hidden=max(full // n, 1), seed=seed)


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-12).log()).sum(-1)


@torch.no_grad()
def _inputs_and_outputs(
    module: nn.Module, inputs: Inputs, names: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the inputs and outputs of modules on the first rows of the data."""
    sides_of: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}

    def keep(name: str, args: Any, output: Any) -> None:
        x, y = args[0].detach(), output.detach()
        sides_of[name].append((x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])))

    handles = [
        module.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: keep(name, args, output)
        )
        for name in names
    ]
    try:
        for batch in batches_of(module, inputs, -(-len(inputs) // 64), None):
            answers_of(module, *batch)
            if sum(len(x) for x, _ in sides_of[names[0]]) >= MOST_ROWS:
                break
    finally:
        for handle in handles:
            handle.remove()
    sides = {name: zip(*pairs, strict=True) for name, pairs in sides_of.items()}
    cut = {name: [torch.cat(side)[:MOST_ROWS] for side in both] for name, both in sides.items()}
    return {name: (x, y) for name, (x, y) in cut.items()}
