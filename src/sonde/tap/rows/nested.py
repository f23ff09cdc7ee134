"""Nested tensors as padded ones; sparse ones are refused."""

import torch
from torch import Tensor

from sonde.core.errors import ShapeError, SiteError

DENSE = (torch.strided, torch.jagged)


def padded(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return a nested tensor with zeros where the mask has no token."""
    parts = x.unbind()
    if mask is None:
        if len({len(p) for p in parts}) == 1:
            return torch.stack(parts)
        raise SiteError("a nested tensor needs the mask of its tokens. Pass attention_mask.")
    counts = mask.sum(dim=1).tolist()
    if [len(p) for p in parts] != counts:
        raise SiteError(
            f"expected {counts} real tokens as in the mask, got {[len(p) for p in parts]} states."
        )
    out = parts[0].new_zeros(*mask.shape, parts[0].shape[-1])
    out[mask.bool().to(out.device)] = torch.cat(parts)
    return out


def nested_like(old: Tensor, x: Tensor) -> Tensor:
    """Return the tokens of a padded tensor as a nested tensor of the original lengths."""
    parts = [row[: len(part)] for row, part in zip(x, old.unbind(), strict=True)]
    return torch.nested.as_nested_tensor(parts, layout=old.layout)


def require_dense(x: Tensor) -> None:
    """Raise if an output is sparse or distributed, since its rows cannot be copied.

    Raises
    ------
    ShapeError
        With its layout.
    """
    if type(x) is not Tensor and type(x).__name__ == "DTensor":
        raise ShapeError(
            "expected a tensor of one rank, got a DTensor, which several ranks hold. Leave the "
            "site out, or read the module after it."
        )
    if x.layout not in DENSE:
        raise ShapeError(
            "expected a dense output, got an output of layout "
            f"{str(x.layout).removeprefix('torch.')} and shape {tuple(x.shape)}. Leave the site "
            "out, or read the module after it."
        )
