"""Devices that are not there: ops run on the CPU and refuse what CUDA refuses across devices.

A tensor of device ``far:0`` wraps one on the CPU. As on CUDA all tensors of an op lie on one
device, but numbers without an axis and indices may be on the CPU. No streams, and no gradients.
Import it in a process of its own: torch is told of the device once for all that runs in it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

KIND = "far"
COPIES = {"aten::copy_", "aten::_to_copy", "aten::to", "aten::_copy_from"}
INDEXING = {"aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_"}


class Far(Tensor):
    """A tensor that says it lies on another device; ``near`` is where its numbers are."""

    near: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def __new__(cls, near: Tensor, device: torch.device):
        made = Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            layout=near.layout,
            device=device,
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return run(op, args, kwargs or {})

    def tolist(self):
        return self.near.tolist()

    def data_ptr(self):
        return self.near.data_ptr()

    def numpy(self, **_: Any):
        raise TypeError(f"can't convert {self.device} tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any):
        return self.numpy()


class Pretending(TorchDispatchMode):
    """Inside, tensors can be made on, and brought to, devices of ``KIND``."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return run(op, args, kwargs or {})


def run(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an op gives, on the device on which it would be."""
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    asked = kwargs.get("device")
    far = [t.device for t in tensors if isinstance(t, Far)]
    if not far and (asked is None or torch.device(asked).type != KIND):
        return op(*args, **kwargs)
    place = _place(op._schema.name, tensors, far) if far else torch.device("cpu")
    near, named = tree_map(lambda v: v.near if isinstance(v, Far) else v, (args, kwargs))
    if asked is not None:
        place, named["device"] = _numbered(asked), torch.device("cpu")
    found = op(*near, **named)
    written = _written(op, args, kwargs)
    if written and op._schema.returns:
        return written[0] if len(written) == 1 else tuple(written)
    if written:  # a list of tensors that were changed in place
        return None
    return found if place.type != KIND else tree_map(lambda v: _far(v, place), found)


def _place(name: str, tensors: list[Tensor], far: list[torch.device]) -> torch.device:
    """Return the device of an op's result; refuse tensors that do not lie together."""
    if name in COPIES:
        return tensors[0].device
    place = tensors[0].device if name in INDEXING else far[0]
    others = [t for t in tensors if t.device != place]
    if any(t.device.type != "cpu" or (t.ndim and name not in INDEXING) for t in others):
        places = sorted({str(t.device) for t in tensors})
        raise RuntimeError(f"expected all tensors on one device, got {places} [{name}]")
    return place


def _written(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an op writes to: what it returns are they."""
    declared = op._schema.arguments
    given = [*zip(declared, args, strict=False)]
    given += [(a, kwargs[a.name]) for a in declared if a.name in kwargs]
    return tree_flatten([v for a, v in given if a.alias_info and a.alias_info.is_write])[0]


def _far(value: Any, place: torch.device) -> Any:
    return Far(value, place) if type(value) is Tensor else value


def _numbered(device: Any) -> torch.device:
    device = torch.device(device)
    return torch.device(KIND, device.index or 0) if device.type == KIND else device


def moved(module: nn.Module, device: str) -> nn.Module:
    """Put a module's parameters and buffers on a device; tied ones stay apart."""
    place = _numbered(device)
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(_copied(value.data, place), False)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = _copied(value, place)
    return module


def _copied(x: Tensor, place: torch.device) -> Tensor:
    return Far((x.near if isinstance(x, Far) else x.detach()).clone(), place)


class _Backend(backend_registration._DummyBackendModule):
    def device_count(self) -> int:
        return 2

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def manual_seed(self, seed: int) -> None:
        """Do nothing: random numbers are the CPU's."""


def _empty(size: Any, dtype: Any = None, device: Any = None, **_: Any) -> Far:
    return Far(torch.empty(size, dtype=dtype), _numbered(device))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, device: Any = None, **_: Any) -> Far:
    return Far(torch.empty_strided(size, stride, dtype=dtype), _numbered(device))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    near = [t.near if isinstance(t, Far) else t for t in (source, target)]
    near[1].copy_(near[0])
    return target


backend_registration._setup_privateuseone_for_python_backend(KIND, backend_module=_Backend())
_library = torch.library.Library("aten", "IMPL")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
