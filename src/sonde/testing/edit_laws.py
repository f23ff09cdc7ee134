"""What every edit promises, as functions that fail with AssertionError where it is broken."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from sonde.core.edit import Edit, EditContext
from sonde.core.site import Site

WIDTH = 4
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SITE = Site("layers.0")


def activations(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return activations (example, pos, dim) of width 4."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 5, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def apply(edit: Edit, x: Tensor) -> Tensor:
    """Return the changed activations, all tokens real."""
    position = torch.arange(x.shape[1]).expand(x.shape[:2])
    return edit.apply(x, SITE, EditContext(torch.ones(x.shape[:2]).bool(), position))


def has_strength(edit: Edit) -> bool:
    """Whether one of its parameters is a strength."""
    return is_dataclass(edit) and "strength" in {f.name for f in fields(edit)}


def law_strength(edit: Edit) -> None:
    """Strength 0 returns the very tensor that came in."""
    x = activations()
    assert apply(replace(cast(Any, edit), strength=0.0), x) is x, "strength 0 gives another tensor"


def law_kept(edit: Edit) -> None:
    """Shape and float type stay; the tensor that came in is not written into."""
    for dtype in FLOATS:
        x = activations(dtype)
        before = x.clone()
        found = apply(edit, x)
        assert found.shape == x.shape, f"shape {tuple(found.shape)} of {tuple(x.shape)}"
        assert found.dtype == dtype, f"{found.dtype} of {dtype}"
        assert torch.equal(x, before), f"the activation was changed in place, in {dtype}"


def law_rows(edit: Edit) -> None:
    """What becomes of an example does not depend on the others of its batch."""
    x = activations()
    other = x.clone()
    other[0] = -3 * other[0] + 1
    kept, found = apply(edit, x)[1:], apply(edit, other)[1:]
    gap = float((kept - found).abs().max())
    assert gap < 1e-12, f"other examples moved by {gap:.3g}"


def law_again(edit: Edit) -> None:
    """The global random state does not matter."""
    torch.manual_seed(1)
    first = apply(edit, activations())
    torch.manual_seed(2)
    assert torch.equal(first, apply(edit, activations())), "two runs differ"
