"""Erasure against concept-erasure, and facts written against a forward of their prompts."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.peers import PEER_OF, time_and_memory_rows
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde import load
from sonde.core.inputs import Model
from sonde.edit import BatchEdit, Fact, NullSpace, SecondMoment

PEER = PEER_OF["erase_runner"]
TIME_BUDGET, MEMORY_BUDGET, FACTS_BUDGET, EXACT = 0.85, 1.0, 2.0, 1e-8


def erase_rows(size: Size) -> list[Row]:
    """Time and memory of fitting an eraser and applying it."""
    n, width = size.pick((60_000, 768), (400, 16))
    what = f"LEACE, fit and apply {n} x {width}, against {PEER}"

    def notes(taken: dict[str, Any]) -> tuple[str, str]:
        apart = f"{taken['apart']:.1e} spreads"
        return "", f"; rows differ from its own in float64, unshrunk, by {apart}"

    shape, budgets = {"n": n, "width": width}, (TIME_BUDGET, MEMORY_BUDGET)
    return time_and_memory_rows("erase_runner", "erase", what, size, shape, budgets, notes)


def fact_rows(size: Size) -> list[Row]:
    """Time of planning 100 facts from fitted moments, their shifts given, and what it misses."""
    model = _language_model(*size.pick((12, 768), (2, 16)))
    facts = [Fact(f"city {i:03d} is", f"city {i:03d}", "!") for i in range(size.pick(100, 4))]
    width = model.config.n_inner
    layer = f"transformer.h.{model.config.n_layer // 2}.mlp.c_proj"
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2 * width, width, generator=generator)
    inputs = inputs * torch.linspace(1.0, 0.01, width)
    moment, space = SecondMoment().fit(inputs), NullSpace().fit(inputs)
    shifts = torch.randn(len(facts), model.config.n_embd, generator=generator).double()
    ids = torch.tensor([list(fact.prompt.encode()) for fact in facts])

    def forward() -> Any:
        with torch.no_grad():
            return model.module(ids)

    def edit(how: Any, fitted: Any) -> Callable[[], Any]:
        batch = BatchEdit(facts, [layer], how=how, prefixes=("",), shifts=shifts)
        return lambda: batch.plan(model, fitted)

    arms: dict[str, Callable[[], Any]] = {
        PLAIN: forward,
        "equal": edit("equal", moment),
        "null_space": edit("null_space", space),
        AGAIN: forward,
    }
    taken = interleaved(arms, size.rounds, warm_ups=1)
    found: list[Row] = []
    for how in ("equal", "null_space"):
        ratio = ratio_of(taken, how)
        what = f"{len(facts)} facts of {ids.shape[1]} tokens, {how}, against one forward of them"
        note = f"shifts given: their search is {25} steps of its own; {ratio.noise}"
        found.append(
            Row("facts", what, ratio.median, "x", FACTS_BUDGET, ratio.spread, ratio.rounds, note)
        )
    missed = float(edit("equal", moment)().figures["missed"])
    found.append(Row("facts", "largest relative residual, equal, float64", missed, "", EXACT))
    return found


def _language_model(n_layers: int, width: int) -> Model:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_embd=width, n_inner=4 * width, n_layer=n_layers, n_head=width // 8
    )
    tokenizer = load("sonde:stdlib").processor
    return Model(GPT2LMHeadModel(config).eval(), tokenizer, config, task="causal")
