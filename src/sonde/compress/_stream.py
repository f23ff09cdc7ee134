"""The residual stream of a model: its writers, its norms, and the layers after the norms.

Writers are found by following sums, readers by NaN: every layer repeats its recorded output, and
one norm returns NaN; layers at which NaN arrives read this norm.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.compress._blocks import placed_call
from sonde.compress._coupled import IN, OUT, axis_of
from sonde.core.errors import InputError, StateError
from sonde.core.inputs import Inputs, Model
from sonde.tap.hand.recording import Forward, intercepted
from sonde.tap.hooks.outputs import find
from sonde.tap.hooks.session import Session
from sonde.weights._kinds import kind_of
from sonde.weights.residual import residual_readers, residual_writers

AXES = {"weight": 0, "bias": 0}


@dataclass(frozen=True, eq=False)
class Stream:
    """Tensors of a model with an axis as wide as the residual stream.

    Parameters
    ----------
    width : int
    writers : mapping of str to int
        Tensors whose values are added to the stream, and the axis of its features.
    readers : mapping of str to mapping
        For each norm that reads the stream the weights of the layers that read the norm, and the
        axis of their inputs.
    centred : bool
        Whether norms subtract the mean of a row's features.
    """

    width: int
    writers: Mapping[str, int]
    readers: Mapping[str, Mapping[str, int]]
    centred: bool

    @classmethod
    def of(cls, owner: str, model: Model, inputs: Inputs) -> "Stream":
        """Return the residual stream of a model, found by running it on the first example.

        Raises
        ------
        InputError
            If the model has no stream, or anything but norms of one kind reads it.
        """
        module = model.module
        args, kwargs = placed_call(model, next(iter(inputs.batches(0, 1))))
        try:
            terms = residual_writers(module, args or kwargs)
        except (StateError, LookupError) as error:
            raise _refused(owner, str(error)) from None
        writers: dict[str, int] = {}
        for term in terms:
            if isinstance(term, str):
                writers[term] = -1
                continue
            part = module.get_submodule(term.name)
            leaves = AXES | {"weight": axis_of(part, OUT)}
            writers |= {f"{term.name}.{leaf}": axis for leaf, axis in leaves.items()
                        if part._parameters.get(leaf) is not None}  # fmt: skip
        names = {term.name for term in terms if not isinstance(term, str)}
        terms_of = residual_readers(module, args or kwargs)
        norms = {name: module.get_submodule(name) for name in terms_of if names & {*terms_of[name]}}
        first = next(iter(writers))
        width = module.state_dict()[first].shape[writers[first]]
        for name, part in norms.items():
            if [tuple(x.shape) for x in part.parameters(recurse=False)][:1] != [(width,)]:
                raise _refused(owner, f"{name} ({type(part).__name__}) reads it without a norm")
        centred = {_centres(part) for part in norms.values()}
        if len(centred) != 1:
            raise _refused(owner, "its norms are of two kinds, or it has none")
        readers = _readers(model, list(norms.values()), args, kwargs)
        named = {name: readers[part] for name, part in norms.items()}
        return cls(width, writers, named, centred.pop())

    def cut(self, module: nn.Module, kept: Sequence[int]) -> dict[str, Float[Tensor, "..."]]:
        """Return every tensor of the stream, cut to some features."""
        named, tensors = module.state_dict(), dict[str, Tensor]()
        places = torch.tensor(kept)
        for name, axis in self.axes(module):
            x = tensors[name] if name in tensors else named[name].detach()
            tensors[name] = x.index_select(axis, places.to(x.device))
        return tensors

    def axes(self, module: nn.Module) -> list[tuple[str, int]]:
        """Return each tensor with its axis in the stream, twice for tensors with two axes."""
        norms = [(f"{name}.{leaf}", 0) for name in self.readers for leaf in AXES
                 if module.get_submodule(name)._parameters.get(leaf) is not None]  # fmt: skip
        read = [pair for own in self.readers.values() for pair in own.items()]
        return [*self.writers.items(), *norms, *read]

    def mapped(
        self, module: nn.Module, into: Float[Tensor, "dim kept"]
    ) -> dict[str, Float[Tensor, "..."]]:
        """Return every tensor after a change of the stream's basis, in float64.

        ``into`` has orthonormal rows or columns; if norms centre, its columns have mean 0. Gains
        and biases of norms go into the layers behind them. A bias uses the direction of equal
        features, in which centred rows are 0.
        """
        dim, kept = into.shape
        named, tensors = module.state_dict(), dict[str, Tensor]()
        into = into.to(named[next(iter(self.writers))].device)

        def now(name: str) -> Tensor:
            return tensors[name] if name in tensors else named[name].detach().double()

        for norm, layers in self.readers.items():
            part = module.get_submodule(norm)
            bias = part._parameters.get("bias")
            for name, axis in layers.items():
                w = now(name).movedim(axis, -1)
                new = (w * part.weight.detach().double()) @ into  # pyright: ignore[reportCallIssue]
                if bias is not None:
                    new = new + (w @ bias.detach().double())[..., None] / kept
                tensors[name] = new.movedim(-1, axis)
            ones = torch.ones(kept, dtype=torch.float64, device=into.device)
            # the mean square of a row's features stays, and so what eps does
            tensors[f"{norm}.weight"] = ones * (dim / kept) ** 0.5
            if bias is not None:
                tensors[f"{norm}.bias"] = ones
        for name, axis in self.writers.items():
            new = now(name).movedim(axis, -1) @ into * (kept / dim) ** 0.5
            tensors[name] = new.movedim(-1, axis)
        return tensors


def _centres(norm: Any) -> bool:
    """Return whether a norm is invariant to a constant added to all features of a row."""
    weight = norm.weight
    rows = torch.linspace(-1, 1, 2 * len(weight)).square().reshape(2, -1).to(weight)
    with torch.no_grad():
        gap = (norm(rows + 1.0) - norm(rows)).abs().max()
    return bool(gap < 0.1 * norm(rows).abs().max())


def _readers(
    model: Model, norms: Sequence[nn.Module], args: Any, kwargs: Any
) -> dict[nn.Module, dict[str, int]]:
    """Return the weights that read each norm's output, and the axis of their inputs."""
    layers = {part: name for name, part in model.module.named_modules()
              if name and kind_of(part) is not None}  # fmt: skip
    recorded: dict[nn.Module, list[Tensor]] = defaultdict(list)
    axes: dict[nn.Module, dict[str, int]] = {norm: {} for norm in norms}

    def record(part: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        recorded[part].append(output.clone())
        return output

    parts = [*layers, *norms]
    with Session(model.module), torch.no_grad():
        with intercepted(parts, record):
            model.module(*args, **kwargs)
        for norm in norms:
            counts: dict[nn.Module, int] = defaultdict(int)

            def frozen(
                part: nn.Module,
                forward: Forward,
                args: Any,
                kwargs: Any,
                norm: nn.Module = norm,
                counts: dict[nn.Module, int] = counts,
            ) -> Any:
                x = find((args, kwargs), None)
                if part in layers and x is not None and bool(x.isnan().any()):
                    axes[norm][f"{layers[part]}.weight"] = axis_of(part, IN)
                output = recorded[part][counts[part]]
                counts[part] += 1
                return torch.full_like(output, float("nan")) if part is norm else output

            with intercepted(parts, frozen):
                model.module(*args, **kwargs)
    return axes


def _refused(owner: str, why: str) -> InputError:
    return InputError(
        f"{owner}.plan: expected a residual stream that norms read, and layers read these: {why}. "
        "Use a method that changes single layers."
    )
