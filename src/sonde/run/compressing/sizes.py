"""Predict the bytes of weight files for each setting of a compression."""

from collections.abc import Sequence
from math import prod

from sonde.compress import RTN, LayerGrams
from sonde.core.inputs import Inputs, Model
from sonde.run.compressing.packable import packed_plan
from sonde.run.compressing.settings import BITS, GROUPS, Setting
from sonde.weights import Grid, RewritePlan
from sonde.weights.factory_folder import source_folder
from sonde.weights.folder import ModelFolder, weight_bytes
from sonde.weights.packing import packed_length

HEADER = 320
"""Bytes of a file's header that the three tensors of a packed layer may add."""


def planned_bytes(model: Model, plan: RewritePlan) -> int:
    """Return the bytes of the weight files that a model would need after a plan is folded in.

    Tensors that are packed or change their shape count with their new bytes, and each packed layer
    adds 320 bytes of headers. Tensors of removed blocks are left out, and new biases are counted.
    """
    total, width = _stored(model)
    named = model.module.state_dict()
    total += added_bytes(model, plan)
    for name in plan.reshaped:
        parts = plan.changes[name].replaced().values()
        total += sum(x.numel() * x.element_size() for x in parts)
        total += HEADER if name in plan.packed else 0
        total -= width * named[name].numel()
    return total - width * sum(x.numel() for n, x in named.items() if plan.renamed(n) is None)


def added_bytes(model: Model, plan: RewritePlan) -> int:
    """Return the bytes that the tensors which a plan adds to a model take in its weight files."""
    names = plan.changes.keys() - model.module.state_dict().keys()
    new = [plan.changes[name].of(None) for name in names]
    return sum(x.numel() * x.element_size() + HEADER // 3 for x in new)


def _stored(model: Model) -> tuple[int, int]:
    """Return the bytes of a model's weight files, and the mean bytes of a number, at least 2."""
    with source_folder(model) as folder:
        files = ModelFolder.open(folder).weights.values()
        entries = [e for one in files for e in one.entries.values()]
        numbers = sum(prod(e.shape) for e in entries)
        return weight_bytes(folder), max(2, round(sum(e.n_bytes for e in entries) / numbers))


def sized_settings(
    model: Model,
    method: str,
    layers: Sequence[str] | None = None,
    means: Inputs | LayerGrams | None = None,
) -> list[Setting]:
    """Return every setting of bits and group with the bytes of weight files that it would need.

    The weights to be packed are assumed to take the mean bytes of a number in the files now.

    Parameters
    ----------
    model : Model
        Loaded from a folder.
    method : str
        The method of all settings.
    layers : sequence of str, optional
        Patterns of what is packed.
    means : Inputs or LayerGrams, optional
        As in ``packed_plan``: biases that are added are counted.
    """
    whole, width = _stored(model)
    plan = packed_plan(RTN(bits=8, group=128, layers=layers), model, {}, means)
    packed = plan.packed
    shapes = [tuple(model.module.get_parameter(name).shape) for name in packed]
    rest = whole - sum(width * prod(shape) for shape in shapes) + added_bytes(model, plan)
    settings: list[Setting] = []
    for bits in BITS:
        for group in GROUPS:
            grid = Grid(bits, group)
            new = sum(prod(lead) * (packed_length(n, bits) + 4 * grid.n_groups(n))
                      for *lead, n in shapes)  # fmt: skip
            settings.append(Setting(method, bits, group, rest + new + HEADER * len(shapes)))
    return settings
