"""Find a tensor's feature axis from the class and weights of the module that made it.

Nothing is concluded from a size that some other parameter of the model has as well.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

LAST = (
    nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell,
    nn.LSTMCell, nn.GRUCell, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip
NORMS = (nn.LayerNorm, nn.RMSNorm)
FIRST = (
    nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm, nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm, nn.LocalResponseNorm, nn.Unfold, nn.Fold, nn.ChannelShuffle,
)  # fmt: skip
CONVOLUTIONS = (
    (nn.Conv1d, nn.ConvTranspose1d),
    (nn.Conv2d, nn.ConvTranspose2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.Softmax2d),
    (nn.Conv3d, nn.ConvTranspose3d),
)
POOLS = (
    (nn.MaxPool1d, nn.AvgPool1d, nn.LPPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d,
     nn.MaxUnpool1d),
    (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d,
     nn.MaxUnpool2d, nn.FractionalMaxPool2d),
    (nn.MaxPool3d, nn.AvgPool3d, nn.LPPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d,
     nn.MaxUnpool3d, nn.FractionalMaxPool3d),
)  # fmt: skip
KEEPING = ("activation", "dropout", "padding", "pooling", "upsampling", "normalization")
"""Files of ``torch.nn.modules`` whose modules leave the axes in their order."""


def by_class(module: nn.Module, ndim: int, key: str = "") -> int | None:
    """Return the feature axis of an output by the class of the module, or None.

    A subclass with a ``forward`` of its own is another class.

    Parameters
    ----------
    module : nn.Module
    ndim : int
        Axes of the output, the examples among them.
    key : str, default=""
        Which tensor of several.

    Examples
    --------
    >>> by_class(nn.Conv1d(3, 4, 1), 3), by_class(nn.Linear(3, 4), 3), by_class(nn.ReLU(), 3)
    (1, 2, None)
    """
    own = next((c for c in type(module).__mro__ if "forward" in vars(c)), nn.Module)
    axis = None
    if own in LAST or (own is nn.MultiheadAttention and key in ("", "0")):
        axis = ndim - 1
    elif own in NORMS:
        axis = ndim - 1 if len(module.normalized_shape) == 1 else None  # pyright: ignore
    elif own in FIRST or (own is nn.PReLU and module.weight.numel() > 1):  # pyright: ignore
        axis = 1
    for n_space, classes in enumerate(CONVOLUTIONS, start=1):
        if own in classes:
            axis = ndim - 1 - n_space
    return axis if axis is not None and 0 < axis < ndim else None


def by_number(module: nn.Module, shape: Sequence[int], key: str = "") -> int | None:
    """Return the axis named by the module's class, if its size is the declared feature count.

    A norm without weights takes any number of features, so this axis may follow the inputs.
    """
    axis = by_class(module, len(shape), key)
    declared = getattr(module, "num_features", getattr(module, "num_channels", None))
    return axis if axis is not None and shape[axis] == declared else None


def by_kind_of_pool(module: nn.Module, ndim: int) -> int | None:
    """Return the axis before the pooled axes of a module, or None if it does not pool."""
    for n_space, classes in enumerate(POOLS, start=1):
        if isinstance(module, classes) and ndim > n_space + 1:
            return ndim - 1 - n_space
    return None


def by_sizes(shape: Sequence[int], candidates: Iterable[int], module: nn.Module) -> int | None:
    """Return the only axis whose size occurs in the module's own weights, or None.

    Weights of convolutions count without their kernel, and a size of one says nothing.
    """
    sizes = {size for p in module.parameters() for size in p.shape[:2]} - {1}
    matching = [i for i in candidates if shape[i] in sizes]
    return matching[0] if len(matching) == 1 else None


def by_classes(module: nn.Module, ndim: int) -> set[int]:
    """Return the feature axes that the classes of a module's parts suggest."""
    parts = (part for part in module.modules() if not part._modules)
    axes = {by_class(part, ndim) or by_kind_of_pool(part, ndim) for part in parts}
    return {axis for axis in axes if axis is not None}


class FeatureAxes:
    """Feature axes of a forward pass's tensors, followed through views and modules.

    A view (permuted, cut, reshaped) of a tensor keeps its memory: the feature axis is the
    axis of the same size and the same stride in memory.

    Parameters
    ----------
    width : int or None, default=None
        Number of units of a state by the model's configuration. States of as many positions have
        their features last if those of all parts inside the module have.
    """

    def __init__(self, width: int | None = None) -> None:
        self._width = width
        self._found: dict[int, tuple[StorageWeakRef, int, int]] = {}
        self._inside: list[list[tuple[tuple[int, ...], int]]] = []

    def of(self, x: Tensor) -> int | None:
        """Return the feature axis of a tensor, or None if unknown."""
        place = self._found.get(x.untyped_storage()._cdata) if _is_plain(x) else None
        if place is None:
            return None
        _, size, step = place
        axes = [i for i in range(1, x.ndim) if x.shape[i] == size and x.stride(i) == step]
        return axes[0] if len(axes) == 1 else None

    def enter(self) -> int:
        """Record that a module begins; return how many modules enclose it."""
        self._inside.append([])
        return len(self._inside) - 1

    def leave(
        self, module: nn.Module, depth: int, given: Tensor | None, made: dict[str, Tensor]
    ) -> None:
        """Find the feature axes of a module's outputs, also from the axis of its input."""
        inside = self._inside[depth]
        del self._inside[depth:]
        before = None if given is None else self.of(given)
        for key, x in made.items():
            if not (_is_plain(x) and x.is_floating_point()):
                continue
            axis = by_class(module, x.ndim, key)
            if axis is None:
                axis = self.of(x)
            if axis is None and given is not None and not module._modules:
                axis = _kept(module, given, before, x)
            if axis is None and module._modules:
                axis = _agreed(inside, tuple(x.shape), self._width)
            if axis is not None:
                self._note(x, axis)

    def _note(self, x: Tensor, axis: int) -> None:
        weak = StorageWeakRef(x.untyped_storage())
        self._found[weak.cdata] = weak, x.shape[axis], x.stride(axis)
        for around in self._inside:
            around.append((tuple(x.shape), axis))


def _is_plain(x: Tensor) -> bool:
    """Return whether a tensor is strided and not nested."""
    return type(x) is Tensor and not x.is_nested and x.layout == torch.strided


def _kept(module: nn.Module, given: Tensor, axis: int | None, x: Tensor) -> int | None:
    """Return the feature axis after a module without parts, from that of its input."""
    if axis is None:
        return by_kind_of_pool(module, x.ndim)
    home = {c.__module__ for c in type(module).__mro__}
    if x.ndim == given.ndim and home & {f"torch.nn.modules.{name}" for name in KEEPING}:
        return axis
    is_square = given.shape[1:].count(given.shape[axis]) > 1
    return axis if x.shape == given.shape and not is_square else None


def _agreed(
    inside: Sequence[tuple[tuple[int, ...], int]], shape: tuple[int, ...], width: int | None
) -> int | None:
    """Return the feature axis shared by all tensors of equal shape inside a module.

    Where two axes have one size, a part may have exchanged them, unless it is the ``width`` that
    the configuration declares, and the axis is the last.
    """
    axes = {axis for other, axis in inside if other == shape}
    if len(axes) != 1:
        return None
    axis = axes.pop()
    is_declared = axis == len(shape) - 1 and shape[axis] == width
    return axis if is_declared or shape[1:].count(shape[axis]) == 1 else None
