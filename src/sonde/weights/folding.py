"""Folding of activation edits into weights, with equal results to the hooked model."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sonde.core.edit import AffineMap, Edit
from sonde.core.errors import InputError, StateError
from sonde.core.inputs import Model
from sonde.core.site import Site
from sonde.data._model_kind import config_of
from sonde.tap import editing
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.model.sites import Pattern, resolve
from sonde.weights._layer import Layer, layer_of, mapped_rows, names_of
from sonde.weights.change import Change, Exchange
from sonde.weights.live import module_of, require_in_memory
from sonde.weights.residual import inputs_or_none, residual_writers, run, sums_at
from sonde.weights.rewrite import RewritePlan

TOLERANCE = 1e-5
"""Largest difference between folded and hooked outputs, in parts of the largest output."""


def fold_edit(
    model: Model | nn.Module,
    edit: Edit,
    sites: Pattern | Iterable[Pattern],
    where: str = "all",
    inputs: Any = None,
) -> RewritePlan:
    """Return the plan that writes an edit into the weights of linear layers.

    At the output of a linear layer, an embedding or a convolution any affine edit folds, at the
    input of a linear layer too. At the output of another module (a block, an MLP) an edit folds if
    the module returns one layer's output unchanged; a shift also folds if the last term of the
    returned sum is a layer's output. Each folded layer is compared with the edited one on rows of
    noise, and the folded model with the edited model on ``inputs``.

    Parameters
    ----------
    model : Model or nn.Module
        Model whose weights are planned; it is not changed.
    edit : Edit
        Edit with an affine form (``as_affine()`` is not None).
    sites : pattern, Site, or several
        Ports ``out`` and ``in``.
    where : str, default="all"
        Weights know no positions: anything else is refused.
    inputs : tensor, tuple or dict, optional
        What the model is called with for the check; made from its configuration if left out. A
        model without a configuration is then checked layer by layer alone.

    Raises
    ------
    StateError
        If the edit does not fold there, with the reason.
    ShapeError
        If the edit is of another width.

    Examples
    --------
    >>> from sonde.core.edit import Add
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> plan = fold_edit(net, Add(torch.tensor([1.0, -1.0])), "0")
    >>> (plan.fold(net)[0].bias - net[0].bias).round(decimals=4).tolist()
    [1.0, -1.0]
    """
    affine = affine_of(edit)
    if where != "all":
        raise StateError(
            "fold_edit: expected where='all', because a change of weights affects every "
            f"position, got where={where!r}. Open the edit with sonde.editing(..., where=...) "
            "or sonde generate."
        )
    module = module_of(model)
    names, modules = names_of(module), ModuleNames(module).modules
    changes: dict[str, Change] = {}
    behind = False
    chosen = resolve(module, sites)
    for site in chosen:
        if site.port not in ("in", "out") or site.call is not None:
            raise StateError(f"fold_edit: expected port 'out' or 'in', for all calls, got {site}.")
        part = modules[site.path]
        layer = layer_of(names[id(part)], part)
        if layer is None and site.port == "in":
            raise _no_layer(site, part)
        if layer is None:
            _refuse_hooks(site.path, part)
            layer, behind = _layer_behind(module, site, affine, inputs), True
        _join(changes, _folded(layer, affine, site.port), site)
    plan = planned(module, changes, type(edit).__name__)
    inputs = inputs_or_none(module) if inputs is None and not behind else inputs
    if inputs is not None or behind:
        _check_same(module, edit, chosen, plan, inputs)
    return plan


def fold_writers(model: Model | nn.Module, edit: Edit, inputs: Any = None) -> RewritePlan:
    """Return the plan that writes an edit into all writers of the residual stream.

    For a projection, the stream then lacks the direction everywhere. See ``residual_writers``.

    Parameters
    ----------
    model : Model or nn.Module
        Model whose weights are planned; it is not changed.
    edit : Edit
        A linear one: a shift would be added once for each writer.
    inputs : tensor, tuple or dict, optional
        What the model is called with; made from its configuration if left out.

    Raises
    ------
    StateError
        If the stream is no sum of linear layers' outputs, or the edit is not linear.
    """
    affine = affine_of(edit)
    if affine.shift is not None:
        raise StateError(
            f"fold_writers: expected a linear edit, got {type(edit).__name__} with a bias, "
            "which every writer would add again. Use fold_edit at one site."
        )
    module = module_of(model)
    named, changes = module.state_dict(), dict[str, Change]()
    for writer in residual_writers(module, inputs):
        if isinstance(writer, Layer):
            changes |= _folded(writer, affine, "out")
        else:
            changes[writer] = mapped_rows(writer, named[writer].detach(), affine)
    return planned(module, changes, type(edit).__name__)


def _folded(layer: Layer, affine: AffineMap, port: str) -> dict[str, Change]:
    """Return the changes of a layer that apply a map to its output or its input.

    Raises
    ------
    InputError
        If the layer's weights are no plain tensors in memory.
    StateError
        If hooks stand on the layer, or the folded layer does not give what the edited one gives.
    """
    _refuse_hooks(layer.name, layer.module)
    require_in_memory(f"fold_edit at {layer.name}", layer.module)
    changes = layer.before(affine) if port == "in" else layer.after(affine)
    differs = layer.difference(affine, port, changes)
    if not differs <= TOLERANCE:
        raise StateError(
            f"fold_edit: {layer.name} with the edit folded in differs from the edited layer by "
            f"{differs:.2g} of its largest output. Open the edit with sonde.editing instead."
        )
    return changes


def _refuse_hooks(name: str, part: nn.Module) -> None:
    """Raise if user hooks run between a module's weights and the edit."""
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    if hooks or "forward" in vars(part):
        what = "forward hooks" if hooks else "a forward of its own instance"
        raise StateError(
            f"fold_edit: {name or 'the model'} has {what}, and a change of the weights would "
            "take effect before this code. Remove this code, or open the edit with "
            "sonde.editing."
        )


def affine_of(edit: Edit) -> AffineMap:
    """Return an edit as an affine map.

    Raises
    ------
    StateError
        If it is none.
    """
    affine = edit.as_affine()
    if affine is None:
        raise StateError(
            f"fold_edit: {type(edit).__name__} is not an affine map of single rows, so no change "
            "of weights has the same effect. Open the edit with sonde.editing or sonde generate."
        )
    return affine


def planned(module: nn.Module, changes: Mapping[str, Change], method: str) -> RewritePlan:
    """Return the plan of changes, with the configuration options that new biases need.

    Raises
    ------
    StateError
        If the model's class can have no such bias.
    """
    new = changes.keys() - module.state_dict().keys()
    config, added, impossible = new_biases(module, new)
    if impossible:
        raise StateError(
            f"fold_edit: {impossible[0].removesuffix('.bias')} has no bias, which this edit needs, "
            f"and {type(config_of(module)).__name__} has no option for a bias. Open the edit with "
            "sonde.editing or sonde generate."
        )
    plan = RewritePlan.of(module, {**added, **changes}, method)
    return replace(plan, config=config)


def new_biases(
    module: nn.Module, names: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Change], list[str]]:
    """Return the options that add biases, all biases that they add as zeros, and the rest.

    Parameters
    ----------
    module : nn.Module
    names : iterable of str
        Of biases that the model lacks.

    Returns
    -------
    (options, zeros, impossible)
        A model without a configuration gets a bias without an option. ``impossible`` are the names
        that no option of a configuration adds.
    """
    options, zeros, impossible = dict[str, Any](), dict[str, Change](), list[str]()
    wanted = sorted(names)
    if config_of(module) is None or not wanted:
        return options, zeros, impossible
    offered = _bias_options(module)
    for name in wanted:
        option = next((o for o, shapes in offered.items() if name in shapes), None)
        if option is None:
            impossible.append(name)
        elif option not in options:
            options[option] = True
            zeros |= {n: Exchange(torch.zeros(shape)) for n, shape in offered[option].items()}
    return options, zeros, impossible


def _bias_options(module: nn.Module) -> dict[str, dict[str, torch.Size]]:
    """Return the shapes of the biases that each option of a model's configuration adds."""
    config, kind = config_of(module), type(module)
    own_names = module.state_dict().keys()
    offered = dict[str, dict[str, torch.Size]]()
    for option, value in vars(config).items():
        if "bias" not in option or value is not False:
            continue
        twin = deepcopy(config)
        setattr(twin, option, True)
        make: Any = kind
        with torch.device("meta"):
            twin_state = make(twin).state_dict()
        offered[option] = {n: twin_state[n].shape for n in twin_state.keys() - own_names}
    return offered


def _layer_behind(module: nn.Module, site: Site, affine: AffineMap, inputs: Any) -> Layer:
    """Return the layer that gives a module's output, alone or as the last term of a sum."""
    sums = sums_at(module, [site], inputs)[0]
    last = sums.terms[-1] if sums.terms else None
    linear = affine.left is not None or affine.scale != 1.0
    is_sum = len(sums.terms) + len(sums.fixed) > 1
    if not isinstance(last, Layer) or (linear and (sums.other or is_sum)):
        part = ModuleNames(module).modules[site.path]
        raise _no_layer(site, part, sums.other, is_sum)
    return last


def _no_layer(site: Site, part: nn.Module, other: str = "", is_sum: bool = False) -> StateError:
    if is_sum:
        why = (
            "adds up the outputs of several layers: fold the edit into each of them with "
            "fold_writers"
        )
    else:
        why = other or f"is a {type(part).__name__}, which is not a plain linear layer"
    return StateError(
        f"fold_edit: the edit does not fold at {site}: {site.path or 'the model'} {why}. Name a "
        "linear layer, or open the edit with sonde.editing or sonde generate."
    )


def _join(changes: dict[str, Change], more: Mapping[str, Change], site: Site) -> None:
    twice = sorted(changes.keys() & more.keys())
    if twice:
        raise InputError(
            f"fold_edit: {twice[0]} would be changed twice, the second time for {site}. Fold "
            "the edits one by one, each into the model that resulted from the previous edit."
        )
    changes |= more


def _check_same(
    module: nn.Module, edit: Edit, sites: Sequence[Site], plan: RewritePlan, inputs: Any
) -> None:
    """Raise if the folded model does not give the outputs of the edited one.

    An edit whose directions are large against what is left of a state loses digits in single
    precision, where the folded weights lose none. If the outputs differ, double precision decides.
    """
    folded = plan.fold(module)
    allowed = max(TOLERANCE, 4 * torch.finfo(next(module.parameters()).dtype).eps)
    differs, largest = _difference(module, folded, edit, sites, inputs)
    if not differs <= allowed * largest and not _is_same_in_double(
        module, folded, edit, sites, inputs
    ):
        raise StateError(
            "fold_edit: the folded model differs from the hooked one at "
            f"{', '.join(map(str, sites))} by {differs:.2g} of {largest:.2g}: the edited states "
            "are also used elsewhere. Open the edit with sonde.editing or sonde generate."
        )


def _difference(
    module: nn.Module, folded: nn.Module, edit: Edit, sites: Sequence[Site], inputs: Any
) -> tuple[float, float]:
    """Return the largest difference of the outputs, and the largest output."""
    with editing(module, edit, sites, here=True):
        hooked = run(module, inputs).double()
    return (hooked - run(folded, inputs).double()).abs().max().item(), hooked.abs().max().item()


def _is_same_in_double(
    module: nn.Module, folded: nn.Module, edit: Edit, sites: Sequence[Site], inputs: Any
) -> bool:
    """Return whether copies of both models in double precision agree; False if they cannot run."""
    try:
        pair = deepcopy(module).double(), folded.double()
        differs, largest = _difference(*pair, edit, sites, tree_map(_in_double, inputs))
    except (RuntimeError, TypeError, NotImplementedError):  # kernels of another number type
        return False
    return differs <= TOLERANCE * largest


def _in_double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
