"""``python -m benchmarks.engines FOLDER``: a language model read in vLLM, timed and compared.

Run in the environment of ``make test-vllm``; FOLDER is a model such as ``.lm/smollm2``. All arms
share one process and take turns; time is processor time. Every arm continues the same prompts by
the same number of tokens:

- vLLM alone, twice;
- vLLM, reading the mean of each text behind all blocks;
- vLLM, under a guard that scores every token behind all blocks (Mahalanobis); the guard is made
  once, and its making is timed beside;
- transformers, reading the same means.

Then the rows of both engines are compared, the AUROC of detectors fitted on either, and texts that
are steered.
"""

import argparse
import importlib
import inspect
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from torch import Tensor, nn

import sonde
from benchmarks.protocol import AGAIN, PLAIN, Ratio, interleaved, ratio_of
from benchmarks.rows import Row, table
from sonde.core.edit import Add, Project
from sonde.core.inputs import Model
from sonde.metrics import auroc
from sonde.tap import editing

READ, GUARD, OTHER = "vLLM, read", "vLLM, guarded", "transformers, read"
READ_BUDGET, GUARD_BUDGET, OTHER_BUDGET = 1 / 0.90, 1 / 0.85, 1.0
GAP_BUDGET, AUROC_BUDGET = 1e-5, 0.002
PARTS = ("speed", "states", "auroc", "steered", "bfloat16")
EXACT = 5
"""Every fifth prompt is read in float64 too."""
NOISE = 2e-6
EVERY = 10
"""Detectors are fitted behind every tenth block."""
ALONE = ("KNN", "DictLookup", "Mahalanobis", "PatchCore", "SimpleNet")
LABELLED = ("LinearProbe", "MassMean", "RelativeMahalanobis")
"""The detectors that need neither logits, gradients, pairs nor patches of a picture."""


def documents(kind: str) -> Iterator[str]:
    """Yield texts out of Python's own library: its prose (``docs``) or its source (``code``)."""
    for name in sorted(sys.stdlib_module_names):
        module = sys.modules.get(name)
        for _, part in sorted(vars(module).items()) if module is not None else ():
            if not inspect.isfunction(part) and not inspect.isclass(part):
                continue
            try:
                text = inspect.getdoc(part) if kind == "docs" else inspect.getsource(part)
            except (OSError, TypeError):
                continue
            if text and len(text) > 120:
                yield text


def prompts(kind: str, n: int, start: int = 0) -> list[dict[str, str]]:
    """Return texts of 40 to 240 characters."""
    found = list(dict.fromkeys(documents(kind)))[start : start + n]
    return [{"text": text[: 40 + 37 * i % 200]} for i, text in enumerate(found)]


def arms_of(
    plain: Model, there: Model, n: int, new: int
) -> tuple[dict[str, Callable[[], Any]], float]:
    """Return what is timed, by name, and the seconds in which the guard was made."""
    vllm: Any = __import__("vllm")
    data = prompts("docs", n)
    made: Any = there.module
    engine = made.generate.__self__.engine
    tokens = [plain.processor(one["text"])["input_ids"] for one in data]
    greedy = {"max_new_tokens": new, "do_sample": False, "eos_token_id": []}
    params = vllm.SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
    streams = {
        model: sonde.read(
            model, data, sites="blocks", reducer="mean", generate=greedy, batch_size=n
        )
        for model in (plain, there)
    }
    rows = sonde.read(plain, prompts("docs", 40, n), sites="blocks", reducer="tokens")
    probe = sonde.fit(sonde.detect.Mahalanobis(shrinkage=0.1), rows, calibrate=0, progress=False)
    probe = sonde.calibrate(probe, plain, prompts("docs", 20, n + 40), progress=False)
    width = max(map(len, tokens))
    ids = torch.tensor([[0] * (width - len(x)) + x for x in tokens])
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in tokens])

    def alone() -> None:
        engine.follow(there.module, {})
        engine.llm.generate([{"prompt_token_ids": x} for x in tokens], params, use_tqdm=False)

    began = time.process_time()
    guard = sonde.Guard(there, probe, alpha=0.05)  # made once, before traffic
    making = time.process_time() - began

    def guarded() -> None:
        with guard:
            made.generate(input_ids=ids, attention_mask=mask, **greedy)
        assert len(guard.scores) == len(rows.schema)

    arms = {
        PLAIN: alone,
        AGAIN: alone,
        READ: lambda: list(streams[there]),
        GUARD: guarded,
        OTHER: lambda: list(streams[plain]),
    }
    return arms, making


def speed_rows(plain: Model, there: Model, n: int, new: int, rounds: int) -> list[Row]:
    """Time the arms; print prompts and tokens per second of processor time."""
    arms, making = arms_of(plain, there, n, new)
    taken = interleaved(arms, rounds, warm_ups=1)
    for name, seconds in taken.items():
        each = statistics.median(seconds)
        print(
            f"{name:20} {n / each:7.2f} prompts/s {n * new / each:8.1f} tokens/s (processor time)"
        )
    what = f"{n} prompts, {new} new tokens, all blocks"
    other = statistics.median(a / b for a, b in zip(taken[READ], taken[OTHER], strict=True))

    def row(name: str, found: Ratio, budget: float) -> Row:
        return Row("engines", f"{name}: {what}", found.median, "x", budget, found.spread, rounds,
                   found.noise)  # fmt: skip

    return [
        row(f"{READ}, of vLLM alone", ratio_of(taken, READ), READ_BUDGET),
        row(f"{GUARD}, of vLLM alone", ratio_of(taken, GUARD), GUARD_BUDGET),
        Row("engines", f"{READ}, of {OTHER}: {what}", other, "x", OTHER_BUDGET, 0.0, rounds),
        Row("engines", "processor time in which a guard is made: checks of the model", making, "s"),
    ]


class VllmLinear(nn.Module):
    """A linear layer of transformers that multiplies as vLLM does on this processor."""

    cpu_linear: Callable[..., Tensor]

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        layers: Any = importlib.import_module("vllm.model_executor.layers.utils")
        layers.dispatch_cpu_unquantized_gemm(self, remove_weight=False)  # sets cpu_linear

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of rows of any shape."""
        rows = self.cpu_linear(x.flatten(0, -2), self.weight, self.bias)
        return rows.unflatten(0, x.shape[:-1])


def with_products_of_vllm(model: Model) -> Model:
    """Let vLLM's kernel multiply in each linear layer of the blocks of a model of transformers."""
    for block in next(x for x in model.module.modules() if isinstance(x, nn.ModuleList)):
        for part in [*block.modules()]:
            for name, child in [*part.named_children()]:
                if isinstance(child, nn.Linear):
                    setattr(part, name, VllmLinear(child))
    return model


def states_rows(plain: Model, there: Model, n: int) -> list[Row]:
    """Compare the states of all tokens behind all blocks, of both engines and of float64.

    Two correct implementations differ too: transformers is asked with another kernel of attention,
    and with vLLM's kernel for products of matrices.
    """
    folder = str(plain.name)
    eager, products, exact = (sonde.load(folder, device="cpu") for _ in range(3))
    cast("Any", eager.module).set_attn_implementation("eager")
    with_products_of_vllm(products)
    exact.module.double()
    data, fewer = prompts("docs", n), prompts("docs", max(1, n // EXACT))
    every = {"vLLM": there, "transformers": plain, "eager attention": eager,
             "products of vLLM": products}  # fmt: skip
    some = {"transformers": plain, "vLLM": there, "products of vLLM": products, "float64": exact}
    pairs = [(name, "transformers") for name in every if name != "transformers"]
    found = gaps(every, [*pairs, ("vLLM", "products of vLLM")], data)
    found |= gaps(some, [(name, "float64") for name in some if name != "float64"], fewer)
    return [
        Row("engines", f"relative difference of a state, at most, "
            f"{len(fewer) if 'float64' in pair else n} prompts: {' and '.join(pair)}",
            max(each), "", GAP_BUDGET if pair == ("vLLM", "transformers") else None,
            note=f"median {statistics.median(each):.1e}, above {GAP_BUDGET:g}: "
                 f"{sum(x > GAP_BUDGET for x in each) / len(each):.2%}")
        for pair, each in found.items()
    ]  # fmt: skip


def gaps(
    models: dict[str, Model], pairs: Sequence[tuple[str, str]], data: list[dict[str, str]]
) -> dict[tuple[str, str], list[float]]:
    """Return the relative differences of each token's state behind each block, by pair of models.

    Parameters
    ----------
    models : dict of str to Model
    pairs : sequence of tuple of str
        Each of two names; the difference is relative to the second one's state.
    data : list of dict
    """
    how: dict[str, Any] = {"sites": "blocks", "reducer": "tokens", "check": False, "sinks": "keep"}
    streams = (sonde.read(one, data, **how) for one in models.values())
    found: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
    for batches in zip(*streams, strict=True):
        rows = dict(zip(models, (batch.rows for batch in batches), strict=True))
        for pair, each in found.items():
            for key, base in rows[pair[1]].items():
                x, y = rows[pair[0]][key].double(), base.double()
                each += ((x - y).norm(dim=1) / y.norm(dim=1)).tolist()
    return found


def bfloat16_rows(folder: str, n: int) -> list[Row]:
    """Compare the states of both engines in bfloat16 with float32."""
    from sonde.engines.vllm import on_vllm

    exact = sonde.load(folder, device="cpu", dtype="float32")
    plain, half = (sonde.load(folder, device="cpu", dtype="bfloat16") for _ in range(2))
    models = {"transformers": plain, "vLLM": on_vllm(half, max_model_len=1024), "float32": exact}
    pairs = [(name, "float32") for name in models if name != "float32"]
    return [
        Row("engines", f"relative difference from float32 in bfloat16, {n} prompts: {name}",
            statistics.median(each), "", note=f"median; largest {max(each):.2g}")
        for (name, _), each in gaps(models, pairs, prompts("docs", n)).items()
    ]  # fmt: skip


def means(model: Model, data: list[dict[str, str]]) -> dict[str, Tensor]:
    """Return the mean of each text behind each block, in the order of the texts."""
    stream = sonde.read(model, data, sites="blocks", reducer="mean", check=False, sinks="first")
    batches = list(stream)
    order = torch.cat([batch.order for batch in batches]).argsort()
    return {key: torch.cat([b.rows[key] for b in batches])[order] for key in batches[0].rows}


def aurocs_of(rows: dict[str, Tensor], k: int) -> dict[str, dict[str, float]]:
    """Fit each detector on rows, and tell prose from source by it; return AUROCs by block.

    Parameters
    ----------
    rows : dict of str to Tensor
        Of 2k texts of prose, then of 2k texts of source.
    k : int
    """
    is_code = torch.arange(k).new_tensor([0] * k + [1] * k)
    fitted_on = [*range(k), *range(2 * k, 3 * k)]
    scored = [*range(k, 2 * k), *range(3 * k, 4 * k)]
    found: dict[str, dict[str, float]] = {}
    for name in (*ALONE, *LABELLED):
        for key, x in [*rows.items()][::EVERY]:
            detector = getattr(sonde.detect, name)()
            if name in ALONE:
                scorer = detector.fit(x[:k])
            else:
                scorer = detector.fit(x[fitted_on], label=is_code)
            value = auroc(scorer.score(x[scored]), is_code.bool(), resamples=0).value
            found.setdefault(name, {})[key] = float(value)
    return found


def moved(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return rows with relative noise as large as the difference of the engines."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: x * (1 + NOISE * torch.randn(x.shape, generator=generator)) for key, x in rows.items()
    }


def auroc_rows(plain: Model, there: Model, n: int) -> list[Row]:
    """Compare the AUROCs of detectors that are fitted and asked in either engine."""
    k = n // 4
    data = [*prompts("docs", 2 * k), *prompts("code", 2 * k)]
    rows = means(plain, data)
    here, other, control = (aurocs_of(x, k) for x in (rows, means(there, data), moved(rows)))

    def gap(name: str, second: dict[str, dict[str, float]]) -> float:
        return max(abs(here[name][key] - second[name][key]) for key in here[name])

    what = f"{len(rows) // EVERY} blocks, {n} texts"
    return [
        Row("engines", f"AUROC of {name}: largest difference, {what}", gap(name, other), "",
            AUROC_BUDGET, note=f"{gap(name, control):.3f} if rows are moved by {NOISE:g}")
        for name in here
    ]  # fmt: skip


def steered_row(plain: Model, there: Model, new: int) -> Row:
    """Count the greedy texts that differ between the engines under the same edits."""
    code, prose = (means(plain, prompts(kind, 8)) for kind in ("code", "docs"))
    key = [*code][len(code) // 2]
    direction = code[key].mean(dim=0) - prose[key].mean(dim=0)
    n = differing = 0
    for edit in (Add(direction, 2.0), Project(direction)):
        for where in ("all", "generated"):
            for one in prompts("docs", 6, 8):
                ids, texts = plain.processor(one["text"], return_tensors="pt")["input_ids"], []
                for model in (plain, there):
                    made: Any = model.module
                    with editing(model, edit, key.removesuffix(":out"), where):
                        texts.append(
                            made.generate(ids, max_new_tokens=new, do_sample=False, pad_token_id=0)
                        )
                n, differing = n + 1, differing + (not torch.equal(*texts))
    return Row("engines", f"steered greedy texts that differ, of {n} of {new} tokens", differing,
               "", 0.0)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=16, help="prompts of the timed arms")
    parser.add_argument("--new", type=int, default=32, help="new tokens of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compared", type=int, default=200, help="prompts of the comparisons")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    typed = parser.parse_args(arguments)
    from sonde.engines.vllm import on_vllm

    torch.set_num_threads(1)
    plain = sonde.load(str(typed.folder), device="cpu")
    there = on_vllm(sonde.load(str(typed.folder), device="cpu"), max_model_len=1024)
    rows = []
    if "speed" in typed.parts:
        rows += speed_rows(plain, there, typed.prompts, typed.new, typed.rounds)
    if "states" in typed.parts:
        rows += states_rows(plain, there, typed.compared)
    if "auroc" in typed.parts:
        rows += auroc_rows(plain, there, typed.compared)
    if "steered" in typed.parts:
        rows += [steered_row(plain, there, typed.new)]
    if "bfloat16" in typed.parts:
        rows += bfloat16_rows(str(typed.folder), max(1, typed.compared // EXACT))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
