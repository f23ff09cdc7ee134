"""Round tensors outside of linear layers: named embeddings, and stacks of experts."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from sonde.compress._grid import Symmetry, rounded
from sonde.core.inputs import Model
from sonde.weights import Change, Grid, RewritePlan
from sonde.weights.change import QuantisedTensor
from sonde.weights.forms import TIED


def plan_with_tensors(
    model: Model,
    layers: Sequence[str] | None,
    grid: tuple[int, int, Symmetry],
    changes: Mapping[str, Change],
    word: str,
    figures: Mapping[str, float] | None = None,
) -> RewritePlan:
    """Return the plan of a method's changes, plus rounded embeddings and experts.

    Each entry is rounded to its group's grid. Without patterns all stacks of experts are rounded,
    and no embedding. Names that are tied to an embedding stay tied: they read the packed tensor.

    Parameters
    ----------
    model : Model
    layers : sequence of str, optional
        Patterns of modules (``model.embed_tokens``, ``*.mlp.experts``) or of tensors.
    grid : (int, int, str)
        Bits, group (0: a whole row) and symmetry.
    changes : mapping of str to Change
        Of layers.
    word : str
    figures : mapping of str to float, optional
    """
    added, forms = dict[str, Change](), dict[str, dict[str, Any]]()
    for names, part, leaf in _chosen(model.module, layers):
        name, weight = names[0], part._parameters[leaf]
        assert weight is not None  # what is chosen is there
        added[name] = _rounded(weight, leaf, *grid)
        for other in names[1:]:
            path = other.rpartition(".")[0]
            forms.setdefault(path, {TIED: {}})[TIED][leaf] = name.rpartition(".")[0]
    return RewritePlan.shaped(model, {**changes, **added}, word, figures, forms=forms)


def names_of_tensors(module: nn.Module, layers: Sequence[str] | None) -> list[str]:
    """Return the names of packable modules and tensors that match patterns."""
    names = [name for every, _, _ in _chosen(module, layers) for name in every]
    return [*dict.fromkeys(name.rpartition(".")[0] for name in names), *names]


def _chosen(
    module: nn.Module, layers: Sequence[str] | None
) -> list[tuple[list[str], nn.Module, str]]:
    return [one for one in packable(module) if _is_chosen(one[0], one[1], layers)]


def packable(module: nn.Module) -> list[tuple[list[str], nn.Module, str]]:
    """Return the embeddings and the stacks of experts of a model.

    Returns
    -------
    list of (names, module, name of the parameter)
        The names of one tensor: the first is that of the embedding or the stack, others are tied.
    """
    names: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, part in module.named_modules(remove_duplicate=True):
        for leaf, parameter in part._parameters.items():
            if parameter is not None and name:
                names.setdefault(id(parameter), []).append((f"{name}.{leaf}", part))
    stacks: list[tuple[list[str], nn.Module, str]] = []
    for every in names.values():
        first = next((one for one in every if _packs(one[1], one[0].rpartition(".")[2])), None)
        leaves = {name.rpartition(".")[2] for name, _ in every}
        if first is not None and len(leaves) == 1:
            order = [first[0], *(name for name, _ in every if name != first[0])]
            stacks.append((order, first[1], leaves.pop()))
    return stacks


def _packs(part: nn.Module, leaf: str) -> bool:
    weight: Any = part._parameters[leaf]
    if not weight.is_floating_point():
        return False
    if isinstance(part, nn.Embedding):
        return leaf == "weight" and part.max_norm is None
    return weight.ndim == 3 and _n_experts(part) == len(weight)


def _n_experts(part: nn.Module) -> int | None:
    """Return the number of experts in a module's attributes, or None."""
    counts = (value for key, value in vars(part).items()
            if "expert" in key and type(value) is int and value > 1)  # fmt: skip
    return next(counts, None)


def _is_chosen(names: Sequence[str], part: nn.Module, layers: Sequence[str] | None) -> bool:
    if layers is None:
        return not isinstance(part, nn.Embedding)
    all_names = [*names, *(name.rpartition(".")[0] for name in names)]
    return any(fnmatchcase(name, pattern) for name in all_names for pattern in layers)


def _rounded(
    weight: Tensor, leaf: str, bits: int, group: int, symmetry: Symmetry
) -> QuantisedTensor:
    n, lead = weight.shape[-1], weight.shape[:-1]
    grid = Grid.over(bits, group, n)
    quantised = rounded(weight.detach().reshape(-1, n), grid, symmetry)
    codes, scale, offset = (
        x.reshape(*lead, -1) for x in (quantised.codes, quantised.scale, quantised.offset)
    )
    return QuantisedTensor(leaf, codes, scale, offset, grid, tuple(weight.shape))
