"""A packed weight as a tensor that is unpacked on use, for code that reads ``layer.weight``.

Models read more of a layer than its output: T5 asks for the type of a weight, Mamba multiplies by
one, ``nn.MultiheadAttention`` hands one to a function. Shape, type and device cost nothing; rows of
the first axis are unpacked alone; every other operation unpacks the whole weight for its duration.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from sonde.core.errors import StateError


@runtime_checkable
class Unpacks(Protocol):
    """Container of the codes of a tensor."""

    def rows(self, part: Any) -> Float[Tensor, "..."]:
        """Return the rows that a slice or an index tensor selects from the first axis."""
        ...

    def product(self, x: Tensor) -> Tensor:
        """Return ``x W^T`` in the dtype of ``x``, without a gradient."""
        ...


class PackedTensor(Tensor):
    """A weight stored as codes, which is unpacked by the operation that reads it.

    No gradient flows to it: what reads it sees a frozen weight.

    Parameters
    ----------
    source : Unpacks
    shape : sequence of int
    dtype : torch.dtype
    device : torch.device
    """

    source: Unpacks
    _is_hf_initialized = True  # transformers gives first values to all weights but these

    @staticmethod
    def __new__(
        cls, source: Unpacks, shape: Any, dtype: torch.dtype, device: torch.device
    ) -> "PackedTensor":
        """Return a tensor without storage."""
        wrapper = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)  # pyright: ignore[reportAttributeAccessIssue]
        wrapper.source = source
        return wrapper

    def unpacked(self, part: Any = slice(None)) -> Float[Tensor, "..."]:
        """Return the weight, or some rows of its first axis, as a plain tensor."""
        return self.source.rows(part).to(self.dtype)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function; frequent functions do not unpack the whole weight."""
        kwargs = kwargs or {}
        own = _OWN.get(func)
        with torch._C.DisableTorchFunctionSubclass():
            result = NotImplemented if own is None else own(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on the unpacked weight.

        Raises
        ------
        StateError
            If the operation would change the weight.
        """
        if func._schema.is_mutable and isinstance(args[0], PackedTensor):
            raise StateError(
                f"packed weight: expected an operation that reads it, got {func.overloadpacket}. "
                "Change sonde.weights.unpacked(model): the same weights in plain layers."
            )
        whole = tree_map_only(PackedTensor, lambda x: x.unpacked(), (args, kwargs or {}))
        return func(*whole[0], **whole[1])


def _linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Any:
    """Multiply as the source does, unless the product needs a gradient."""
    is_ours = isinstance(weight, PackedTensor) and not isinstance(x, PackedTensor)
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    if not is_ours or needs_gradient or x.dtype != weight.dtype or weight.ndim != 2:
        return NotImplemented
    out = weight.source.product(x)
    return out if bias is None else out + bias


def _embedding(
    index: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *rest: Any, **more: Any
) -> Any:
    if not isinstance(weight, PackedTensor) or max_norm is not None:
        return NotImplemented
    return weight.unpacked(index.flatten()).reshape(*index.shape, weight.shape[1])


def _rows(weight: Any, part: Any) -> Any:
    if not isinstance(weight, PackedTensor) or isinstance(part, bool):
        return NotImplemented
    if isinstance(part, Tensor):
        is_index = part.dtype in (torch.int64, torch.int32) and part.ndim < 2
        return (
            weight.unpacked(part.reshape(-1)).reshape(*part.shape, *weight.shape[1:])
            if is_index
            else NotImplemented
        )
    if isinstance(part, int) and -len(weight) <= part < len(weight):
        return weight.unpacked(slice(part % len(weight), part % len(weight) + 1))[0]
    return weight.unpacked(part) if isinstance(part, slice) else NotImplemented


_OWN: dict[Any, Any] = {
    functional.linear: _linear,
    functional.embedding: _embedding,
    Tensor.__getitem__: _rows,
    Tensor.numpy: lambda x, **how: x.unpacked().numpy(**how),
    Tensor.tolist: lambda x: x.unpacked().tolist(),
    Tensor.__repr__: lambda x, **how: repr(x.unpacked()),
    Tensor.__array__: lambda x, *how: x.unpacked().__array__(*how),
    Tensor.__deepcopy__: lambda x, memo: x.unpacked(),
}
