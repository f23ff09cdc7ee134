"""Weights that one task scales along the inputs of old tasks, without changing them for others.

For tasks that come one after the other and share inputs, but not answers. The task of each input
must be known when the model runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.tap.hand.recording import Forward, intercepted
from sonde.train._layer_weights import Layer, joined_weights, layers_of, split_weights

NEARLY = 1e-3
"""By how much products of orthonormal directions may differ from the identity."""


@final
class ScaledWeights(nn.Module):
    """Scale the weights of layers along given input directions, for one task.

    Inside ``on`` a layer runs with ``W + sum_j W B_j (Q_j - I) B_j'`` in place of its weights ``W``
    (with the bias as last column). ``B_j`` holds orthonormal directions, such as those of an old
    task's inputs. The matrices ``Q_j`` are the parameters of this module and begin as identities.
    ``W`` stays: outside the block the model gives the outputs that it gave before.

    Cost         a product of ``W`` with each ``B_j`` for each call of a layer.
    Differs      from the paper: all given directions are scaled, not those of two tasks.

    Parameters
    ----------
    directions : mapping of str to sequence of Float[Tensor, "dim rank"]
        For each linear or convolution layer, by name, the directions to scale along. ``dim`` is the
        number of inputs of a weight's row, and one more where the layer has a bias. A layer with an
        empty sequence runs as it is.

    Raises
    ------
    InputError
        If the directions of a layer are no sequence of matrices, not finite, more than ``dim``, or
        not orthonormal to 1e-3 (or the rounding of a dtype below float32).

    Examples
    --------
    >>> layer = nn.Linear(3, 1, bias=False)
    >>> _ = nn.init.ones_(layer.weight)
    >>> scaled = ScaledWeights({"": [torch.eye(3)[:, :1]]})
    >>> _ = nn.init.constant_(scaled.scales[0].matrix, 5.0)
    >>> with scaled.on(layer):
    ...     inside = layer(torch.ones(3)).item()
    >>> inside, layer(torch.ones(3)).item()
    (7.0, 3.0)

    References
    ----------
    lin2022trgp
    """

    paper: ClassVar[str] = "lin2022trgp"

    def __init__(self, directions: Mapping[str, Sequence[Float[Tensor, "_dim _rank"]]]) -> None:
        super().__init__()
        for name, each in directions.items():
            _check(name, each)
        self.layers = {name: len(each) for name, each in directions.items() if each}
        self.scales = nn.ModuleList(_Scale(basis) for each in directions.values() for basis in each)

    @property
    def n_numbers(self) -> int:
        """Number of learned numbers."""
        return sum(p.numel() for p in self.parameters())

    @contextmanager
    def on(self, model: Model | nn.Module) -> Iterator[None]:
        """Run the model with scaled weights inside the block.

        Parameters
        ----------
        model : Model or nn.Module

        Raises
        ------
        InputError
            If a layer is missing, pads otherwise than with zeros, or has another input width.
        """
        module = model.module if isinstance(model, Model) else model
        layers, given = layers_of(module), iter(self.scales)
        of = dict[int, list[nn.Module]]()
        for name, n in self.layers.items():
            scales = [next(given) for _ in range(n)]
            of[id(_checked(name, layers.get(name), scales))] = scales

        def around(layer: Any, forward: Forward, args: Any, kwargs: Any) -> Tensor:
            own = whole = joined_weights(layer)
            for scale in of[id(layer)]:
                whole = whole + scale(own)
            weight, bias = split_weights(layer, whole)
            (x,) = (*args, *kwargs.values())
            if isinstance(layer, nn.Linear):
                return linear(x, weight, bias)
            return conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)

        with intercepted([layers[name] for name in self.layers], around):
            yield


class _Scale(nn.Module):
    """Scale matrix of an old task in a layer; a call with ``W`` returns the change of ``W``."""

    basis: Tensor

    def __init__(self, basis: Float[Tensor, "dim rank"]) -> None:
        super().__init__()
        eye = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
        self.register_buffer("basis", basis.detach().clone())
        self.matrix = nn.Parameter(eye)

    def forward(self, whole: Float[Tensor, "out dim"]) -> Float[Tensor, "out dim"]:
        part = whole.to(self.basis.dtype) @ self.basis  # a model may run in half precision
        return ((part @ self.matrix - part) @ self.basis.mT).to(whole.dtype)


def _check(name: str, bases: Any) -> None:
    """Raise if what was given for a layer is no sequence of orthonormal directions."""
    expected = f"ScaledWeights: expected at layer {name!r} "
    if not isinstance(bases, Sequence):
        raise InputError(
            f"{expected}a list of matrices (dim, rank), got {type(bases).__name__}. Pass "
            "[directions]."
        )
    for basis in bases:
        if not isinstance(basis, Tensor) or basis.ndim != 2 or not basis.is_floating_point():
            got = tuple(basis.shape) if isinstance(basis, Tensor) else type(basis).__name__
            raise InputError(
                f"{expected}matrices (dim, rank) of numbers with a point, got {got}. Pass one "
                "direction as directions[:, None]."
            )
        dim, rank = basis.shape
        if rank > dim:
            raise InputError(
                f"{expected}at most {dim} directions of {dim} numbers, got {rank}. Pass them as "
                "columns."
            )
        wide = basis.detach().double()
        if not bool(wide.isfinite().all()):
            raise InputError(
                f"{expected}finite directions, got NaN or infinite ones. Make them of finite rows."
            )
        gap = (wide.mT @ wide - torch.eye(rank).to(wide)).abs()
        largest = float(gap.max()) if rank else 0.0
        if largest > max(NEARLY, 2 * torch.finfo(basis.dtype).eps):
            raise InputError(
                f"{expected}orthonormal directions, got products that differ from the identity by "
                f"{largest:.3g}. Pass torch.linalg.qr(directions).Q."
            )


def _checked(name: str, layer: Layer | None, scales: Sequence[Any]) -> Layer:
    if layer is None:
        raise InputError(
            f"ScaledWeights.on: expected a linear layer or a convolution without groups at {name}, "
            "got none. Pass the model whose layers the directions were made for."
        )
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        raise InputError(
            f"ScaledWeights.on: expected zero padding at {name}, got {layer.padding_mode}."
        )
    dim = joined_weights(layer).shape[1]
    for scale in scales:
        if len(scale.basis) != dim:
            raise InputError(
                f"ScaledWeights.on: expected directions of {dim} numbers at {name} (inputs and, "
                f"with a bias, one more), got {len(scale.basis)}."
            )
    return layer
