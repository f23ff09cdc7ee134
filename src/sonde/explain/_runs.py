"""Paired runs of a model on two inputs, and states that are moved between the runs."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Model
from sonde.core.site import ATTENTION_PORTS, Site
from sonde.explain.objective import Objective
from sonde.tap.attention.opening import watch_attention
from sonde.tap.hand.restart import RecordedForward, record_forward
from sonde.tap.hooks.cache import require_no_cache
from sonde.tap.hooks.call import CallArguments
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import arguments, find, find_input, leaves, replaced, with_input
from sonde.tap.hooks.session import Session, check_readable
from sonde.tap.model.sites import Pattern, resolve
from sonde.tap.streams.site_function import (
    INPUT,
    SiteFunction,
    arguments_of,
    require_no_inference_mode,
)


@runtime_checkable
class FixedGoal(Protocol):
    """A goal with fixed targets, which gives a number for each pair."""

    def tiled(self, times: int) -> "FixedGoal":
        """Return the goal of all examples, with the batch repeated ``times`` times."""
        ...

    def of(self, outputs: Any) -> Float[Tensor, "pair"]:
        """Return the goal's value for each pair."""
        ...

    def log_probs(self, outputs: Any) -> Float[Tensor, "answer class"]:
        """Return the log-probabilities at the positions that predict the answers."""
        ...


@runtime_checkable
class Goal(Protocol):
    """The number that distinguishes two runs: an ``Objective``, or ``AnswerMargin``."""

    @property
    def name(self) -> str:
        """Name of the goal in results."""
        ...

    def fixed(self, outputs: Any, tokens: Tensor | None, mask: Tensor | None) -> FixedGoal:
        """Return the goal with its targets taken from the unchanged outputs."""
        ...


Side = Literal["clean", "corrupt"]
Act = Callable[[Site, Tensor], Tensor | None]
States = dict[Site, Tensor]


class TwoRuns:
    """A clean and a corrupted run of one model, and the number that distinguishes them.

    The model runs in eval mode, its parameters frozen, and is left as it was. The targets of the
    objective are those of the clean run.

    Raises
    ------
    InputError
        If the two inputs differ in shape or padding, or come with a key-value cache.
    """

    def __init__(
        self, model: Model | nn.Module, clean: Any, corrupt: Any, objective: Goal | None
    ) -> None:
        self.module = model.module if isinstance(model, Model) else model
        check_readable(self.module)
        require_no_inference_mode()
        self.root = ModuleNames(self.module).modules[""]
        self.objective: Goal = objective or Objective()
        self._given = {
            side: _without_cache(self.root, *arguments_of(self.module, inputs))
            for side, inputs in (("clean", clean), ("corrupt", corrupt))
        }
        check_pair(*({**kw, **dict(enumerate(args))} for args, kw in self._given.values()))
        self.call = CallArguments(self.module, *self._given["clean"])
        self._fixed: FixedGoal | None = None
        self._recorded: dict[Side, RecordedForward] = {}

    def sites(self, patterns: Pattern | Sequence[Pattern]) -> list[Site]:
        """Return the sites that match the patterns."""
        return resolve(self.module, patterns)

    def number(self, side: Side, outputs: Any, times: int = 1) -> Float[Tensor, "pair"]:
        """Return the objective of a run from its outputs; its batch is repeated ``times`` times."""
        if self._fixed is None:
            if side != "clean" or times > 1:
                self.states("clean", [])
            else:
                mask = self.call.mask
                mask = None if mask is None or bool(mask.all()) else mask
                self._fixed = self.objective.fixed(outputs, self.call.fed, mask)
        assert self._fixed is not None  # made by the clean run at the latest
        return self._fixed.tiled(times).of(outputs)

    def states(self, side: Side, sites: Sequence[Site]) -> tuple[Float[Tensor, "pair"], States]:
        """Return the objective of one run, and its states."""
        seen: States = {}

        def keep(site: Site, leaf: Tensor) -> None:
            seen[site] = leaf.detach().clone()

        outputs = self.acting(side, sites, keep)
        self._check_seen(sites, seen)
        return self.number(side, outputs).detach(), seen

    @torch.enable_grad()
    def gradients(
        self, side: Side, sites: Sequence[Site], act: Act | None = None, at: Sequence[Site] = ()
    ) -> tuple[Float[Tensor, "pair"], States, States]:
        """Return the objective of one run, its states at sites and its gradient there.

        ``act`` changes states at the sites ``at`` meanwhile. Where the objective does not depend on
        a site its gradient is 0.
        """
        seen: States = {}
        moves: States = {}

        def look(site: Site, leaf: Tensor) -> Tensor | None:
            new = act(site, leaf) if act is not None and site in at else None
            if site not in wanted:
                return new
            seen[site] = (leaf if new is None else new).detach()
            moves[site] = torch.zeros_like(seen[site]).requires_grad_(True)
            return (leaf if new is None else new) + moves[site]

        wanted = set(sites)
        outputs = self.acting(side, list(dict.fromkeys([*at, *sites])), look, with_grad=True)
        self._check_seen(sites, seen)
        numbers = self.number(side, outputs)
        points = [moves[site] for site in sites]
        slopes: Sequence[Tensor | None] = [None] * len(sites)
        if numbers.requires_grad:
            slopes = torch.autograd.grad(numbers.sum(), points, allow_unused=True)
        zipped = zip(sites, slopes, points, strict=True)
        gradients = {s: torch.zeros_like(p) if g is None else g for s, g, p in zipped}
        return numbers.detach(), seen, gradients

    def patched(self, side: Side, site: Site, values: Tensor) -> Float[Tensor, "time pair"]:
        """Return the objective of one run with replaced states at a site.

        Parameters
        ----------
        side : {"clean", "corrupt"}
        site : Site
        values : Tensor
            Whole batches of states, one after another.
        """
        with torch.no_grad():
            outputs = self.going_on(side, site, values)
        times = len(values) // max(self.n, 1)
        return self.number(side, outputs, times).reshape(times, -1)

    def going_on(self, side: Side, site: Site, values: Tensor) -> Any:
        """Return the outputs of one run, differentiable in the states that replace a site's."""
        run = self.recorded(side)
        with Session(self.root, with_grad=True):
            return run.from_site(site, values)

    def recorded(self, side: Side) -> RecordedForward:
        """Return the recording of one run, which can be continued from any site."""
        if side not in self._recorded:
            args, kwargs = self._given[side]
            with Session(self.root):
                self._recorded[side] = record_forward(self.module, *args, **kwargs)
            self.number(side, self._recorded[side].output)
        return self._recorded[side]

    def entry(self) -> Site | None:
        """Return the site of the token embeddings, or None if the model reads numbers."""
        site = SiteFunction(self.module, self.inputs("clean")).site
        return None if site == INPUT else self.sites(site)[0]

    def inputs(self, side: Side) -> dict[str, Any]:
        """Return the model's inputs by name."""
        return arguments(self.root, *self._given[side])

    @property
    def n(self) -> int:
        """Number of examples in a run."""
        return next((len(x) for x in leaves(self._given["clean"]).values() if x.ndim), 1)

    def log_probs(self, side: Side, outputs: Any) -> Float[Tensor, "answer class"]:
        """Return the log-probabilities at the positions that predict the answers."""
        self.number(side, outputs)
        assert self._fixed is not None  # made by the line before
        return self._fixed.log_probs(outputs).detach().double()

    def between(self, share: float) -> "TwoRuns":
        """Return a pair with numeric inputs at the fraction ``share`` from corrupt to clean."""
        runs = object.__new__(TwoRuns)
        runs.__dict__ = {**self.__dict__, "_recorded": {}}
        args, kwargs = self._given["corrupt"]
        ends = zip(
            leaves(self._given["clean"]).values(), leaves((args, kwargs)).values(), strict=True
        )
        both: Any = (args, kwargs)
        for clean, corrupt in ends:
            if corrupt.is_floating_point():
                both = replaced(both, corrupt, torch.lerp(corrupt, clean, share))
        runs._given = {"clean": both, "corrupt": both}
        return runs

    def acting(
        self,
        side: Side,
        sites: Sequence[Site],
        act: Act,
        *,
        with_grad: bool = False,
        times: int = 1,
    ) -> Any:
        """Return the outputs of one run, with its batch repeated ``times`` times.

        ``act`` is given the states of each site; its result, if not None, replaces these states.
        """
        args, kwargs = self._given[side]
        if times > 1:
            args, kwargs = self.recorded(side).arguments(times)
        with self._hooked(sites, act, with_grad) as session:
            return session.run(args, kwargs)

    @contextmanager
    def _hooked(self, sites: Sequence[Site], act: Act, with_grad: bool) -> Iterator[Session]:
        modules, counts = ModuleNames(self.module).modules, dict[Site, int]()
        outputs: list[Any] = []
        inputs: list[Any] = []
        inside: list[Any] = []

        def is_turn(site: Site) -> bool:
            counts[site] = counts.get(site, 0) + 1
            if site.call is None and counts[site] > 1:
                raise SiteError(f"{site} ran several times. Name one of its calls (@0).")
            return site.call is None or counts[site] - 1 == site.call

        def after(site: Site, output: Any) -> Any:
            leaf = find(output, site.key)
            if leaf is None or not is_turn(site):
                return None
            new = act(site, leaf)
            return None if new is None else replaced(output, leaf, new)

        def before(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not is_turn(site):
                return None
            leaf = find_input(modules[site.path], args, kwargs, site.key)[1]
            new = act(site, leaf)
            return None if new is None else with_input(args, kwargs, leaf, new)

        for site in sites:
            module = modules[site.path]
            if site.port == "in":
                inputs.append((module, partial(before, site)))
            elif site.port in ATTENTION_PORTS:
                inside.append((module, site.port, partial(after, site)))
            else:
                outputs.append((module, partial(after, site)))
        look = watch_attention(inside, edits=True)
        with Session(self.root, outputs, inputs, with_grad=with_grad, inside=look) as session:
            yield session

    def _check_seen(self, sites: Sequence[Site], seen: States) -> None:
        missing = [str(site) for site in sites if site not in seen]
        if missing:
            raise SiteError(
                f"{', '.join(missing[:4])} returned no tensor of numbers. Name modules that run."
            )


def check_pair(clean: dict[Any, Any], corrupt: dict[Any, Any]) -> None:
    """Raise if the two inputs differ in shape or padding.

    Raises
    ------
    InputError
        If a tensor has another shape, or other tokens are padding.
    """
    first, second = leaves(clean), leaves(corrupt)
    if first.keys() != second.keys():
        raise InputError(
            "expected clean and corrupted inputs with the same argument names, got "
            f"{sorted(first, key=str)} and {sorted(second, key=str)}. Call the model in the same "
            "way for both, with a mask for both or for neither."
        )
    for name, x in first.items():
        y = second[name]
        if x.shape != y.shape:
            kind = "tokens" if x.ndim == 2 and not x.is_floating_point() else "entries"
            raise InputError(
                f"expected clean and corrupted inputs of one length, got {tuple(x.shape)} and "
                f"{tuple(y.shape)} {kind} at {name!r}. States are copied to the same "
                "position, so write texts with the same number of tokens."
            )
        if "mask" in name and not torch.equal(x, y):
            raise InputError(
                "expected clean and corrupted inputs with padding at the same positions, got "
                f"different {name!r}. Give both texts of a pair the same number of tokens."
            )


def _without_cache(
    root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    require_no_cache(arguments(root, args, kwargs))
    accepted = inspect.signature(root.forward).parameters
    return args, ({**kwargs, "use_cache": False} if "use_cache" in accepted else kwargs)
