"""What explanations cost."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.child import added_peak, run_child
from benchmarks.generating import language_model
from benchmarks.nets import VOCABULARY
from benchmarks.protocol import AGAIN, PLAIN, Ratio, interleaved, ratio_of
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.core import Model, Stream
from sonde.explain import ActivationPatching, AttributionPatching, Exemplars, Objective, UnitLabels
from sonde.report.documents import save_document
from sonde.run.explaining.atlas import atlas_document, fit_atlas
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read

PATCHING_BUDGET, ATTRIBUTION_BUDGET = 0.55, 4.0
UNITS_BUDGET, FLAT_BUDGET, ATLAS_BUDGET = 1.6, 1.05, 60.0


def patching_rows(size: Size) -> Iterator[Row]:
    """Time of every patch of one pair against whole forwards, and of its estimate."""
    depth, width, length = size.pick((12, 768, 24), (2, 64, 6))
    net: Any = language_model(depth, width)
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(1, VOCABULARY, (2, 1, length), generator=generator)
    first, second = ({"input_ids": ids, "logits_to_keep": 1} for ids in (clean, corrupt))
    goal = Objective("margin", target=1, other=2)
    what = f"every layer and position of one pair, {depth} layers x {length} tokens, last logits"
    effects: dict[str, Tensor] = {}

    def whole() -> None:
        effects[PLAIN] = _whole(net, clean, corrupt)

    def ours() -> None:
        patching = ActivationPatching(rows=length)
        found = patching.explain(net, first, corrupt=second, objective=goal)
        effects["ours"] = found.effects[0]

    rounds = size.pick(min(size.rounds, 2), 2)
    arms: dict[str, Callable[[], object]] = {PLAIN: whole, "ours": ours, AGAIN: whole}
    ratio = ratio_of(interleaved(arms, rounds, warm_ups=0), "ours")
    gap = float((effects[PLAIN].double() - effects["ours"]).abs().max())
    note = f"{ratio.noise}; effects differ by at most {gap:.1e}"
    yield _patched(f"patching {what}, against whole forwards", ratio, PATCHING_BUDGET, note)
    estimate = AttributionPatching(ig_steps=1, check=0)

    def plain() -> object:
        with torch.no_grad():
            return net(input_ids=clean, logits_to_keep=1, use_cache=False)

    arms = {
        PLAIN: plain,
        "ours": lambda: estimate.explain(net, first, corrupt=second, objective=goal),
        AGAIN: plain,
    }
    ratio = ratio_of(interleaved(arms, size.rounds, warm_ups=2), "ours")
    what = f"attribution patching of {what}, one step, in plain forwards of one text"
    yield _patched(what, ratio, ATTRIBUTION_BUDGET, ratio.noise)


def _patched(what: str, ratio: Ratio, budget: float, note: str) -> Row:
    return Row("patch", what, ratio.median, "x", budget, ratio.spread, ratio.rounds, note)


def _whole(net: Any, clean: Tensor, corrupt: Tensor) -> Tensor:
    """Return the effect of each patch, by forwards from the first layer on."""
    length = clean.shape[1]
    seen: dict[int, Tensor] = {}
    rows: list[Tensor] = []

    def margins(ids: Tensor) -> Tensor:
        logits = net(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1]
        return logits[:, 1] - logits[:, 2]

    with torch.no_grad():
        blocks = list(net.transformer.h)
        keep = [
            block.register_forward_hook(lambda _, __, out, i=i: seen.__setitem__(i, out))
            for i, block in enumerate(blocks)
        ]
        margins(clean)
        for handle in keep:
            handle.remove()
        base = margins(corrupt)
        at = torch.arange(length)
        for i, block in enumerate(blocks):

            def hook(module: Any, args: Any, out: Tensor, i: int = i) -> Tensor:
                new = out.clone()
                new[at, at] = seen[i][0]
                return new

            handle = block.register_forward_hook(hook)
            rows.append(margins(corrupt.expand(length, -1)) - base)
            handle.remove()
    return torch.stack(rows)


def units_rows(size: Size) -> list[Row]:
    """Time of labels and exemplars of all units of all MLPs against plain forwards, and memory."""
    depth, width, n_texts, length = size.pick((12, 768, 782, 128), (2, 64, 8, 16))
    net: Any = language_model(depth, width)
    ids = torch.randint(1, VOCABULARY, (n_texts, length), generator=seeded())

    def plain() -> None:
        with torch.no_grad():
            for part in ids.split(16):
                net(input_ids=part, use_cache=False)

    rounds = size.pick(min(size.rounds, 2), 1)
    arms = {PLAIN: plain, "ours": lambda: _units(net, ids), AGAIN: plain}
    ratio = ratio_of(interleaved(arms, rounds, warm_ups=0), "ours")
    what = f"labels and exemplars of {depth} x {4 * width:,} units over {n_texts * length:,} tokens"
    times = (ratio.median, "x", UNITS_BUDGET, ratio.spread, ratio.rounds, ratio.noise)
    sizes = size.pick((512, 1536), (8, 24))
    few, many = (
        run_child(
            "benchmarks.explain:units_peak", steady=True, width=width, n_texts=n, length=length
        )
        for n in sizes
    )
    tokens = " against ".join(f"{n * length:,}" for n in reversed(sizes))
    return [
        Row("units", f"{what}, 128 bins, 8 concepts, against plain forwards", *times),
        Row(
            "units",
            f"labels and exemplars of 1 x {4 * width:,} units, {tokens} tokens, memory",
            many / max(few, 1.0),
            budget=FLAT_BUDGET,
            note=f"adds {many:.0f} MiB against {few:.0f}",
        ),
    ]


def units_peak(width: int, n_texts: int, length: int) -> float:
    """Return by how many MiB labels and exemplars of one layer raise the memory of this process."""
    net = language_model(1, width)
    ids = torch.randint(1, VOCABULARY, (n_texts, length), generator=seeded())
    return added_peak(lambda: _units(net, ids))


def _units(net: Any, ids: Tensor) -> object:
    items = [{"input_ids": row, "label": i % 8} for i, row in enumerate(ids)]
    stream = read(
        Model(net, task="causal"),
        items,
        sites="transformer.h.*.mlp.c_proj:in",
        reducer="positions",
        batch_size=16,
        label_column="label",
    )
    return fit([Exemplars(), UnitLabels()], stream, progress=False)


def atlas_rows(size: Size) -> list[Row]:
    """Time from fitted states of features to a page that is written."""
    n_features = size.pick(4096, 32)
    rows = torch.randn(512, n_features, generator=seeded())
    stream = Stream.of({"a": rows}, label=(rows[:, 0] > 1).long())
    atlas = fit_atlas(stream, progress=False)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "atlas.html"
        began = time.perf_counter()
        save_document(atlas_document(atlas, model="net", data="rows"), path)
        taken = time.perf_counter() - began
        megabytes = path.stat().st_size / 1e6
    what = f"atlas of {n_features:,} features, from fitted states to page"
    note = f"{megabytes:.1f} MB without inputs"
    return [Row("atlas", what, taken, "s", ATLAS_BUDGET, 0.0, 1, note)]


def seeded() -> torch.Generator:
    """Return the generator of made-up inputs."""
    return torch.Generator().manual_seed(0)
