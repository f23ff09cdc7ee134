"""The laws of rewrites and of merge rules: functions that raise AssertionError if one is broken."""

import inspect
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sonde.core.errors import InputError, StateError
from sonde.core.inputs import Model
from sonde.weights import Examples, MergeRule, Rewrite, RewritePlan, as_model, undo
from sonde.weights._weight_file import file_hash
from sonde.weights.rewrite import block_of

CLASSES, SIZE, ROWS = 3, 8, 24
NAME, SHAPE = "layer.weight", (4, 6)


def small_net() -> nn.Module:
    """Return a small, deterministic convolutional classifier with batch norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * SIZE * SIZE, 8),
            nn.Linear(8, CLASSES),
        )
        norms = [part for part in net if isinstance(part, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            assert norm.running_var is not None
            norm.running_var.uniform_(0.5, 1.5)
    return net.eval()


def labelled_images(seed: int, n: int = ROWS) -> tuple[Tensor, Tensor]:
    """Return images (row, 1, 8, 8) and their labels."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, SIZE, SIZE, generator=draw)
    return x, torch.arange(n) % CLASSES


def examples_for(rewrite: Rewrite, model: Model) -> dict[str, Any]:
    """Return labelled images for each required set of examples, and nothing for instruments."""
    needs = [name for name, need in rewrite.reads().items() if isinstance(need, Examples)]
    return {name: labelled_images(i, ROWS * (i + 1)) for i, name in enumerate(needs)}


@dataclass(frozen=True)
class RewriteCase:
    """A rewrite for the laws to test, with a model and its inputs.

    Parameters
    ----------
    rewrite : Rewrite
        Rewrite to test.
    model : callable
        Returns the same new model at each call; a small convolutional classifier by default.
    fitted : callable
        Returns the inputs of ``plan`` for a rewrite and a model; labelled images by default.
    half : bool, default=True
        Whether the method takes models of half types.
    """

    rewrite: Rewrite
    model: Callable[[], Model | nn.Module] = field(default=small_net, repr=False)
    fitted: Callable[[Any, Model], Any] = field(default=examples_for, repr=False)
    half: bool = True

    def planned(self, model: Model) -> RewritePlan:
        """Return the plan for a model."""
        return self.rewrite.plan(model, self.fitted(self.rewrite, model))


def reads_something(case: RewriteCase) -> bool:
    """Return whether a plan needs more inputs than the model."""
    return any(
        not (isinstance(need, Examples) and need.optional) for need in case.rewrite.reads().values()
    )


def law_named(case: RewriteCase) -> None:
    """Besides the model, ``planned`` takes exactly the names that ``reads`` returns."""
    parameters = list(inspect.signature(case.rewrite.planned).parameters.values())[1:]
    taken = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    named = list(case.rewrite.reads())
    assert sorted(taken) == sorted(named), f"reads names {named}, planned takes {taken}"


def law_untouched(case: RewriteCase) -> None:
    """Planning and folding do not change the model, its modes and the random state."""
    model = as_model(case.model())
    before, modes = _copied(model.module), [m.training for m in model.module.modules()]
    fitted = case.fitted(case.rewrite, model)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    plan = case.rewrite.plan(model, fitted)
    _same(before, _copied(model.module), "the model changed")
    plan.fold(model)
    assert torch.equal(state, torch.get_rng_state()), "another random state than before"
    assert modes == [m.training for m in model.module.modules()], "another training mode"
    assert not any(m._forward_hooks for m in model.module.modules()), "a hook was left"
    _same(before, _copied(model.module), "the model changed")


def law_again(case: RewriteCase) -> None:
    """Equal seeds give equal bits, for any global random state."""
    folded: list[dict[str, Tensor]] = []
    for seed in (1, 2):
        model = as_model(case.model())
        fitted = case.fitted(case.rewrite, model)
        torch.manual_seed(seed)
        folded.append(_copied(case.rewrite.plan(model, fitted).fold(model)))
    _same(folded[0], folded[1], "two runs differ")


def law_shared(case: RewriteCase) -> None:
    """A folded model differs only in the tensors of the plan, and shares all others."""
    model = as_model(case.model())
    plan = case.planned(model)
    new, old = plan.fold(model).state_dict(), model.module.state_dict()
    gone = {n.rpartition(".")[0] for n in plan.changes}
    for name, x in old.items():
        place = plan.renamed(name)
        if place and name not in plan.changes and name.rpartition(".")[0] not in gone:
            assert place in new, f"{name} is gone"
            assert new[place].data_ptr() == x.data_ptr(), f"{name} is not shared"


def law_once(case: RewriteCase) -> None:
    """A folded model rejects the plan that made it."""
    model = as_model(case.model())
    plan = case.planned(model)
    new = plan.fold(model)
    try:
        plan.fold(new)
    except StateError:
        return
    raise AssertionError("the plan was folded into its own result")


def law_saved(case: RewriteCase) -> None:
    """The files of a saved plan hold the tensors of the folded model, by its names."""
    model = as_model(case.model())
    plan = case.planned(model)
    with tempfile.TemporaryDirectory() as place:
        old, new = (Path(place) / name for name in ("old", "new"))
        kept = _saved(model, plan, old, new)
        stored = load_file(new / "model.safetensors")
        packed = json.loads((new / "config.json").read_text()).get("quantization_config", {})
    zeros = {name for name, one in packed.get("layers", {}).items() if "kept" in one}
    for name, x in _once(kept.fold(model)).items():
        if name.rpartition(".")[0] in zeros:
            continue  # held as a mask and what is not 0
        assert name in stored, f"{name} is not in the files"
        assert stored[name].shape == x.shape, f"{name} has a different shape in the files"
        if not x.numel():
            continue
        gap = float((stored[name].double() - x.double()).abs().max())
        assert gap <= 1e-6 * float(x.double().abs().max()), f"{name} is off by {gap:.3g} in files"


def law_undone(case: RewriteCase) -> None:
    """Undoing a saved plan restores every byte of the original's files."""
    model = as_model(case.model())
    plan = case.planned(model)
    with tempfile.TemporaryDirectory() as place:
        old, new, again = (Path(place) / name for name in ("old", "new", "again"))
        _saved(model, plan, old, new)
        same = file_hash(new / "model.safetensors") == file_hash(old / "model.safetensors")
        assert not same, "the saved weights are the old ones"
        undo(new, again)
        for file in old.iterdir():
            assert file_hash(file) == file_hash(again / file.name), f"another {file.name}"


def law_half(case: RewriteCase) -> None:
    """A model in a half type can be rewritten, keeps its dtype, and stays finite."""
    model = as_model(case.model())
    model.module.to(torch.bfloat16)
    new = case.planned(model).fold(model).state_dict()
    for name, x in model.module.state_dict().items():
        if name in new:
            assert new[name].dtype == x.dtype, f"{name} is {new[name].dtype} of {x.dtype}"
            assert bool(torch.isfinite(new[name].float()).all()), f"{name} is not finite"


def law_tied(case: RewriteCase) -> None:
    """A tensor with two names changes under both, is listed as a tie, or is refused by name."""
    model = as_model(case.model())
    one, two = _tie(model.module)
    try:
        plan = case.planned(model)
    except StateError as error:
        if one in str(error) and two in str(error):
            return
        raise
    if not {one, two} & plan.changes.keys():
        return
    new = plan.fold(model).state_dict()
    tied = {name for names in plan.ties.values() for name in names}
    alike = one in new and two in new and torch.equal(new[one], new[two])
    assert alike or {one, two} & tied, (
        f"{one} and {two} were a single tensor and are now two, which the plan does not say"
    )


def law_missing(case: RewriteCase) -> None:
    """A plan without the inputs that the rewrite reads raises an error that names the rewrite."""
    model = as_model(case.model())
    for given in (None, {}):
        try:
            case.rewrite.plan(model, given)
        except InputError as error:
            message = str(error)
            assert type(case.rewrite).__name__ in message.partition(":")[0], f"who asks? {message}"
        else:
            raise AssertionError(f"fitted={given} was taken")


def law_finite(case: RewriteCase) -> None:
    """A plan for a model with a weight that is not finite raises an error that names the weight."""
    for wrong in (torch.nan, torch.inf):
        model = as_model(case.model())
        fitted = case.fitted(case.rewrite, model)
        floating = (item for item in model.module.named_parameters() if item[1].ndim > 1)
        name, weight = next(floating)
        with torch.no_grad():
            weight.view(-1)[-1] = wrong
        try:
            case.rewrite.plan(model, fitted)
        except InputError as error:
            message = str(error)
            assert name in message, f"which weight? {message}"
        else:
            raise AssertionError(f"{wrong} in {name} was taken")


def law_rule_kept(rule: MergeRule) -> None:
    """A merged tensor has the base's shape and dtype, and the operands are not changed."""
    for dtype in (torch.float32, torch.float64):
        base, others = _models(rule, dtype)
        before = [x.clone() for x in (base, *others)]
        merged = rule.merge(NAME, base, others)
        assert merged.shape == base.shape, f"shape {tuple(merged.shape)} of {tuple(base.shape)}"
        assert merged.dtype == dtype, f"{merged.dtype} of {dtype}"
        for x, y in zip((base, *others), before, strict=True):
            assert torch.equal(x, y), "an operand changed"


def law_rule_again(rule: MergeRule) -> None:
    """Equal seeds give equal bits, for any global random state."""
    base, others = _models(rule, torch.float32)
    merged: list[Tensor] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        merged.append(rule.merge(NAME, base, others))
    assert torch.equal(*merged), "two runs differ"


def law_rule_same(rule: MergeRule) -> None:
    """Models that are all equal to the base merge to the base."""
    base, others = _models(rule, torch.float64)
    merged = rule.merge(NAME, base, [base.clone() for _ in others])
    gap = float((merged - base).abs().max())
    assert gap < 1e-9, f"off by {gap:.3g}"


def _models(rule: MergeRule, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    draw = torch.Generator().manual_seed(0)
    n = rule.most or 2
    base, *others = (torch.randn(SHAPE, generator=draw, dtype=torch.float64) for _ in range(n + 1))
    return base.to(dtype), [(base + 0.3 * x).to(dtype) for x in others]


def _saved(model: Model, plan: RewritePlan, old: Path, new: Path) -> RewritePlan:
    """Save a model, then its plan without the tensors that only a configuration can describe."""
    old.mkdir()
    (old / "config.json").write_text(json.dumps({"model_type": "none"}))
    save_file(_once(model.module), old / "model.safetensors")
    changes = {n: c for n, c in plan.changes.items()
               if n in plan.made_for or block_of(n, plan.blocks)}  # fmt: skip
    assert changes or plan.blocks, "the plan changes nothing that is there"
    kept = replace(plan, changes=changes, config={})
    kept.save(str(old), new)
    return kept


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in module.state_dict().items()}


def _once(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module, each under a single name."""
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: x.detach().clone() for name, x in named.items() if name in module.state_dict()}


def _same(before: Mapping[str, Tensor], after: Mapping[str, Tensor], what: str) -> None:
    assert before.keys() == after.keys(), f"{what}: other names"
    for name, x in before.items():
        assert torch.equal(x, after[name]), f"{what} at {name}"


def _tie(module: nn.Module) -> tuple[str, str]:
    """Make two layers of one kind share a weight, and return its names."""
    layers = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(weight := getattr(part, "weight", None), Tensor) and weight.ndim > 1
    ]
    for (one, a), (two, b) in combinations(layers, 2):
        if type(a) is type(b) and a.weight.shape == b.weight.shape:
            b.weight = a.weight
            return f"{one}.weight", f"{two}.weight"
    raise InputError("law_tied: expected two layers of one shape in the model, got none.")
