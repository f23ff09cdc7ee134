"""Whether states at a module come time first, (time, row, dim): torch's default for sequences."""

import weakref
from collections.abc import Mapping

from torch import Tensor, nn

_STACKS = (
    nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)  # fmt: skip


def has_time_first(module: nn.Module) -> bool | None:
    """Return whether a module works on (time, row, dim); None if it does not declare it.

    ``batch_first`` says so, in torch's stacks that of the attention inside.

    Examples
    --------
    >>> has_time_first(nn.LSTM(2, 3)), has_time_first(nn.Linear(2, 3))
    (True, None)
    """
    parts = module.modules() if isinstance(module, _STACKS) else (module,)
    flags = (getattr(part, "batch_first", None) for part in parts)
    return next((not flag for flag in flags if isinstance(flag, bool)), None)


def is_time_first(path: str, modules: Mapping[str, nn.Module]) -> bool | None:
    """Return whether the states at a path are (time, row, dim); None if nothing declares it.

    The module itself or the nearest one around it tells. A model without a module that takes time
    first has none of its states so.

    Parameters
    ----------
    path : str
    modules : mapping of str to nn.Module
        All modules of the model by path; the model itself is "".
    """
    parts = path.split(".") if path else []
    for i in range(len(parts), -1, -1):
        found = has_time_first(modules[".".join(parts[:i])])
        if found is not None:
            return found
    return None if any(has_time_first(m) for m in modules.values()) else False


_KNOWN: "weakref.WeakKeyDictionary[nn.Module, set[int]]" = weakref.WeakKeyDictionary()


def rows_first(x: Tensor, module: nn.Module, root: nn.Module) -> Tensor:
    """Return states with the rows first, a view; as they are if nothing says that time is first.

    Parameters
    ----------
    x : Tensor
        Output or input of ``module``, a part of ``root``.
    module, root : nn.Module
    """
    if x.ndim != 3 or x.is_nested:
        return x
    if root not in _KNOWN:
        modules = dict(root.named_modules(remove_duplicate=False))
        told = any(has_time_first(part) for part in modules.values())
        ids = (id(m) for path, m in modules.items() if told and is_time_first(path, modules))
        _KNOWN[root] = set(ids)
    return x.transpose(0, 1) if id(module) in _KNOWN[root] else x
