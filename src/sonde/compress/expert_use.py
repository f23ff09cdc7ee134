"""Selection frequency of each expert, and similarity of the experts' router scores.

For layers of transformers that hold their experts in two stacked tensors (Mixtral, Qwen, OLMoE and
their like). States of shards are merged by addition. Rows of padding are left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.compress.grams import without_padding
from sonde.core.errors import InputError, StateError
from sonde.core.inputs import Inputs, Model
from sonde.core.state import State
from sonde.engine.progress import Bar
from sonde.tap import calls_of, difference_of_models, model_record, place_of
from sonde.tap.rows.padding import right_padded
from sonde.weights import as_model

STACKED = ("gate_up_proj", "down_proj")


@dataclass(frozen=True, eq=False)
class Mixture:
    """A router and its experts, inside a model.

    Parameters
    ----------
    name : str
        Of the module that holds the experts.
    experts, router : nn.Module
    """

    name: str
    experts: Any
    router: nn.Module

    @property
    def size(self) -> int:
        """Number of experts."""
        return len(self.experts.down_proj)


@final
@dataclass(frozen=True)
class ExpertUse(State):
    """Choices and scores of routers over tokens.

    Parameters
    ----------
    names : tuple of str
        The module of the experts of each layer.
    counts : tuple of Int[Tensor, "expert"]
        Tokens that picked an expert.
    grams : tuple of Float[Tensor, "expert expert"]
        Sum over tokens of products of router scores.
    tokens : int
    model : str
        Record of the model that was read, as of ``sonde.tap.model_record``.
    """

    names: tuple[str, ...]
    counts: tuple[Int[Tensor, "expert"], ...]
    grams: tuple[Float[Tensor, "expert expert"], ...]
    tokens: int
    model: str

    def merge(self, other: "ExpertUse") -> "ExpertUse":
        """Return the merged counts of both sets of tokens.

        Raises
        ------
        StateError
            If they were read on another model.
        """
        apart = difference_of_models(self.model, other.model)
        if apart is not None or self.names != other.names:
            raise StateError(
                "ExpertUse.merge: expected the same layers of the same model, got two models: "
                f"{apart or f'layers {self.names} and {other.names}'}. Measure both on one model."
            )
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        grams = tuple(a + b for a, b in zip(self.grams, other.grams, strict=True))
        return ExpertUse(self.names, counts, grams, self.tokens + other.tokens, self.model)

    def share(self, layer: int) -> Float[Tensor, "expert"]:
        """Return the fraction of tokens that picked each expert of a layer."""
        return self.counts[layer].double() / max(1, self.tokens)

    def likeness(self, layer: int) -> Float[Tensor, "expert expert"]:
        """Return the cosine between the scores of each pair of a layer's experts over tokens."""
        size = self.grams[layer].diagonal().sqrt().clamp(min=1e-300)
        return self.grams[layer] / torch.outer(size, size)


def expert_use(
    model: Model | nn.Module, inputs: Inputs, *, start: int = 0, stop: int | None = None
) -> ExpertUse:
    """Return the choices and scores of routers for the tokens of data, without gradients.

    Parameters
    ----------
    model : Model or nn.Module
        Model that is run; it is not changed.
    inputs : Inputs
        Inputs that the model runs on.
    start, stop : int, optional
        Read these examples alone.

    Raises
    ------
    InputError
        If the model has no mixture of experts, or a mixture reads no token.
    """
    live, end = as_model(model), len(inputs) if stop is None else min(stop, len(inputs))
    by_router = {one.router: one for one in mixtures("expert_use", live.module)}
    counts = {r: torch.zeros(one.size, dtype=torch.int64) for r, one in by_router.items()}
    grams = {
        r: torch.zeros(one.size, one.size, dtype=torch.float64) for r, one in by_router.items()
    }
    n = dict.fromkeys(by_router, 0)
    with Bar("routers", end - start) as bar, _other_arguments(list(by_router)) as others:
        for batch in map(right_padded, inputs.batches(start, end)):
            args, kwargs = place_of(live.module, batch).call(batch.args, batch.kwargs)
            for router, x in calls_of(live.module, list(by_router), args, kwargs):
                with torch.no_grad():
                    rows = without_padding(x, batch).flatten(0, -2)
                    more, named = others[router]
                    scores, _, chosen = router(rows, *more, **named)
                counts[router] += torch.bincount(chosen.flatten().cpu(), minlength=len(scores[0]))
                scores = scores.double().cpu()
                grams[router] += scores.T @ scores
                n[router] += len(rows)
            bar.advance(len(batch))
    if not n or min(n.values()) == 0 or len(set(n.values())) > 1:
        raise InputError(
            "expert_use: expected the same number of tokens at the router of every layer, got "
            f"the numbers {sorted(set(n.values()))}. Pass data that reach all layers."
        )
    names = tuple(one.name for one in by_router.values())
    seen, totals = tuple(counts.values()), tuple(grams.values())
    return ExpertUse(names, seen, totals, max(n.values()), model_record(live.module))


@contextmanager
def _other_arguments(
    routers: Sequence[nn.Module],
) -> Iterator[dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Record the arguments of each router beside its states, such as a selection bias."""
    kept: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep(router: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept[router] = args[1:], kwargs if args else dict([*kwargs.items()][1:])

    handles = [r.register_forward_pre_hook(keep, with_kwargs=True) for r in routers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def mixtures(owner: str, module: nn.Module) -> list[Mixture]:
    """Return the mixtures of experts in a model.

    Experts are a module whose own tensors are ``gate_up_proj`` (expert, 2 hidden, dim) and
    ``down_proj`` (expert, dim, hidden). Their router stands beside them and has a score for each.

    Raises
    ------
    InputError
        If there is none.
    """
    every: list[Mixture] = []
    strange: list[str] = []
    for path, parent in module.named_modules():
        for name, part in parent.named_children():
            if not _are_experts(part._parameters):
                if part._parameters.keys() >= {*STACKED}:
                    shapes = [f"{n} {tuple(x.shape)}" for n, x in part.named_parameters()]
                    strange.append(f"{path}.{name} has {', '.join(shapes)}")
                continue
            size = len(part.down_proj)  # pyright: ignore[reportArgumentType]
            routers = [r for r in parent.children() if _routes(r, size)]
            if len(routers) == 1:
                every.append(Mixture(f"{path}.{name}" if path else name, part, routers[0]))
    if not every and strange:
        raise InputError(
            f"{owner}: expected stacked experts without biases, {STACKED[0]} (expert, 2 hidden, "
            f"dim) and {STACKED[1]} (expert, dim, hidden), as in Mixtral: {strange[0]}. Round "
            "such experts instead: RTN(bits=4), sonde compress --to 4bit."
        )
    if not every:
        raise InputError(
            f"{owner}: expected layers with stacked experts ({' and '.join(STACKED)}) with a "
            f"router, got none in {type(module).__name__}. Pass a mixture of experts of "
            "transformers, such as Mixtral."
        )
    return every


def _are_experts(tensors: Mapping[str, Tensor | None]) -> bool:
    up, down = (tensors.get(name) for name in STACKED)
    if tuple(tensors) != STACKED or up is None or down is None or up.ndim != 3 != down.ndim:
        return False
    return up.shape == (len(down), 2 * down.shape[2], down.shape[1])


def _routes(part: nn.Module, size: int) -> bool:
    weight = part._parameters.get("weight")
    return weight is not None and weight.ndim == 2 and len(weight) == size
