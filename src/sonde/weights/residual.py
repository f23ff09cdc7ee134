"""Tensors that write to a model's residual stream, found by following sums.

One small forward is watched. The output of a linear layer or an embedding is a term, and so is a
parameter. A sum of tensors has the terms of all of them; views, copies and concatenations keep the
terms. A tensor that does not depend on the input, such as positions in a buffer, is fixed and may
be added. If something else is added, or a norm or a gate stands in between, the stream is no sum of
terms, and the obstacle is named.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from sonde.core.errors import InputError, SiteError, StateError
from sonde.core.inputs import Model
from sonde.core.model_config import is_encoder_decoder
from sonde.core.operations import OperationMode
from sonde.core.site import Site
from sonde.data._model_kind import config_of
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import find, leaves
from sonde.tap.model.sites import BLOCKS, SILENT, resolve
from sonde.weights._layer import Layer, layer_of, names_of
from sonde.weights.live import module_of

_KEEPS = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "transpose",
        "permute",
        "t",
        "expand",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "clone",
        "alias",
        "detach",
        "_to_copy",
        "embedding",
        "index_select",
    }
)
"""Operations after which each row is still a row of the same sum."""
_ADDS = frozenset(("add", "add_"))
COMPUTED = "a tensor that the forward pass computes identically for every input"


@dataclass(frozen=True)
class Sum:
    """A tensor as a sum of terms.

    Parameters
    ----------
    terms : tuple of Layer or str
        Layers whose outputs are added, and names of parameters, in the order of execution.
    other : str
        Description of anything else in the tensor; empty if there is nothing else.
    fixed : tuple of str
        What is added for every input alike: names of buffers, or ``COMPUTED``.
    """

    terms: tuple[Layer | str, ...]
    other: str = ""
    fixed: tuple[str, ...] = ()


def residual_writers(
    model: Model | nn.Module, inputs: Any = None, site: str | Site = BLOCKS
) -> tuple[Layer | str, ...]:
    """Return the terms whose sum is the residual stream after the last block.

    For a transformer: token and position embeddings, and of each block the output layers of its
    attention and of its MLP. To take a direction out of the stream, take it out of each of them.

    Parameters
    ----------
    model : Model or nn.Module
        Model to read; it is left as it was.
    inputs : tensor, tuple or dict, optional
        What the model is called with; made from its configuration where there is one.
    site : str or Site, default="blocks"
        Where the stream is: the last of the sites that this argument names.

    Returns
    -------
    tuple of Layer or str
        Layers (``layer.name`` is the module's), and names of parameters and of saved buffers that
        are added themselves.

    Raises
    ------
    StateError
        If the stream is no sum of linear layers' outputs: a norm or a gate stands in between, or
        something is added that the model does not save.

    Examples
    --------
    >>> import sonde
    >>> model = sonde.load("sonde:stdlib", device="cpu")
    >>> [x.name for x in residual_writers(model)][:3]
    ['model.embed_tokens', 'model.layers.0.self_attn.o_proj', 'model.layers.0.mlp.down_proj']
    """
    module = module_of(model)
    last = resolve(module, site)[-1]
    sums = sums_at(module, [last], inputs)[0]
    if sums.other:
        raise StateError(
            f"residual_writers: at {last} the residual stream is not a sum of outputs of "
            f"linear layers: {sums.other}. Open the edit with sonde.editing instead."
        )
    unsaved = [name for name in sums.fixed if name not in module.state_dict()]
    if unsaved:
        raise StateError(
            f"residual_writers: at {last} the residual stream also contains {unsaved[0]}, "
            "which is not saved with the weights. Open the edit with sonde.editing instead."
        )
    return (*sums.fixed, *sums.terms)


def residual_readers(model: Model | nn.Module, inputs: Any = None) -> dict[str, tuple[str, ...]]:
    """Return the modules that read a sum of layers' outputs, and the layers in each sum.

    For a transformer: the norms before attentions and MLPs and the last one; without norms, the
    layers of queries, keys and values themselves. Modules with submodules are left out, and so are
    modules that read a single layer whose output is added to no other output.

    Parameters
    ----------
    model : Model or nn.Module
        Model to read; it is left as it was.
    inputs : tensor, tuple or dict, optional
        Inputs of a forward pass; by default made from the model's configuration.

    Returns
    -------
    dict of str to tuple of str
        Names of readers and of layers, in order of execution.

    Examples
    --------
    >>> import sonde
    >>> model = sonde.load("sonde:stdlib", device="cpu")
    >>> list(residual_readers(model))[:2]
    ['model.layers.0.input_layernorm', 'model.layers.0.post_attention_layernorm']
    """
    module = module_of(model)
    watch, seen = _SumWatch(module), dict[str, Sum]()

    def look(name: str) -> Any:
        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = find((args, kwargs), None)
            if x is not None:
                seen.setdefault(name, watch.sum_of(x))

        return hook

    def forget(name: str) -> Any:
        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
            x, y = find((args, kwargs), None), find(output, None)
            keeps = x is not None and y is not None and x.shape == y.shape
            if not keeps and not any(True for _ in part.parameters()):
                seen.pop(name, None)  # asks for type and device alone, as rotary embeddings do

        return hook

    handles = [part.register_forward_hook(watch.after) for part in module.modules()]
    leaves = [
        (name, part)
        for name, part in ModuleNames(module).primary()
        if not any(True for _ in part.children()) and not isinstance(part, SILENT)
    ]
    for name, part in leaves:
        handles.append(part.register_forward_pre_hook(look(name), with_kwargs=True))
        handles.append(part.register_forward_hook(forget(name), with_kwargs=True))
    try:
        run(module, inputs, watch)
    finally:
        for handle in handles:
            handle.remove()
    layers = {
        name: tuple(term.name for term in one.terms if isinstance(term, Layer))
        for name, one in seen.items()
        if not one.other
    }
    added = {name for terms in layers.values() if len(terms) > 1 for name in terms}
    return {name: f for name, f in layers.items() if f and (not added or added.intersection(f))}


def sums_at(module: nn.Module, sites: Sequence[Site], inputs: Any = None) -> list[Sum]:
    """Return the outputs of some modules as sums of terms."""
    watch = _SumWatch(module)
    seen: dict[str, Sum] = {}
    modules = ModuleNames(module).modules
    handles = [part.register_forward_hook(watch.after) for part in module.modules()]

    def look(site: Site) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            x = find(output, site.key)
            seen[str(site)] = Sum((), "it returned no tensor") if x is None else watch.sum_of(x)

        return hook

    handles += [modules[site.path].register_forward_hook(look(site)) for site in sites]
    try:
        run(module, inputs, watch)
    finally:
        for handle in handles:
            handle.remove()
    silent = [str(site) for site in sites if str(site) not in seen]
    if silent:
        raise SiteError(f"fold: {silent[0]} did not run on these inputs. Name a module that runs.")
    return [seen[str(site)] for site in sites]


def run(module: nn.Module, inputs: Any = None, mode: "_SumWatch | None" = None) -> Tensor:
    """Return the first output of a forward pass in evaluation mode, without gradients."""
    inputs = example_inputs(module) if inputs is None else inputs
    trained = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            if mode is None:
                output = _called(module, inputs)
            else:
                mode.varies.update(dict.fromkeys(leaves(inputs).values()))
                with mode:
                    output = _called(module, inputs)
    finally:
        for part in trained:
            part.training = True
    tensor = find(output, None)
    if tensor is None:
        raise StateError("fold: the model returned no floating-point tensor.")
    return tensor


def _called(module: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def example_inputs(module: nn.Module) -> dict[str, Tensor]:
    """Return a small input for a transformers model, from its configuration.

    Raises
    ------
    InputError
        If the model says nothing of its inputs.
    """
    config = config_of(module)
    first = next(module.parameters())
    name = getattr(module, "main_input_name", "")
    if config is not None and name == "input_ids":
        size = int(getattr(config, "vocab_size", 0))
        if size > 0 and not is_encoder_decoder(config):
            return {name: (torch.arange(6, device=first.device) * 7 % size).unsqueeze(0)}
    if config is not None and name == "pixel_values":
        side: Any = getattr(config, "image_size", None)
        n_channels = getattr(config, "num_channels", 3)
        if side is not None:
            shape = (1, n_channels, *(side if isinstance(side, tuple | list) else (side, side)))
            values = torch.linspace(-1, 1, int(torch.tensor(shape).prod())).reshape(shape)
            return {name: values.to(first)}
    raise InputError(
        f"fold: {type(module).__name__} does not reveal its example inputs. Pass inputs=..."
    )


def inputs_or_none(module: nn.Module) -> dict[str, Tensor] | None:
    """Return a small input as ``example_inputs`` does, or None if that raises."""
    try:
        return example_inputs(module)
    except InputError:
        return None


class _SumWatch(OperationMode):
    """Tracks the layers whose outputs are summed in each tensor of a forward pass."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.names = names_of(root)
        self.sums: dict[int, Sum] = {}
        self.makers: dict[int, str] = {}
        self.held: list[Tensor] = []
        self.order: dict[Layer | str, int] = {}
        self.varies = WeakIdKeyDictionary()
        for name, parameter in root.named_parameters():
            self._put(parameter, Sum((name,)))
        for name, buffer in root.named_buffers():
            self._put(buffer, Sum((), fixed=(name,)))

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Record a module's returned tensor; the output of a linear layer is a term."""
        x = find(output, None)
        if x is None:
            return
        name = self.names[id(module)]
        layer = layer_of(name, module)
        if layer is not None:
            self.order[layer] = len(self.order)
            self._put(x, Sum((layer,)))
        self.held.append(x)
        self.makers.setdefault(id(x), f"{name or 'the model'} ({type(module).__name__})")

    def sum_of(self, x: Tensor | float) -> Sum:
        """Return a tensor, or a number in an addition, as a sum of terms."""
        if id(x) in self.sums:
            return self.sums[id(x)]
        if not isinstance(x, Tensor) or x not in self.varies:
            return Sum((), fixed=(COMPUTED,))
        return Sum((), f"{self.makers.get(id(x), 'an operation')} stands there")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and record its result as a sum."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if any(isinstance(x, Tensor) and x in self.varies for x in tree_leaves((args, kwargs))):
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self.varies[leaf] = None
        keeps = name in _KEEPS or (name == "index" and len(args[1]) < args[0].ndim)
        if keeps and isinstance(out, Tensor) and id(args[0]) in self.sums:
            self._put(out, self.sums[id(args[0])])
        elif name == "cat":
            self._add(out, args[0])
        elif name in _ADDS and (kwargs or {}).get("alpha", 1) == 1:
            self._add(out, args[:2])
        return out

    def _add(self, out: Tensor, parts: Sequence[Any]) -> None:
        if not any(id(x) in self.sums for x in parts):
            return
        sums = [self.sum_of(x) for x in parts]
        terms = {term for one in sums for term in one.terms}
        fixed = tuple(dict.fromkeys(name for one in sums for name in one.fixed))
        other = next((one.other for one in sums if one.other), "")
        self._put(out, Sum(tuple(sorted(terms, key=lambda t: self.order.get(t, -1))), other, fixed))

    def _put(self, x: Tensor, one: Sum) -> None:
        self.held.append(x)  # an id is not given again while its tensor lives
        self.sums[id(x)] = one
