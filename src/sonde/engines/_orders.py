"""What a worker of vLLM is asked to do: take states behind blocks, and change them by edits."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from sonde.core.edit import AffineMap
from sonde.core.errors import InputError
from sonde.tap.hand.editing import OpenEdit
from sonde.tap.hooks.session import open_sessions

ACTING = ("editing", "caching", "shortening", "training")
"""Sessions that change what a forward pass computes."""
Order = tuple[str, tuple[Any, ...]]
"""A method of the worker, and its arguments."""


@dataclass(frozen=True, eq=False)
class BlockChange:
    """An affine change of the states behind one block.

    Parameters
    ----------
    path : str
    map : AffineMap
    where : OpenEdit
        The edit, which says which tokens it changes.
    """

    path: str
    map: AffineMap
    where: OpenEdit

    def to_message(self) -> dict[str, Any]:
        """Return the change as a worker in another process can receive it."""
        parts = {"shift": self.map.shift, "left": self.map.left, "right": self.map.right}
        tensors = {n: x.detach().cpu().contiguous() for n, x in parts.items() if x is not None}
        places = self.where.places
        return {
            "path": self.path,
            "tensors": save(tensors),
            "scale": float(self.map.scale),
            "words": sorted(places.words),
            "positions": list(places.positions),
            "ids": list(places.ids),
        }


@dataclass(eq=False)
class Orders:
    """The orders that a worker has followed so far.

    Parameters
    ----------
    watched : tuple of str
        Blocks whose states are taken.
    edits : tuple of OpenEdit
        Open edits that the worker applies.
    """

    watched: tuple[str, ...] = ()
    edits: tuple[OpenEdit, ...] = ()

    def update(
        self, root: nn.Module, blocks: Mapping[str, nn.Module], kept: Collection[str] = ()
    ) -> list[Order]:
        """Return what to tell the worker, so that it follows what is open on a module now.

        Parameters
        ----------
        root : nn.Module
        blocks : mapping of str to nn.Module
        kept : collection of str
            Blocks whose states are taken in any case.

        Raises
        ------
        InputError
            If something is open that does not act inside vLLM.
        """
        watched = tuple(path for path, b in blocks.items() if path in kept or _is_hooked(b))
        edits = _open_edits(root)
        if (watched, edits) == (self.watched, self.edits):
            return []
        changes = [change for edit in edits for change in _changes_of(edit, blocks)]
        self.watched, self.edits = watched, edits
        return [("sonde_watch", ([*watched], [change.to_message() for change in changes]))]


def take(lengths: Mapping[str, int], *, forget: bool = True) -> Order:
    """Return the order for the states of requests, by name and number of positions."""
    return "sonde_take", (dict(lengths), os.getpid(), forget)


def as_states(answer: Sequence[dict[str, Tensor] | bytes]) -> list[dict[str, Tensor]]:
    """Return the states that a worker gave, in this process or another one."""
    return [load(one) if isinstance(one, bytes) else one for one in answer]


def _is_hooked(block: nn.Module) -> bool:
    return bool(block._forward_hooks or block._forward_pre_hooks)


def _open_edits(root: nn.Module) -> tuple[OpenEdit, ...]:
    """Return the edits that are open on a module and act in this context, in their order."""
    edits: list[OpenEdit] = []
    for session in open_sessions():
        if session.root is not root or session._owner not in ACTING or not session.acts_here:
            continue
        if session.change is None:
            raise InputError(
                f"engine vllm: {session._owner} changes forward passes of transformers, and "
                "would not reach vLLM. Load the model without engine='vllm' for it."
            )
        edits.append(session.change)
    return tuple(edits)


def _changes_of(edit: OpenEdit, blocks: Mapping[str, nn.Module]) -> list[BlockChange]:
    """Return an open edit as changes behind blocks.

    Raises
    ------
    InputError
        If the edit acts elsewhere, or on more than each token's state by itself.
    """
    affine, kind = edit.edit.as_affine(), type(edit.edit).__name__
    if affine is None or edit.depends_on_text:
        reason = "depends on a gate or on other runs" if affine is not None else "is not affine"
        raise InputError(
            f"engine vllm: expected an edit that adds to states or projects them, got {kind}, "
            f"which {reason}. Load the model without engine='vllm' for it."
        )
    for site in edit.sites:
        if site.path not in blocks or site.port != "out" or site.call is not None:
            raise InputError(
                f"engine vllm: expected edits behind blocks, got {kind} at {site}. Name "
                f"{next(iter(blocks))} or another block, or leave out engine='vllm'."
            )
    return [] if _is_identity(affine) else [BlockChange(s.path, affine, edit) for s in edit.sites]


def _is_identity(affine: AffineMap) -> bool:
    """Return whether a map changes nothing, as at strength 0."""
    parts: Sequence[Any] = (affine.shift, affine.left)
    return affine.scale == 1.0 and all(x is None or not bool(torch.any(x)) for x in parts)
