"""Linear layers whose weights are changed."""

from torch import nn

from sonde.core.errors import InputError
from sonde.weights import Change, LowRank


def check_layer(module: nn.Module, layer: str) -> None:
    """Refuse a module that does not multiply by a matrix.

    Raises
    ------
    InputError
        With those inside it that do.
    """
    part = module.get_submodule(layer)
    if is_linear(part):
        return
    inside = linear_layers(module, layer)
    raise InputError(
        f"BatchEdit: expected a linear layer, got {layer}, a {type(part).__name__}. Linear layers "
        f"in it: {', '.join(inside) or 'none'}."
    )


def linear_layers(module: nn.Module, path: str) -> list[str]:
    """Return the paths of the linear layers inside a module, in the order of the module tree."""
    inside = module.get_submodule(path).named_modules()
    return [f"{path}.{name}" for name, part in inside if name and is_linear(part)]


def is_linear(part: nn.Module) -> bool:
    """Return whether a module multiplies by a matrix of float numbers."""
    if not (isinstance(part, nn.Linear) or is_transposed(part)):
        return False
    return part.weight.is_floating_point()  # pyright: ignore[reportCallIssue, reportUnknownVariableType]


def is_transposed(part: nn.Module) -> bool:
    """Return whether a layer holds its weight as (in, out), as those of GPT-2 do."""
    kind = type(part)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def oriented(module: nn.Module, layer: str, change: LowRank) -> dict[str, Change]:
    """Return an update of a layer's matrix (out, in) as the change of its weight."""
    if is_transposed(module.get_submodule(layer)):
        change = LowRank(change.right.T, change.left.T)
    return {f"{layer}.weight": change}
