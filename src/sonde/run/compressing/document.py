"""Sizes before and after a compression and its cost as JSON, ``sonde-compress/1``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import nn

from sonde.compress import Fidelity, kernels
from sonde.core.finite import finite_json
from sonde.core.inputs import Model
from sonde.run.compressing.inside import SiteFidelity
from sonde.run.compressing.timing import Speed
from sonde.weights import QuantLinear, RewritePlan
from sonde.weights._kinds import kind_of
from sonde.weights.rewrite import block_of

SCHEMA: Final = "sonde-compress/1"
HOLDS: Final = {
    "matrix": "linear layer",
    "transposed": "linear layer",
    "maps": "convolution",
    "rows": "embedding",
}
"""Names of the kinds of layers; other kinds are named by their class."""


def compress_document(
    model: Model,
    changed: nn.Module,
    plan: RewritePlan,
    *,
    name: str,
    data: str,
    output: Path,
    bytes_on_disk: Sequence[int],
    fidelity: Fidelity,
    sites: Sequence[SiteFidelity],
    times: Sequence[Speed],
    rows: Mapping[str, int],
    tried: Sequence[Mapping[str, Any]] = (),
    nameable: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the JSON of one compression.

    Parameters
    ----------
    model : Model
    changed : nn.Module
        The folded model, after a run.
    plan : RewritePlan
    name, data : str
        As the user typed them.
    output : Path
    bytes_on_disk : sequence of int
        Of the weight files before and after.
    fidelity, sites, times
        What changed in the answers, inside, and in speed.
    rows : mapping of str to int
        Examples: ``calibrated_on``, ``compared_on``.
    tried : sequence of mapping, optional
        Settings that a search tried, with their bytes and KL.
    nameable : mapping of str to str, optional
        The options that pack what was left: by ``convolution``, ``embedding``.
    """
    packed = _packed(model.module, plan)
    document = {
        "schema": SCHEMA,
        "model": name,
        "data": data,
        "method": plan.method,
        "output": str(output),
        "undo": f"sonde compress undo {output} -o {output}-undone",
        "layers": len({*plan.forms} - {*plan.blocks}) + sum(one["bytes"] == 0 for one in packed),
        "bytes": list(bytes_on_disk),
        "memory": [held_bytes(model.module), held_bytes(changed)],
        "opened_in": _number_types(model.module),
        "packed": packed,
        "covered": _covered(model.module, plan),
        "numbers": weight_counts(model.module, plan),
        "nameable": dict(nameable or {}),
        "kept": _kept(changed, plan),
        "fidelity": fidelity.json(),
        "sites": [site.json() for site in sites],
        "times": [speed.json() for speed in times],
        **rows,
        "kernels": kernels(),
        "figures": dict(plan.figures),
        "tried": [dict(one) for one in tried],
    }
    return finite_json(document)


def _number_types(module: nn.Module) -> str:
    """Return the number types of a model's floating-point parameters, most frequent first."""
    sizes: dict[str, int] = {}
    for x in module.parameters():
        if x.is_floating_point():
            name = str(x.dtype).removeprefix("torch.")
            sizes[name] = sizes.get(name, 0) + x.numel()
    return " and ".join(sorted(sizes, key=lambda name: -sizes[name]))


def held_bytes(module: nn.Module) -> int:
    """Return the bytes of a model's tensors; shared storages count once."""
    held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
            for x in [*module.parameters(), *module.buffers()]}  # fmt: skip
    kernels = sum(m.kernel_bytes for m in module.modules() if isinstance(m, QuantLinear))
    return sum(held.values()) + kernels


def _covered(module: nn.Module, plan: RewritePlan) -> dict[str, int]:
    """Return the original bytes of the weights that became smaller, and of all weights."""
    sizes = {name: (x.untyped_storage().data_ptr(), x.untyped_storage().nbytes())
             for name, x in module.state_dict().items() if x.is_floating_point()}  # fmt: skip
    gone = {x for name, x in sizes.items() if name in plan.reshaped or plan.renamed(name) is None}
    return {"bytes": sum(n for _, n in gone), "of": sum(n for _, n in {*sizes.values()})}


def weight_counts(module: nn.Module, plan: RewritePlan) -> list[int]:
    """Return the numbers of weights before and after a plan; tied tensors count once."""
    sizes: dict[int, tuple[int, int]] = {}
    for name, x in module.state_dict().items():
        if not x.is_floating_point():
            continue
        n = x.numel()
        left = plan.changes[name].n_numbers(n) if name in plan.reshaped else n
        sizes.setdefault(x.data_ptr(), (n, 0 if plan.renamed(name) is None else left))
    return [sum(n) for n in zip(*sizes.values(), strict=True)]


def _packed(module: nn.Module, plan: RewritePlan) -> list[dict[str, Any]]:
    """Return form, bytes in files and bits per weight of each tensor that became smaller.

    Bytes include the scales and all else that a packed layer needs. Removed blocks have no bytes.
    """
    named, layers = module.state_dict(), dict[str, tuple[str, int, int]]()
    for name in plan.reshaped:
        change = plan.changes[name]
        n_bytes = sum(x.numel() * x.element_size() for x in change.replaced().values())
        layer = name.removesuffix(".weight")
        layers[layer] = change.words(), named[name].numel(), n_bytes
    for name, x in named.items():
        if plan.renamed(name) is None:
            layer = block_of(name, plan.blocks)
            layers[layer] = "left out", layers.get(layer, ("", 0, 0))[1] + x.numel(), 0
    return [
        {"layer": layer, "form": form, "numbers": n, "bytes": n_bytes, "bits": 8 * n_bytes / n}
        for layer, (form, n, n_bytes) in sorted(layers.items())
    ]


def _kept(module: nn.Module, plan: RewritePlan) -> list[dict[str, Any]]:
    """Return the modules whose tensors kept their size, largest first; shared ones count once."""
    seen: set[int] = set()
    smaller = {plan.renamed(name) for name in plan.reshaped}
    kept: list[dict[str, Any]] = []
    for name, part in module.named_modules():
        own = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
               for x in part.parameters(recurse=False)}  # fmt: skip
        new = {key: size for key, size in own.items() if key not in seen}
        seen |= new.keys()
        if new and f"{name}.weight" not in smaller:
            kind, n_bytes = type(part).__name__, sum(new.values())
            holds = HOLDS.get(kind_of(part) or "", kind)
            kept.append({"layer": name or kind, "kind": kind, "holds": holds, "bytes": n_bytes})
    return sorted(kept, key=lambda one: -one["bytes"])
