"""Whether states at a module come time first, (time, row, dim): torch's default for sequences."""

from collections.abc import Mapping

from torch import nn

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
    here = path
    while True:
        found = has_time_first(modules[here])
        if found is not None:
            return found
        if not here:
            break
        here = here.rpartition(".")[0]
    return None if any(has_time_first(m) for m in modules.values()) else False
