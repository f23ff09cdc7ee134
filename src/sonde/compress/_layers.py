"""Select the layers of a model to compress, and read their inputs as rows."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.errors import InputError, SondeWarning, near
from sonde.core.inputs import Model
from sonde.weights._kinds import is_linear, is_made, kind_of
from sonde.weights.forms import is_packed


@dataclass(frozen=True, eq=False)
class Weighted:
    """A layer whose weight is compressed.

    Parameters
    ----------
    name : str
        Of the module.
    module : nn.Module
        A linear layer, also one of GPT-2 that holds its weight as (in, out), or a convolution.
    """

    name: str
    module: Any

    @property
    def weight(self) -> str:
        """Name of the weight."""
        return f"{self.name}.weight"

    @property
    def groups(self) -> int:
        """Number of groups, each with its own part of the input and of the weight."""
        return 1 if self.is_linear else int(self.module.groups)

    @property
    def n_out(self) -> int:
        """Number of rows of the matrix."""
        return int(self.module.weight.shape[1 if self.turned else 0])

    @property
    def is_linear(self) -> bool:
        """True if the layer is linear, not a convolution."""
        return is_linear(self.module)

    @property
    def turned(self) -> bool:
        """True if the weight is stored as (in, out)."""
        return kind_of(self.module) == "transposed"

    def matrix(self) -> Float[Tensor, "out in"]:
        """Return the weight as a float64 matrix, with one row for each output."""
        return self.matrix_of(self.module.weight.detach().double())

    def matrix_of(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "out in"]:
        """Return a tensor of the weight's shape as a matrix."""
        return weight.T.contiguous() if self.turned else weight.flatten(1)

    def tensor(self, matrix: Float[Tensor, "out in"]) -> Float[Tensor, "..."]:
        """Return a matrix in the shape and the dtype of the weight."""
        weight = self.module.weight
        return (matrix.T if self.turned else matrix).to(weight.dtype).reshape(weight.shape)

    def stored(self, matrix: Float[Tensor, "out in"]) -> Float[Tensor, "..."]:
        """Return a matrix of any size as the layer stores its weight, kernels included."""
        weight = self.module.weight
        matrix = (matrix.T if self.turned else matrix).to(weight.dtype)
        return matrix.reshape(len(matrix), -1, *weight.shape[2:])

    def rows(self, x: Tensor) -> Float[Tensor, "group row in"]:
        """Return the inputs of each group of the layer, with one row for each output position."""
        return x.reshape(1, -1, x.shape[-1]) if self.is_linear else _windows(self.module, x)


def _windows(layer: Any, x: Tensor) -> Float[Tensor, "group row in"]:
    """Return the patches that a convolution multiplies, with the layer's padding."""
    n_dims = len(layer.kernel_size)
    x = x if x.ndim == n_dims + 2 else x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    pads = layer._reversed_padding_repeated_twice
    if any(pads):
        x = functional.pad(x, pads, mode=mode)
    for i, (size, step, apart) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    ):
        x = x.unfold(2 + i, apart * (size - 1) + 1, step)[..., ::apart]
    places, kernel = x.shape[2 : 2 + n_dims], x.shape[2 + n_dims :]
    x = x.reshape(len(x), layer.groups, -1, places.numel(), kernel.numel())
    return x.permute(1, 0, 3, 2, 4).reshape(layer.groups, len(x) * places.numel(), -1)


def weighted_layers(
    owner: str, model: Model, layers: Sequence[str] | None, *, beside: Sequence[str] = ()
) -> list[Weighted]:
    """Return the layers that a method compresses.

    Parameters
    ----------
    owner : str
        For errors.
    model : Model
    layers : sequence of str, optional
        Patterns of names (``model.layers.*.mlp.*``). By default all linear layers but those whose
        weight is also an embedding; convolutions must be named. Layers of adapters keep their full
        precision, with a warning.
    beside : sequence of str, optional
        Names that patterns match too: of tensors that the method packs beside layers. If there is
        one, there may be no layer.

    Raises
    ------
    InputError
        If a pattern matches nothing, or names one side of tied weights.
    """
    if any(map(is_packed, model.module.modules())):
        raise InputError(
            f"{owner}: expected a model with plain weights, got a packed model. Use the original "
            "model."
        )
    by_tensor: dict[int, Weighted] = {}
    tied: dict[str, str] = {}
    parts = list(model.module.named_modules())
    others = {id(p): name for name, part in parts for p in part._parameters.values()
              if p is not None and kind_of(part) in (None, "rows")}  # fmt: skip
    adapters = adapter_parts(model.module)
    for name, part in parts:
        if not name or kind_of(part) in (None, "rows") or name in adapters:
            continue
        if id(part.weight) in others:
            tied[name] = others[id(part.weight)]
        else:
            by_tensor[id(part)] = Weighted(name, part)
    every = list(by_tensor.values())
    warn_of_adapters([name for name, part in parts if name in adapters and kind_of(part)])
    _refuse_made(owner, [name for name, part in parts if name and is_made(part)], layers)
    if layers is None:
        chosen = [layer for layer in every if layer.is_linear]
    else:
        chosen = [one for one in every if any(fnmatchcase(one.name, p) for p in layers)]
        for pattern in layers:
            if any(fnmatchcase(name, pattern) for name in beside):
                continue
            sides = [name for name in tied if fnmatchcase(name, pattern)]
            if sides and pattern != "*":
                raise InputError(
                    f"{owner}: {sides[0]} and {tied[sides[0]]} are a single weight, and "
                    "compressing one of them would separate them. Leave it out."
                )
            if not any(fnmatchcase(one.name, pattern) for one in every) and not sides:
                _refuse_embedding(owner, parts, pattern)
                names = [one.name for one in every]
                advice = near(pattern, names) or f" There is a layer {names[0]}." if names else ""
                raise InputError(f"{owner}: no layer matches {pattern!r}.{advice}")
    if not chosen and not beside:
        raise InputError(
            f"{owner}: expected linear layers, got none in {type(model.module).__name__}. "
            "Name convolutions with layers=['*']."
        )
    return chosen


def adapter_parts(module: nn.Module) -> frozenset[str]:
    """Return the names of the modules that adapters of PEFT add beside the layers they wrap."""
    names = [name for name, _ in module.named_modules()]
    wrapped = [
        f"{name}."
        for name, part in module.named_modules()
        if type(part).__module__.startswith("peft.tuners") and "base_layer" in part._modules
    ]
    return frozenset(
        name
        for name in names
        for around in wrapped
        if name.startswith(around) and not f"{name}.".startswith(f"{around}base_layer.")
    )


def refuse_adapters(owner: str, module: nn.Module) -> None:
    """Raise if a model has adapters, whose matrices share the channels of the layers they wrap.

    Raises
    ------
    InputError
    """
    adapters = adapter_parts(module)
    adapted = [name for name, part in module.named_modules() if name in adapters and kind_of(part)]
    if adapted:
        raise InputError(
            f"{owner}: expected a model without adapters, since channels and directions that are "
            f"removed would have to be removed from them too, got {adapted[0]}. Merge them first: "
            "model.merge_and_unload() of PEFT."
        )


def warn_of_adapters(names: Sequence[str]) -> None:
    """Warn that layers of adapters keep their full precision."""
    if names:
        more = f" (and {len(names) - 1} more)" if names[1:] else ""
        warnings.warn(
            f"{names[0]}{more} is not compressed: adapters keep their full precision. Merge them "
            "first (model.merge_and_unload() of PEFT) to compress their part of the weights too.",
            SondeWarning,
            stacklevel=1,
        )


def _refuse_embedding(owner: str, parts: Sequence[tuple[str, nn.Module]], pattern: str) -> None:
    """Raise if a pattern names an embedding, for methods that change only linear layers.

    Raises
    ------
    InputError
        Naming methods that pack embeddings.
    """
    tables = [n for n, part in parts if isinstance(part, nn.Embedding) and fnmatchcase(n, pattern)]
    if tables:
        raise InputError(
            f"{owner}: {tables[0]} is an embedding, but {owner} changes only linear layers. "
            "Leave it out, or use a method that rounds to a grid (rtn, gptq, awq)."
        )


def _refuse_made(owner: str, made: Sequence[str], layers: Sequence[str] | None) -> None:
    """Raise for a named layer with a parametrised weight; warn about unnamed ones.

    Raises
    ------
    InputError
        If a pattern, other than ``*``, names such a layer.
    """
    advice = (
        "has a weight that is made from others at each run (weight_norm, spectral_norm). Call "
        "torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm or "
        "remove_spectral_norm first to compress it."
    )
    named = [n for n in made if any(p != "*" and fnmatchcase(n, p) for p in layers or ())]
    if named:
        raise InputError(f"{owner}: {named[0]} {advice}")
    if made:
        more = f" (and {len(made) - 1} more)" if made[1:] else ""
        # one text and one line of code for all callers: Python prints it once
        warnings.warn(f"{made[0]}{more} is not compressed: it {advice}", SondeWarning, stacklevel=1)
