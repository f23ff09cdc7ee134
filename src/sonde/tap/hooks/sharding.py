"""Models whose weights are sharded over ranks of ``torch.distributed``, and what a rank sees.

Fully sharded layers (``fully_shard``) compute whole rows. Tensor parallelism splits layers: some
sites are the same on all ranks, as the residual stream is, others hold a part of the units on each
rank. Which is which follows from the values alone, compared over the ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from sonde.core.errors import InputError, SiteError
from sonde.tap.hooks.names import own_class
from sonde.tap.hooks.outputs import changed, leaves

DTENSOR = "DTensor"
SKETCH, ROUNDING = 64, 1e-3
"""Evenly spaced values of a tensor that ranks compare, and the relative distance that is allowed.
"""


def whole_tensor(x: Tensor) -> Tensor:
    """Return a tensor that is sharded over ranks as one plain tensor; others unchanged.

    Every rank has to call. Gradients go back to the shards.
    """
    return x.full_tensor() if _is_sharded(x) else x  # pyright: ignore[reportAttributeAccessIssue]


def is_fully_sharded(root: nn.Module) -> bool:
    """Return whether ``fully_shard`` shards a module or a part of it."""
    return any(_is_fsdp(module) for module in root.modules())


def is_sharded(root: nn.Module) -> bool:
    """Return whether ranks hold parts of a model, so that they have to compute together."""
    return is_fully_sharded(root) or split_layers(root) is not None


def release_gathered(root: nn.Module) -> None:
    """Free the weights that a forward pass of a fully sharded model left gathered on each rank."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return  # no model is sharded, and a walk over all modules costs as much as a small layer
    for module in root.modules():
        if _is_fsdp(module):
            module.reshard()  # pyright: ignore[reportCallIssue]


def computing_type(root: nn.Module) -> torch.dtype | None:
    """Return the type in which a fully sharded model computes, if its policy names one."""
    policies = [m._get_fsdp_state()._mp_policy for m in root.modules() if _is_fsdp(m)]  # pyright: ignore
    return next((p.param_dtype for p in policies if p.param_dtype is not None), None)


def require_whole(owner: str, root: nn.Module) -> None:
    """Raise if tensor parallelism splits layers over ranks: a rank sees a part of their units.

    Fully sharded models are not meant: their layers compute whole rows.
    """
    for name, _ in _split_weights(root):
        raise SiteError(
            f"{owner}: expected whole layers, got {name} as a DTensor: tensor parallelism "
            "splits it over ranks, so each rank sees a part of the units under the numbers "
            "of others. Use the model before parallelize_module, one process per device."
        )


def require_one_kind(owner: str, root: nn.Module) -> None:
    """Raise if a model is sharded in a way whose states no rank sees whole."""
    given: Any = root
    if not isinstance(given, nn.Module):
        raise InputError(
            f"{owner}: expected a module, got {type(given).__name__}. A stage of a pipeline holds "
            "some of the blocks: pass its module (stage.submod) with the inputs of that rank, or "
            "the model before it is split."
        )
    for module in root.modules():
        name = type(module).__name__
        if name == "FullyShardedDataParallel":
            raise SiteError(
                f"{owner}: {name} flattens its weights, which is not supported. Shard the model "
                "with fully_shard (FSDP2), or pass the module before it is sharded."
            )
    if is_fully_sharded(root):
        for name, _ in _split_weights(root):
            raise SiteError(
                f"{owner}: expected a model that is fully sharded or tensor parallel, got both: "
                f"tensor parallelism splits {name}, and fully_shard shards other weights or its "
                "parts. Use one of the two; fully_shard over a mesh of replicas and shards is one."
            )
    _ = split_layers(root)


def require_own(owner: str, root: nn.Module) -> None:
    """Raise if the weights of a model are sharded over ranks in any way."""
    require_one_kind(owner, root)
    require_whole(owner, root)
    if is_fully_sharded(root):
        raise SiteError(
            f"{owner}: expected whole weights, got {type(root).__name__}, which fully_shard "
            "shards over ranks. Use the model before it is sharded, one process per device."
        )


@dataclass(frozen=True, eq=False)
class SplitLayers:
    """Layers of a model that tensor parallelism splits over the ranks of a group.

    Parameters
    ----------
    example : str
        Name of a weight that is split.
    group : ProcessGroup
        The ranks that hold its parts.
    """

    example: str
    group: Any

    @property
    def n_ranks(self) -> int:
        """Number of ranks that hold parts of the layers."""
        return distributed.get_world_size(self.group)

    def gathered(self, value: Any) -> Any:
        """Return a module's inputs or outputs with every DTensor gathered on each rank."""
        return changed(value, lambda _, x: whole_tensor(x)) if _has_sharded(value) else value

    def returned(self, old: Any, new: Any) -> Any:
        """Return a module's new output in the layout of its old output."""
        layouts = leaves(old)
        return changed(new, lambda key, x: _like(layouts.get(key), x))

    def part_of(self, module: nn.Module, value: Any, *, is_output: bool = True) -> str | None:
        """Return the key of a tensor that is a part on this rank, or None.

        Every rank of the group has to call, in the same order.
        """
        tensors = {k: x for k, x in leaves(value).items() if x.is_floating_point()}
        for key, x in tensors.items():
            if (is_output and _has_parts(module, x)) or self._differs(x):
                return key
        return None

    def require_same_inputs(self, owner: str, given: Any) -> None:
        """Raise if ranks call the model with different inputs; every rank has to call."""
        for key, x in leaves(self.gathered(given)).items():
            if self._differs(x):
                raise InputError(
                    f"{owner}: expected the same inputs on all {self.n_ranks} ranks, got other "
                    f"values of input {key} on some. Tensor parallelism computes one batch on all "
                    "ranks: give every rank the same data in the same order."
                )

    def _differs(self, x: Tensor) -> bool:
        """Return whether ranks hold different shapes or values."""
        shape, values = _sketch(x)
        both = torch.cat([shape, -shape, values, -values])
        distributed.all_reduce(both, distributed.ReduceOp.MAX, group=self.group)
        high_shape, low_shape, high, low = both.split([len(shape)] * 2 + [len(values)] * 2)
        size = torch.maximum(high.abs(), low.abs()).amax()
        far = (high + low).amax() > ROUNDING * size
        return bool(far | (high_shape != -low_shape).any())

    def error(self, owner: str, site: str, key: str) -> SiteError:
        """Return the error for a site that differs between ranks."""
        which = f"tensor {key!r} of {site!r}" if key else f"{site!r}"
        rank = distributed.get_rank(self.group)
        return SiteError(
            f"{owner}: expected the same states on all {self.n_ranks} ranks, got other values of "
            f"{which} on rank {rank} than elsewhere: tensor parallelism splits layers (such as "
            f"{self.example}, a DTensor), so a rank holds a part of the units there. Use a site "
            "that is whole, as the output of a block is, or the model before it is split."
        )


def split_layers(root: nn.Module) -> SplitLayers | None:
    """Return the layers that tensor parallelism splits, or None if every layer is whole.

    Raises
    ------
    SiteError
        If layers are split along several axes of a device mesh.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    if distributed.get_world_size() == 1:
        return None  # as in vLLM's process: a walk over all weights costs a third of a verdict
    for name, x in _split_weights(root):
        mesh = x.device_mesh
        axes = [i for i, placement in enumerate(x.placements) if not placement.is_replicate()]
        if len(axes) > 1:
            raise SiteError(
                f"Tap: expected layers split along one axis of a device mesh, got {name} split "
                f"along {len(axes)}. Use one axis for tensor parallelism."
            )
        if axes and mesh.size(axes[0]) > 1:
            return SplitLayers(name, mesh.get_group(axes[0]))
    return None


def _is_fsdp(module: nn.Module) -> bool:
    return own_class(module) is not type(module)


def _is_sharded(x: Tensor) -> bool:
    return type(x).__name__ == DTENSOR or type(x.data).__name__ == DTENSOR


def _has_sharded(value: Any) -> bool:
    return any(_is_sharded(x) for x in leaves(value).values())


def _sharded_weights(root: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, x in root.named_parameters():
        if _is_sharded(x):
            yield name, x


def _split_weights(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the weights that are sharded for tensor parallelism."""
    fully = {id(x) for m in root.modules() if _is_fsdp(m) for x in m.parameters()}
    for name, x in _sharded_weights(root):
        if id(x) not in fully or _n_splits(x) > 1:
            yield name, x


def _n_splits(x: Any) -> int:
    return sum(not placement.is_replicate() for placement in x.placements)


def _has_parts(module: nn.Module, x: Tensor) -> bool:
    """Return whether a tensor has the width of this rank's part of a module's split weight."""
    weight: Any = module._parameters.get("weight")
    if weight is None or not _is_sharded(weight) or not x.ndim:
        return False
    width, own = weight.shape[0], weight.to_local().shape[0]
    return own != width and x.shape[-1] == own


def _sketch(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shape of a tensor, and its mean size with evenly spaced values, all finite."""
    flat = x.detach().reshape(-1).float()
    index = torch.linspace(0, max(len(flat) - 1, 0), SKETCH, dtype=torch.float64).round().long()
    values = flat[index.to(flat.device)] if len(flat) else flat.new_zeros(SKETCH)
    size = flat.abs().mean()[None] if len(flat) else flat.new_zeros(1)
    numbers = torch.cat([values, size]).nan_to_num(0.0, 0.0, 0.0)
    shape = torch.tensor([x.ndim, *x.shape, *[0] * 8][:9], dtype=torch.float32, device=x.device)
    return shape, numbers


def _like(old: Tensor | None, new: Tensor) -> Tensor:
    """Return a tensor that all ranks hold in the layout of another one."""
    if old is None or not _is_sharded(old) or _is_sharded(new):
        return new
    from torch.distributed.tensor import DTensor, Replicate

    layout: Any = old
    mesh = layout.device_mesh
    same = DTensor.from_local(new, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return same.redistribute(placements=layout.placements)
