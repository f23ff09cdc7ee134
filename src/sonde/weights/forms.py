"""Forms that replace a part of a model, as described in its configuration.

The description of a form has a key that no other form has: ``{"bits": 4, "group": 32}`` is a layer
of packed codes, ``{"rank": 8}`` one of two thin matrices. A description with new shapes and another
form gives the part its new shapes first. A form is made empty; the tensors come from a plan or from
files.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.errors import StoreError
from sonde.weights._kinds import in_and_out, is_linear, kind_of
from sonde.weights.linear_block import LinearBlock
from sonde.weights.packed_tensor import PackedTensor
from sonde.weights.packing import packed_length, unpack
from sonde.weights.quant_linear import QuantLinear
from sonde.weights.quant_tensor import HeldTensor, QuantTensor, hold_in_place, read_from
from sonde.weights.shared_tensor import SharedTensor
from sonde.weights.thin_linear import ThinLinear
from sonde.weights.unpacked_linear import CodebookLinear, StackLinear, UnpackedLinear

Told = Mapping[str, Any]
TIED = "tied"
"""Key of the form of a part whose tensors are the packed tensors of another part."""
RESIZED = frozenset(("shapes", "numbers"))
"""Keys of the form of a part whose tensors have other shapes."""
_BY_LEAF = frozenset(("shapes", "tensors", TIED))
"""Keys of forms that describe each tensor of a part by its name."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SIZES: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (nn.Linear, ("out_features", "in_features")),
    (nn.Embedding, ("num_embeddings", "embedding_dim")),
    (nn.BatchNorm1d, ("num_features",)),
    (nn.BatchNorm2d, ("num_features",)),
    (nn.BatchNorm3d, ("num_features",)),
    (nn.PReLU, ("num_parameters",)),
)
"""What layers call the axes of their weights."""


def put_form(module: nn.Module, name: str, told: Told) -> nn.Module:
    """Replace a part by its empty form under all of its names, and return the form.

    Raises
    ------
    StoreError
        If the model has no such part, or the form is unknown or for another kind of part.
    """
    try:
        part = module.get_submodule(name)
    except AttributeError:
        raise StoreError(
            f"{type(module).__name__}: the configuration names {name} as a packed layer, but the "
            "model has no such layer. Open the model by the class that it was saved from."
        ) from None
    if TIED in told:
        _tie(module, part, told[TIED])
        return part
    if "shapes" in told and told.keys() - RESIZED:
        _resized(part, **{key: value for key, value in told.items() if key in RESIZED})
        rest = {key: value for key, value in told.items() if key not in RESIZED}
        return put_form(module, name, rest)
    make = next((form for key, form in _FORMS.items() if key in told), None)
    if make is None:
        raise StoreError(
            f"{name}: the configuration describes a packed layer with the keys "
            f"{', '.join(told)}, which this version does not know. Open it with the version "
            "of sonde that wrote it."
        )
    new = make(part, **told)
    if new is not part:
        put_part(module, part, new)
    return new


def joined_forms(earlier: Mapping[str, Told], later: Mapping[str, Told]) -> dict[str, Told]:
    """Return the forms of each part after both changes, in order."""
    joined = dict(earlier)
    for name, form in later.items():
        own = joined.get(name, {})
        both = {key: {**own[key], **form[key]} for key in own.keys() & form.keys() & _BY_LEAF}
        joined[name] = {**own, **form, **both}
    return joined


def name_in(module: nn.Module, name: str) -> str | None:
    """Return this model's name for a part that another class calls ``name``, or None.

    A classifier of transformers holds its body under a prefix (``vit.layers.1``), which the body
    alone lacks.
    """
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    for own in (name, name.removeprefix(prefix), prefix + name):
        try:
            module.get_submodule(own)
        except AttributeError:
            continue
        return own
    return None


def is_packed(part: nn.Module) -> bool:
    """Return whether a part is a layer whose weight is packed."""
    return isinstance(part, QuantLinear | HeldTensor | ThinLinear | UnpackedLinear)


def finish_form(module: nn.Module, name: str) -> bool:
    """Restore the original layer of a part that waited for its tensors; return whether it did."""
    part = module.get_submodule(name)
    if not isinstance(part, PackedZeros):
        return False
    put_part(module, part, part.opened())
    return True


def put_part(module: nn.Module, part: nn.Module, new: nn.Module) -> None:
    """Replace a part by a module, under each of its names."""
    above, seen = [module], {id(module)}
    for one in above:  # grows; names of all modules would take longer than all else here
        for own, child in one._modules.items():
            if child is part:
                one._modules[own] = new
            elif child is not None and id(child) not in seen:
                seen.add(id(child))
                above.append(child)


def fill(part: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into an empty form."""
    own: dict[str, Tensor] = {**dict(part.named_parameters()), **dict(part.named_buffers())}
    for name, value in tensors.items():
        own[name].detach().copy_(value)


def _linear(kind: Callable[..., Any]) -> Callable[..., nn.Module]:
    """Return a function that creates a ``kind`` with a linear layer's size and bias."""

    def form(layer: Any, **told: Any) -> nn.Module:
        if not is_linear(layer):
            raise _unlike(layer, "a linear layer")
        with torch.device(layer.weight.device):
            new = kind(*in_and_out(layer), **told, bias=False)
        new.bias = layer.bias
        for own in new.parameters():
            if own is not layer.bias:
                own.requires_grad_(layer.weight.requires_grad)
        return new.to(layer.weight.dtype).train(layer.training)

    return form


def _zeros(layer: Any, kept: int, shape: Sequence[int]) -> nn.Module:
    if kind_of(layer) in (None, "rows"):
        raise _unlike(layer, "a linear layer or a convolution")
    return PackedZeros(layer, int(kept), list(shape)).to(layer.weight.device)


def _packed_tensors(part: nn.Module, tensors: Mapping[str, Told]) -> nn.Module:
    """Store tensors of a part in smaller forms, without changing the part's class."""
    for leaf, form in tensors.items():
        old = part._parameters.get(leaf)
        if old is None or list(old.shape) != list(form["shape"]):
            raise _unlike(part, f"a part with {leaf} of the shape {form['shape']}")
        hold_in_place(part, leaf, SharedTensor if "slots" in form else QuantTensor, form)
    return part


def _tie(module: nn.Module, part: nn.Module, tied: Mapping[str, str]) -> None:
    """Tie tensors of a part to the packed tensors of another part."""
    for leaf, source in tied.items():
        own = name_in(module, source)
        if own is None or part._parameters.get(leaf) is None:
            raise _unlike(part, f"a part whose {leaf} is that of {source}")
        read_from(part, leaf, module.get_submodule(own))


def _resized(
    part: Any, shapes: Mapping[str, Sequence[int]], numbers: Mapping[str, int] | None = None
) -> nn.Module:
    """Change the shapes of a part's tensors, and the attributes with these sizes."""
    numbers = numbers or {}
    for leaf, shape in shapes.items():
        held = part._parameters if leaf in part._parameters else part._buffers
        old = held.get(leaf)
        if old is None and leaf in held and leaf == "bias":
            old = part.weight  # a layer made without bias gets one of the same type
        if old is None:
            raise _unlike(part, f"a part with {leaf}")
        new = torch.zeros(tuple(shape), dtype=old.dtype, device=old.device)
        is_trained = isinstance(old, nn.Parameter)
        held[leaf] = nn.Parameter(new, old.requires_grad) if is_trained else new
    for name, value in numbers.items():
        if type(vars(part).get(name)) is not int or type(value) is not int:
            raise _unlike(part, f"a part with a whole number {name}")
    for name, value in {**numbers, **_sizes(part, shapes, numbers)}.items():
        setattr(part, name, value)
    return part


def _sizes(
    part: Any, shapes: Mapping[str, Sequence[int]], numbers: Mapping[str, int]
) -> dict[str, Any]:
    """Return the attributes that hold the sizes of a layer's weight."""
    if not shapes.keys() - {"bias"}:
        return {}
    shape = tuple(shapes.get("weight") or next(iter(shapes.values())))
    if isinstance(part, _CONVOLUTIONS):
        groups = numbers.get("groups", part.groups)
        return {"out_channels": shape[0], "in_channels": shape[1] * groups}
    if isinstance(part, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": shape}
    if kind_of(part) == "transposed":
        return {"nx": shape[0], "nf": shape[1]}
    names = next((names for kind, names in _SIZES if isinstance(part, kind)), ())
    return dict(zip(names, shape, strict=False))


def _fewer(
    part: Any,
    blocks: Sequence[int],
    linear: Mapping[str, Sequence[int]] | None = None,
    first: bool = False,
) -> nn.Module:
    """Keep some blocks of a list; negative numbers are linear maps that replace blocks.

    The remaining blocks get new places in a cache (``layer_idx``).
    """
    most, sizes = max(blocks, default=0), linear or {}
    if not isinstance(part, nn.ModuleList | nn.Sequential) or most >= len(part):
        raise _unlike(part, f"a list of more than {most} blocks")
    like, kept = next(part.parameters()), list[nn.Module]()
    for i in blocks:
        new = LinearBlock(*sizes[str(i)], first=first) if i < 0 else part[i]
        kept.append(new.to(like.device, like.dtype).train(part.training) if i < 0 else new)
    part._modules = {str(i): block for i, block in enumerate(kept)}
    place = 0
    for block in kept:
        counted = [inner for inner in block.modules() if "layer_idx" in vars(inner)]
        for inner in counted:
            inner.__dict__["layer_idx"] = place
        place += bool(counted)
    return part


def _unlike(part: nn.Module, wanted: str) -> StoreError:
    return StoreError(
        f"expected {wanted} for the format that the configuration describes, got a "
        f"{type(part).__name__}. Open the model by the class that it was saved from."
    )


_FORMS: dict[str, Callable[..., nn.Module]] = {
    "bits": _linear(QuantLinear),
    "rank": _linear(ThinLinear),
    "levels": _linear(StackLinear),
    "book_bits": _linear(CodebookLinear),
    "tensors": _packed_tensors,
    "kept": _zeros,
    "shapes": _resized,
    "blocks": _fewer,
}


# In memory the weight is an ordinary one: on common processors a product with half of the weights
# at 0 is not faster than the plain product, and unpacking at each use would make it slower.
class PackedZeros(nn.Module):
    """Holds a pruned weight in its file format while a model is loaded.

    Parameters
    ----------
    layer : nn.Module
        The layer that takes the weight; its bias is read meanwhile under this module's name.
    kept : int
        Entries that are not 0.
    shape : list of int
    """

    mask: Tensor
    kept: Tensor

    def __init__(self, layer: Any, kept: int, shape: list[int]) -> None:
        super().__init__()
        self.layer = [layer]  # in a list: no part of this module
        self.shape = tuple(shape)
        n_bytes = packed_length(prod(shape), 1)
        self.register_buffer("mask", torch.zeros(n_bytes, dtype=torch.uint8))
        self.register_buffer("kept", torch.zeros(kept, dtype=layer.weight.dtype))
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:
        """The weight, for classes that read it during loading."""
        return PackedTensor(self, self.shape, self.kept.dtype, self.kept.device)

    def rows(self, part: Any) -> Float[Tensor, "..."]:
        """Return the rows of the weight that a slice or a tensor selects."""
        return unpacked_zeros(self.mask, self.kept, self.shape)[part]

    def product(self, x: Tensor) -> Tensor:
        """Return ``x W^T``."""
        return functional.linear(x, self.rows(slice(None)))

    def opened(self) -> nn.Module:
        """Return the original layer with its dense weight."""
        (layer,) = self.layer
        weight = self.rows(slice(None))
        layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
        layer.bias = self.bias
        return layer


def unpacked_zeros(
    mask: UInt8[Tensor, "bytes"], kept: Float[Tensor, "n"], shape: tuple[int, ...]
) -> Float[Tensor, "..."]:
    """Return the dense weight from a mask and the kept entries."""
    there = unpack(mask, 1, prod(shape)).bool()
    whole = torch.zeros(prod(shape), dtype=kept.dtype, device=kept.device)
    whole[there] = kept
    return whole.reshape(shape)
