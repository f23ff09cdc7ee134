"""A shared model with a small branch for each expert, mixed per input by a router.

For models that must share their weights and still be told apart; if one set of weights is wanted,
use ``Ties`` or ``TaskArithmetic``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from sonde.core.errors import InputError, ShapeError, StateError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.edit.merge_arithmetic import TaskArithmetic
from sonde.stats import ClassMoments, ClassMomentsState
from sonde.tap import Tap, live_stream
from sonde.tap.hooks.held import Held
from sonde.weights import module_of, with_tensors
from sonde.weights._layer import layer_of
from sonde.weights.merging import MergeRule
from sonde.weights.tuning import as_model

LINEAR = 1e-3
"""Largest departure from linearity in the parameters, in parts of the largest change."""


class Route:
    """Weights of the experts for each example, or None while the branches are closed."""

    def __init__(self) -> None:
        self._held: Held[Float[Tensor, "example expert"]] = Held("TwinModel.routed")

    @property
    def weights(self) -> Float[Tensor, "example expert"] | None:
        """The weights that are active in the running thread or task."""
        return self._held.get()

    def opened(
        self, weights: Float[Tensor, "example expert"] | None
    ) -> AbstractContextManager[None]:
        """Open the branches with weights, or close them, inside a ``with`` block."""
        return self._held.held(weights)

    def for_rows(self, n: int, like: Tensor) -> Float[Tensor, "row expert"]:
        """Return each row's weights in a tensor's dtype; an example may have several rows.

        Raises
        ------
        ShapeError
            If the number of rows is no multiple of the number of examples.
        """
        weights = self.weights
        assert weights is not None  # closed branches ask for nothing
        if n % len(weights):
            raise ShapeError(
                f"TwinModel: expected rows of {len(weights)} examples, got {n} rows: this model "
                "mixes its examples. Route the examples one by one."
            )
        return weights.to(like).repeat_interleave(n // len(weights), 0)


class Branch(nn.Module, ABC):
    """A forward hook that adds the effect of the experts' parameters."""

    def __init__(self, name: str, route: Route) -> None:
        super().__init__()
        self.name, self.route = name, route

    def forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output plus the branches' outputs, or None while they are closed."""
        like = output if isinstance(output, Tensor) else None
        weights = self.route.weights
        if weights is None:
            return None
        if like is None or not args:
            raise StateError(
                f"TwinModel: {self.name} ({type(module).__name__}) does not take and return one "
                "tensor, so no branch can be added."
            )
        x = args[0]
        if len(x) == 1:  # one for all examples, as positions are
            x = x.expand(len(weights), *x.shape[1:])
        return output + self.added(module, x, self.route.for_rows(len(x), like))

    @abstractmethod
    def added(self, module: Any, x: Tensor, weights: Tensor) -> Tensor:
        """Return the output of the branches for an input."""


class _Thin(Branch):
    """Branch of a matrix: ``sum_e w_e (x right_e) left_e^T``, and the biases."""

    def __init__(self, name: str, route: Route, kind: str, left: Tensor, right: Tensor,
                 bias: Tensor | None) -> None:  # fmt: skip
        super().__init__(name, route)
        self.kind = kind
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.register_buffer("bias", bias)

    def added(self, module: Any, x: Tensor, weights: Tensor) -> Tensor:
        left: Any = self.left
        right: Any = self.right
        bias: Any = self.bias
        if self.kind == "rows":
            return torch.einsum("eb...r,edr,be->b...d", left[:, x], right, weights)
        if self.kind == "maps":
            total = None
            for i in range(len(left)):
                kernel = right[i].T.reshape(-1, *module.weight.shape[1:])
                thin = module._conv_forward(x, kernel, None)
                one = torch.einsum("br...,or,b->bo...", thin, left[i], weights[:, i])
                total = one if total is None else total + one
            assert total is not None  # there is at least one expert
        else:
            thin = torch.einsum("b...i,eir,be->be...r", x, right, weights)
            total = torch.einsum("be...r,eor->b...o", thin, left)
        if bias is None:
            return total
        mixed = weights @ bias
        at = 1 if self.kind == "maps" else total.ndim - 1
        return total + mixed.reshape([len(mixed) if i == 0 else -1 if i == at else 1
                                      for i in range(total.ndim)])  # fmt: skip


class _Whole(Branch):
    """Branch of another module, such as a norm: its output with each expert's parameters."""

    def __init__(
        self,
        name: str,
        route: Route,
        parts: Mapping[str, Tensor],
        moved: Mapping[str, Tensor],
    ) -> None:
        super().__init__(name, route)
        self.names, self.moved, self.checked = list(parts), list(moved), False
        for part, x in {**parts, **moved}.items():
            self.register_buffer(f"of_{part}", x)

    def added(self, module: Any, x: Tensor, weights: Tensor) -> Tensor:
        with self.route.opened(None):
            plain = module(x)
            total = torch.zeros_like(plain)
            for i in range(weights.shape[1]):
                change = self._given(module, x, i, 1.0) - plain
                if not self.checked:
                    start = self._given(module, x, i, 0.0) - plain
                    half = self._given(module, x, i, 0.5) - plain
                    self._check_linear(module, change - start, half - start)
                weight = weights[:, i]
                total = total + weight.reshape(-1, *[1] * (plain.ndim - 1)) * change
            self.checked = True
            return total

    def _given(self, module: nn.Module, x: Tensor, expert: int, share: float) -> Tensor:
        parameters = {
            name: module._parameters[name] + share * getattr(self, f"of_{name}")[expert]
            for name in self.names
        }
        parameters |= {name: getattr(self, f"of_{name}")[expert].clone() for name in self.moved}
        return functional_call(module, parameters, (x,))

    def _check_linear(self, module: nn.Module, change: Tensor, half: Tensor) -> None:
        apart = (change - 2 * half).abs().max()
        if apart > LINEAR * change.abs().max() + 1e-6:
            raise StateError(
                f"TwinModel: the output of {self.name} ({type(module).__name__}) is not linear in "
                "its parameters, so experts cannot be mixed there."
            )


def branch_of(
    name: str,
    module: nn.Module,
    apart: Mapping[str, Tensor],
    moved: Mapping[str, Tensor],
    rank_of: Callable[[int, int], int],
    route: Route,
) -> Branch:
    """Return the branch of a module, from the differences of each expert's parameters.

    Parameters
    ----------
    name : str
    module : nn.Module
    apart : mapping of str to Float[Tensor, "expert ..."]
    moved : mapping of str to Float[Tensor, "expert ..."]
        Buffers of each expert, if an expert's differs from the shared model's.
    rank_of : callable
        Takes the numbers of rows and columns of a matrix; returns the rank to keep.
    route : Route
    """
    layer = layer_of(name, module)
    if layer is None or moved or getattr(module, "groups", 1) != 1:
        return _Whole(name, route, apart, moved)
    matrices = apart["weight"].flatten(2)
    if layer.kind == "transposed":
        matrices = matrices.mT
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    rank = rank_of(*matrices.shape[1:])
    left = (u * s.unsqueeze(1))[:, :, :rank].to(matrices)
    right = vh[:, :rank].mT.to(matrices)
    return _Thin(name, route, layer.kind, left, right, apart.get("bias"))


@final
@dataclass(frozen=True, eq=False)
class LinearRouter:
    """Linear router that chooses an expert by the shared model's state at a site.

    ``softmax(weight x + bias)``, e.g. the linear discriminant of the experts' own data.

    Parameters
    ----------
    site : str
        Where the state is read, with all branches closed.
    weight : Float[Tensor, "expert dim"]
        Weight of the linear map.
    bias : Float[Tensor, "expert"]
        Bias of the linear map.
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
        """Return the linear discriminant of rows whose labels are the experts' indices.

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
        """Return a function that fits the router to a model, on each expert's own inputs.

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
                n_read = 0 if state is None else len(state.labels)
                raise InputError(
                    f"LinearRouter.reading: expected inputs of each of {len(data)} experts, got "
                    f"inputs of {n_read}."
                )
            return cls.of(state, site, reducer, ridge)

        return fit

    def __call__(self, x: Float[Tensor, "example dim"]) -> Float[Tensor, "example expert"]:
        """Return the weight of each expert."""
        logits = x.float() @ self.weight.T.to(x.device) + self.bias.to(x.device)
        return logits.softmax(1)


class TwinModel(nn.Module):
    """A shared model with branches that a router opens; made by ``TwinMerge``.

    Parameters
    ----------
    branches : Sequence[Branch]
        Branch of each expert.
    route : Route
        Weights of the experts for each example, which the branches read.
    router : object
        Router that chooses a branch.

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
        """Route the inputs, then run the shared model with the selected branches."""
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
        """Open the branches with given weights inside a ``with`` block.

        They are open for the thread or task that opens the block, and for threads without a block
        of their own while no other has one.
        """
        with self.route.opened(weights):
            yield


@final
@dataclass(frozen=True)
class TwinMerge:
    """Merge experts into shared weights, and a small branch for each expert's own part.

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
        Rule that merges the shared weights.

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
        """Return the merged model. The given models are not changed.

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
            full_names = {n: f"{name}.{n}" if name else n for n in part._parameters}
            full_names = {n: full for n, full in full_names.items() if full in own}
            apart = {
                n: torch.stack([s[full].detach() - merged[full] for s in states])
                for n, full in full_names.items()
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
        gate = router(model)
        if len(gate.bias) != len(experts):
            raise InputError(
                f"TwinMerge.join: expected a router for {len(experts)} experts, got a router for "
                f"{len(gate.bias)}."
            )
        return TwinModel(model, branches, route, gate)

    def _rank_of(self, n_rows: int, n_columns: int) -> int:
        return max(1, math.ceil(self.rank * min(n_rows, n_columns)))


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point buffers of a module, such as running statistics."""
    every = module.named_buffers(remove_duplicate=False)
    return {name: x.detach().clone() for name, x in every if x.is_floating_point()}


def _check_alike(own: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    apart = sorted(own.keys() ^ other.keys())
    shapes = [n for n in own if n in other and own[n].shape != other[n].shape]
    if not apart and not shapes:
        return
    name = (apart or shapes)[0]
    if apart:
        owner = "the base" if name in own else "an expert"
        reason = f"only {owner} has a tensor {name}"
    else:
        sizes = tuple(other[name].shape), tuple(own[name].shape)
        reason = f"an expert's {name} has shape {sizes[0]}, that of the base {sizes[1]}"
    raise ShapeError(
        f"TwinMerge.join: {reason}. Pass models that were trained from the same base, without "
        "their heads."
    )
