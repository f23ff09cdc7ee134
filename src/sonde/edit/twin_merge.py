"""One shared model with a thin branch for each expert, mixed for each input by a router.

For models that must share their weights and still be told apart; if one set of weights is wanted,
use ``Ties`` or ``TaskArithmetic``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError, ShapeError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.edit._twin_branches import Branch, Route, branch_of
from sonde.edit.merge_arithmetic import TaskArithmetic
from sonde.stats import ClassMoments, ClassMomentsState
from sonde.tap import Tap, live_stream
from sonde.weights import module_of, with_tensors
from sonde.weights.merging import MergeRule
from sonde.weights.tuning import as_model


@final
@dataclass(frozen=True, eq=False)
class LinearRouter:
    """Which expert an input is for, read off the shared model's state at a site.

    ``softmax(weight x + bias)``, e.g. the linear discriminant of the experts' own data.

    Parameters
    ----------
    site : str
        Where the state is read, with all branches closed.
    weight : Float[Tensor, "expert dim"]
    bias : Float[Tensor, "expert"]
    reducer : str, default="mean"
        How the state of an input becomes one row.
    """

    site: str
    weight: Float[Tensor, "expert dim"]
    bias: Float[Tensor, "expert"]
    reducer: str = "mean"

    @classmethod
    def of(
        cls, classes: ClassMomentsState, site: str, reducer: str = "mean", ridge: float = 1e-3
    ) -> "LinearRouter":
        """Return the linear discriminant of rows whose labels are the experts' numbers.

        Parameters
        ----------
        classes : ClassMomentsState
            Fitted with ``scatter="pooled"`` at ``site`` of the shared model.
        site, reducer : str
        ridge : float, default=1e-3
            Share of the mean variance that is added to the shared covariance.
        """
        covariance = classes.pooled.double() / classes.weight.sum()
        dim = covariance.shape[0]
        covariance = covariance + ridge * covariance.trace() / dim * torch.eye(dim).to(covariance)
        middle = classes.grand_mean.double()
        means = classes.mean.double() - middle
        weight = torch.linalg.solve(covariance, means.T).T
        prior = (classes.weight / classes.weight.sum()).double().log()
        bias = prior - 0.5 * (weight * means).sum(1) - weight @ middle
        return cls(site, weight.float(), bias.float(), reducer)

    @classmethod
    def reading(
        cls, site: str, data: Sequence[Inputs], reducer: str = "mean", ridge: float = 1e-3
    ) -> Callable[[nn.Module], "LinearRouter"]:
        """Return a function that fits the router on a model's states of each expert's own inputs.

        Parameters
        ----------
        site : str
        data : sequence of Inputs
            For each expert, in their order.
        reducer : str
        ridge : float, default=1e-3
        """

        def fit(model: nn.Module) -> "LinearRouter":
            statistic, state = ClassMoments("pooled"), None
            for expert, inputs in enumerate(data):
                stream = live_stream(as_model(model), inputs, [site], reducer, logits=False)
                key = stream.schema[0].key
                for batch in stream.batches(0, len(inputs)):
                    rows = batch.rows[key].cpu()
                    seen = statistic.observe(rows, torch.full((len(rows),), expert))
                    state = seen if state is None else statistic.merge(state, seen)
            if state is None or len(state.labels) != len(data):
                raise InputError("LinearRouter.reading: expected inputs of each expert, got none.")
            return cls.of(state, site, reducer, ridge)

        return fit

    def __call__(self, x: Float[Tensor, "example dim"]) -> Float[Tensor, "example expert"]:
        """Return the weight of each expert."""
        logits = x.float() @ self.weight.T.to(x.device) + self.bias.to(x.device)
        return logits.softmax(1)


class TwinModel(nn.Module):
    """A shared model with branches that a router opens; made by ``TwinMerge``.

    Attributes
    ----------
    model : nn.Module
        The shared model. Inside ``routed`` it is called and generates with the branches open.
    """

    def __init__(
        self, model: nn.Module, branches: Sequence[Branch], route: Route, router: Any
    ) -> None:
        super().__init__()
        self.model, self.branches = model, nn.ModuleList(branches)
        self.route, self.router = route, router

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Route the inputs, then run the shared model with the branches that they need."""
        with self.routed(self.weights(*args, **kwargs)):
            return self.model(*args, **kwargs)

    def weights(self, *args: Any, **kwargs: Any) -> Float[Tensor, "example expert"]:
        """Return the weight of each expert for each example."""
        tap = Tap(self.model, self.router.site, self.router.reducer, stop=True, here=True)
        with self.route.opened(None), torch.no_grad(), tap:
            tap.run(*args, **kwargs)
            return self.router(next(iter(tap.rows.values())))

    @contextmanager
    def routed(self, weights: Float[Tensor, "example expert"]) -> Iterator[None]:
        """Keep the branches open with given weights inside a ``with`` block.

        They are open for the thread or task that opens the block, and for threads without a block
        of their own while no other has one.
        """
        with self.route.opened(weights):
            yield


@final
@dataclass(frozen=True)
class TwinMerge:
    """Merge experts into shared weights and a thin branch for what each knows alone.

    The shared weights are a merge of all experts. Of an expert's difference from them, only the
    largest singular directions are kept. Each input runs through the shared layers with the
    branches added, weighted by a router, so that one batch mixes inputs of all experts.

    Range        a model with outputs of the same shape as the base's.
    Cost         a singular value decomposition for each matrix and expert once; then a forward of
                 the shared model to route, and one with ``experts x rank`` more columns.
    Assumes      models trained from one base; layers whose outputs are linear in their parameters.
    Differs      from the paper: the router is a linear discriminant of a state of the shared model;
                 branches are only low-rank: entries are not pruned by size. The shared model has
                 the base's running statistics, each branch its expert's.

    Parameters
    ----------
    rank : float, default=0.1
        Share of each matrix's full rank that a branch keeps, in (0, 1]; 1 is the whole expert.
    shared : MergeRule, default=TaskArithmetic()

    Examples
    --------
    >>> base, expert = nn.Linear(3, 2), nn.Linear(3, 2)
    >>> router = LinearRouter("", torch.zeros(1, 2), torch.zeros(1))
    >>> twin = TwinMerge(rank=1.0).join(base, [expert], lambda shared: router)
    >>> x = torch.randn(4, 3)
    >>> bool(torch.allclose(twin(x), expert(x), atol=1e-5))
    True

    References
    ----------
    lu2024twin
    """

    rank: float = 0.1
    shared: MergeRule = field(default_factory=TaskArithmetic)

    paper: ClassVar[str] = "lu2024twin"

    def __post_init__(self) -> None:
        check_ranges(self, rank="(0, 1]")

    def join(
        self,
        base: Model | nn.Module,
        experts: Sequence[Model | nn.Module],
        router: Callable[[nn.Module], LinearRouter],
    ) -> TwinModel:
        """Return the merged model; the given models stay as they are.

        Parameters
        ----------
        base : Model or nn.Module
        experts : sequence of Model or nn.Module
            Trained from the base.
        router : callable
            Takes the shared model and returns its router, such as ``LinearRouter.reading(site,
            data)``. A router fitted on the base would read other states than the shared model's.

        Raises
        ------
        InputError
            If there are no experts, a weight is not finite, or the router is for another number of
            experts.
        ShapeError
            If an expert has other tensors.
        """
        if not experts:
            raise InputError("TwinMerge.join: expected at least one expert, got none.")
        root = module_of(base)
        states: list[dict[str, Tensor]] = [
            dict(module_of(x).named_parameters(remove_duplicate=False)) for x in experts
        ]
        own: dict[str, Tensor] = dict(root.named_parameters(remove_duplicate=False))
        kept = [_buffers(module_of(x)) for x in (base, *experts)]
        for state, buffers in zip(states, kept[1:], strict=True):
            _check_alike({**own, **kept[0]}, {**state, **buffers})
        self.shared.check({name: tuple(x.shape) for name, x in own.items()})
        with torch.no_grad():
            merged = {
                name: self.shared.merge(name, x.detach(), [s[name].detach() for s in states])
                for name, x in own.items()
            }
        model = with_tensors(root, merged)
        route, branches = Route(), []
        for name, part in model.named_modules():
            mine = {n: f"{name}.{n}" if name else n for n in part._parameters}
            mine = {n: full for n, full in mine.items() if full in own}
            apart = {
                n: torch.stack([s[full].detach() - merged[full] for s in states])
                for n, full in mine.items()
            }
            moved = {
                n: torch.stack([one[full] for one in kept[1:]])
                for n in part._buffers
                if (full := f"{name}.{n}" if name else n) in kept[0]
                and any(not torch.equal(one[full], kept[0][full]) for one in kept[1:])
            }
            if moved or any(bool(x.any()) for x in apart.values()):
                branch = branch_of(name, part, apart, moved, self._rank_of, route)
                part.register_forward_hook(branch)
                branches.append(branch)
        made = router(model)
        if len(made.bias) != len(experts):
            raise InputError(
                f"TwinMerge.join: expected a router for {len(experts)} experts, got one for "
                f"{len(made.bias)}."
            )
        return TwinModel(model, branches, route, made)

    def _rank_of(self, n_rows: int, n_columns: int) -> int:
        return max(1, math.ceil(self.rank * min(n_rows, n_columns)))


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point buffers of a module, such as running statistics."""
    every = module.named_buffers(remove_duplicate=False)
    return {name: x.detach().clone() for name, x in every if x.is_floating_point()}


def _check_alike(own: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    apart = sorted(own.keys() ^ other.keys())
    shapes = [n for n in own if n in other and own[n].shape != other[n].shape]
    if apart or shapes:
        name = (apart or shapes)[0]
        raise ShapeError(
            f"TwinMerge.join: an expert's {name} is not like the base's. Give models that were "
            "trained from one base, heads left out."
        )
