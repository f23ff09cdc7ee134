"""The jobs: each does one thing by sonde and again by plain torch, and raises where they differ."""

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from tools.matrix.cases import N_NEW, Case, first, with_first
from torch import Tensor, nn

import sonde
from sonde.compress import RTN, RecentCache
from sonde.core.edit import Add, Scale
from sonde.explain import Baseline, IntegratedGradients, Objective
from sonde.layers import Adapter, Attention
from sonde.measure import ParticipationRatio
from sonde.train import RateReduction
from sonde.weights import fold_edit

RTOL = 1e-4


class Wrong(Exception):
    """What sonde did is not what plain torch gives."""


class Senseless(Exception):
    """The job makes no sense for the architecture."""


def check_equal(found: Tensor, expected: Tensor, what: str, rtol: float = RTOL) -> None:
    """Raise where two tensors differ by more than a share of the largest number."""
    if found.shape != expected.shape:
        raise Wrong(f"{what}: {tuple(found.shape)} beside {tuple(expected.shape)}")
    gap = (found.double() - expected.double()).abs().max()
    if not bool(gap <= rtol * expected.double().abs().max().clamp(min=1e-6)):
        raise Wrong(f"{what}: off by {float(gap):.3g}")


def load(case: Case) -> str:
    """Open the folder: every tensor and every answer is that of transformers."""
    state, plain = case.model.module.state_dict(), case.plain.state_dict()
    if state.keys() != plain.keys():
        raise Wrong(f"tensors differ: {sorted(state.keys() ^ plain.keys())[:3]}")
    check_equal(case.answers(case.model.module), case.answers(case.plain), "answers", 0.0)
    return ""


def read(case: Case) -> str:
    """Read the automatic sites: rows are those of own hooks on each example alone."""
    stream = sonde.read(case.model, case.data)
    expected, found = case.rows(stream), _rows(stream)
    if not expected:
        raise Wrong("no site")
    for key, rows in expected.items():
        check_equal(found[key], rows, key)
    return f"{len(expected)} sites"


def _rows(stream: Any) -> dict[str, Tensor]:
    """Return a stream's rows in the order of the data."""
    batches = list(stream)
    order = torch.cat([batch.order for batch in batches]).argsort()
    return {
        s.key: torch.cat([batch.rows[s.key] for batch in batches])[order] for s in stream.schema
    }


def _participation(rows: Tensor) -> float:
    """Return the squared sum of the eigenvalues of a covariance over the sum of their squares."""
    c = torch.cov(rows.double().T)
    return float(c.trace() ** 2 / c.square().sum())


def _check_number(found: float, expected: float, what: str) -> None:
    if not abs(found - expected) <= 1e-3 * abs(expected):
        raise Wrong(f"{what}: {found:.4g} beside {expected:.4g}")


def fit(case: Case) -> str:
    """Fit a measure at all sites: its value is that of the covariance of own rows."""
    stream = sonde.read(case.model, case.data)
    fitted = sonde.fit([ParticipationRatio()], stream, calibrate=0, progress=False)
    for key, rows in case.rows(stream).items():
        found = fitted.result("participation_ratio", key).value
        _check_number(float(found), _participation(rows), key)
    return ""


def scan(case: Case) -> str:
    """Scan: sites, rows, widths and ranks of the report are those of own rows."""
    report = sonde.scan(case.model, case.data, progress=False).json()
    expected = case.rows(sonde.read(case.model, case.data))
    sites = {site["site"]: site for site in report["sites"]}
    if sites.keys() != expected.keys():
        raise Wrong(f"sites {sorted(sites.keys() ^ expected.keys())[:3]}")
    for key, rows in expected.items():
        site = sites[key]
        shape = site["n_rows"], site["dim"], site["n_nonfinite"]
        if shape != (*rows.shape, 0):
            raise Wrong(f"{key}: {shape} beside {tuple(rows.shape)}")
        found = site["values"]["participation_ratio"]["value"]
        _check_number(found, _participation(rows), f"{key} participation ratio")
    failed = [check["code"] for check in report["checks"] if check["state"] == "failed"]
    if failed:
        raise Wrong(f"checks failed: {failed}")
    return ""


def check_padded(case: Case, module: nn.Module, what: str) -> None:
    """Raise where padding moves answers, although it does not in the plain model."""
    if case.padding_gap <= RTOL and (gap := case.gap_of_padded(module)) > RTOL:
        raise Wrong(f"{what}: padding moves answers by {gap:.3g} of the largest")


def _first_block(case: Case) -> Any:
    return sonde.read(case.model, case.data).schema[0]


def _hooked(case: Case, path: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the answers of the plain model with a hook that changes a module's output."""

    def hook(_m: Any, _a: Any, output: Any) -> Any:
        return with_first(output, change(first(output)))

    handle = case.plain.get_submodule(path).register_forward_hook(hook)
    try:
        return case.answers(case.plain)
    finally:
        handle.remove()


def edit(case: Case) -> str:
    """Add a direction: as a hook by hand, and folded into a folder that is opened again."""
    schema = _first_block(case)
    path = schema.site.path
    direction = torch.randn(schema.dim, generator=torch.Generator().manual_seed(2))
    change = Add(direction, 0.7)
    expected = _hooked(case, path, lambda x: x + 0.7 * case.beside(direction, x))
    plain = case.answers(case.plain)
    with sonde.editing(case.model, change, path):
        found = case.answers(case.model.module)
    check_equal(found, expected, "edited")
    if "pos" in schema.axes.split() and case.padding_gap <= RTOL:
        with sonde.editing(case.model, Scale(0.3), path, where="last"):
            check_padded(case, case.model.module, "last tokens edited")
    check_equal(case.answers(case.model.module), plain, "after the edit", 0.0)
    try:
        plan = fold_edit(case.model, change, path)
        new = _written(case, plan, "edited")
    except sonde.SondeError as error:
        return f"not folded: {words(error)}"
    check_equal(case.answers(new), expected, "folded", 1e-3)
    return "folded"


def _written(case: Case, plan: Any, name: str) -> Any:
    """Return the changed model, opened from the folder that the plan writes."""
    if not case.architecture.saves:
        return plan.fold(case.model.module)
    saved = plan.save(case.model, case.fresh(name))
    return sonde.load(saved.folder).module


def explain(case: Case) -> str:
    """Explain the likeliest answer: the parts and the stated gap are the rise from zero."""
    method = IntegratedGradients(steps=32, baseline=Baseline("zero"))
    found = method.explain(case.model, case.batch, objective=Objective(output=case.vector))
    explained = {n: x.clone() for n, x in case.batch.items()}
    path, name = found.conventions["site"], next(iter(case.batch))
    logits, target = _target(case, explained)
    if case.architecture.takes in ("ids", "pair"):
        table = case.plain.get_submodule(path.partition(":")[0])
        fed: list[Tensor] = []

        def zero(_m: Any, args: Any, output: Tensor) -> Tensor:
            fed.append(args[0])
            return torch.zeros_like(output)

        handle = table.register_forward_hook(zero)
        low = _target(case, explained, target)[0]
        handle.remove()
        if not any(torch.equal(x, case.batch["input_ids"]) for x in fed):
            raise Wrong(f"{path} is not fed the tokens")
    else:
        low = _target(case, explained | {name: torch.zeros_like(explained[name])}, target)[0]
    rise = logits - low
    gap = found.gap
    if not isinstance(found.value, Tensor) or gap is None:
        raise Wrong("the explanation states no parts or no gap")
    parts = found.value.flatten(1).sum(1)
    check_equal(parts + gap, rise, "sum of parts and gap", 1e-3)
    wide = bool((gap.abs() > 0.1 * rise.abs().clamp(min=1e-3)).any())
    if wide and "incomplete" not in found.flags:
        raise Wrong(f"gap {float(gap.abs().max()):.3g} of {rise.tolist()} is not flagged")
    return path


def _target(case: Case, batch: Any, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the logit of a class or next token in each example, by default the likeliest."""
    with torch.no_grad():
        output = case.plain(**batch)
    if case.vector is not None:
        logits = output[case.vector]
    else:
        logits = output if isinstance(output, Tensor) else first(getattr(output, "logits", output))
    if logits is None:
        raise Wrong("the model answers without logits")
    logits = logits[:, -1] if logits.ndim == 3 else logits
    chosen: Tensor = logits.argmax(1) if target is None else target
    return logits.gather(1, chosen[:, None])[:, 0], chosen


def insert(case: Case) -> str:
    """Insert an adapter: the identity at first, a hook by hand once moved, bit-equal without."""
    schema = _first_block(case)
    path = schema.site.path
    plain = case.answers(case.plain)
    layer = Adapter(schema.dim, 4)
    new = sonde.inserted(case.model, {path: layer})
    check_equal(case.answers(new.module), plain, "at the start", 0.0)
    inside = next(iter(sonde.layers.inserted_layers(new).values()))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in inside.parameters():
            p += 0.3 * torch.randn(p.shape, generator=draw)
    alone = copy.deepcopy(inside)
    last = (lambda x: x.movedim(1, -1)), (lambda x: x.movedim(-1, 1))

    def by_hand(x: Tensor) -> Tensor:
        return last[1](alone(last[0](x))) if x.ndim == 4 else alone(x)

    check_equal(case.answers(new.module), _hooked(case, path, by_hand), "once moved")
    bare = sonde.removed(new)
    check_equal(case.answers(bare.module), plain, "removed", 0.0)
    if bare.module.state_dict().keys() != case.plain.state_dict().keys():
        raise Wrong("tensors of the model without the layer have other names")
    mixing = Attention(schema.dim, 1)
    with torch.no_grad():
        for p in mixing.parameters():
            p += 0.3 * torch.randn(p.shape, generator=draw)
    if "pos" in schema.axes.split() and case.padding_gap <= RTOL:
        new = sonde.inserted(case.model, {path: mixing})
        check_padded(case, new.module, "attention inserted")
    return ""


def _call(case: Case, path: str) -> str:
    """Return a path with the first of its calls if a forward pass calls it more than once."""
    calls = case.states(case.examples[0], [path])[path]
    return path if len(calls) == 1 else f"{path}@0"


def train(case: Case) -> str:
    """Attach a loss to a site: its value and all gradients are those of own hooks."""
    site = _first_block(case).site
    label = case.labels[: len(next(iter(case.batch.values())))]
    ours, plain = copy.deepcopy(case.model.module), copy.deepcopy(case.plain)
    with sonde.training(ours, {_call(case, site.path): RateReduction()}, reducer="mean") as terms:
        ours(**case.batch)
        found = terms.loss(label=label)
        found.backward()
    seen: list[Tensor] = []
    plain.get_submodule(site.path).register_forward_hook(lambda _m, _a, o: seen.append(first(o)))
    plain(**case.batch)
    expected = RateReduction()(case.pooled(seen[0], "mean"), label)
    expected.backward()
    check_equal(found.detach(), expected.detach(), "loss")
    reached = 0
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if (p.grad is None) != (q.grad is None):
            raise Wrong(f"gradient of {name} on one side alone")
        if p.grad is not None and q.grad is not None:
            reached += 1
            check_equal(p.grad, q.grad, f"gradient of {name}", 1e-3)
    if not reached:
        raise Wrong("no gradient")
    return f"{reached} gradients"


def compress(case: Case) -> str:
    """Round to four bits: answers of the unpacked weights, and the same when opened again."""
    plan = RTN(bits=4).plan(case.model)
    twin = copy.deepcopy(case.plain)
    for name, change in plan.changes.items():
        weight = twin.get_parameter(name)
        new = change.of(weight)
        if float((new - weight).abs().max()) > float(weight.detach().abs().max()) / 6:
            raise Wrong(f"{name} is rounded by more than a step")
        weight.data = new
    expected, folded = case.answers(twin), plan.fold(case.model)
    # Kernels multiply packed weights by rows in bfloat16: at most twice what that does by hand.
    moved = (_in_half(case, twin, plan.changes) - expected.double()).abs().max()
    share = max(RTOL, 2.0 * float(moved / expected.double().abs().max().clamp(min=1e-6)))
    packed = case.answers(getattr(folded, "module", folded))
    check_equal(packed, expected, f"packed (bfloat16 moves answers by {moved:.3g})", share)
    check_equal(case.answers(_written(case, plan, "packed")), packed, "opened again", 1e-6)
    return f"{len(plan.changes)} weights"


def _in_half(case: Case, module: nn.Module, names: Iterable[str]) -> Tensor:
    """Return the answers with the inputs and outputs of some weights rounded to bfloat16."""

    def rounded(_m: Any, args: Any) -> Any:
        return (args[0].bfloat16().float(), *args[1:])

    handles = []
    for path in {name.rpartition(".")[0] for name in names}:
        part = module.get_submodule(path)
        if getattr(part, "weight", None) is None:
            continue  # a stack of experts is unpacked to be multiplied
        handles.append(part.register_forward_pre_hook(rounded))
        handles.append(part.register_forward_hook(lambda _m, _a, y: first(y).bfloat16().float()))
    try:
        return case.answers(module).double()
    finally:
        for handle in handles:
            handle.remove()


def _prompt(case: Case) -> dict[str, Tensor]:
    ids = case.batch["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


_SETTINGS = {"max_new_tokens": N_NEW, "min_new_tokens": N_NEW, "do_sample": False}


def cache(case: Case) -> str:
    """Generate with an evicting cache of unlimited budget: the tokens of the plain model."""
    if not case.architecture.generates:
        raise Senseless
    if case.architecture.takes == "pair":  # only decoders alone have such caches
        try:
            with sonde.caching(case.model, RecentCache(budget=10_000)):
                raise Wrong("caching an encoder-decoder is not refused")
        except sonde.SondeError:
            raise Senseless from None
    plain: Any = case.plain
    expected = plain.generate(**_prompt(case), **_SETTINGS)
    with sonde.caching(case.model, RecentCache(budget=10_000)) as held:
        forward = inspect.signature(type(case.model.module).forward).parameters
        name = "cache" if "cache" in forward else "past_key_values"
        found = case.model.module.generate(**_prompt(case), **_SETTINGS, **{name: held})
    if not torch.equal(found, expected):
        raise Wrong(f"{int((found != expected).sum())} of {found.numel()} tokens differ")
    return ""


def generate(case: Case) -> str:
    """Read generated texts: rows are those of own hooks on what the plain model generates."""
    if not case.architecture.generates and "mamba" not in case.architecture.name:
        raise Senseless
    if case.architecture.takes == "pair":
        data: Any = [{"input_ids": e["input_ids"]} for e in case.examples]
    else:
        data = case.data
    stream = sonde.read(case.model, data, generate=_SETTINGS)
    found, plain = _rows(stream), case.plain
    paths = sorted({s.site.path for s in stream.schema})
    for i, example in enumerate(case.examples[::5]):
        ids = example["input_ids"][None]
        made: Any = plain
        out = made.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **_SETTINGS)[0]
        full = {"input_ids": out}
        if case.architecture.takes == "pair":
            full = {"input_ids": ids[0], "decoder_input_ids": out}
        states = case.states(full, paths)
        for s in stream.schema:
            call = s.site.call if isinstance(s.site.call, int) else 0
            row = case.pooled(states[s.site.path][call], s.reducer.name)[0]
            check_equal(found[s.key][5 * i], row, f"{s.key} of example {5 * i}")
    return ""


def words(error: BaseException) -> str:
    """Return the first words of an error."""
    return " ".join(str(error).split())[:300]


JOBS: dict[str, Callable[[Case], str]] = {
    f.__name__: f
    for f in (load, read, fit, scan, edit, explain, insert, train, compress, cache, generate)
}
ABOUT = {name: str(job.__doc__).splitlines()[0].rstrip(".") for name, job in JOBS.items()}
