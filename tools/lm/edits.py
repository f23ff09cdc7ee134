"""``python -m tools.lm.edits MODEL``: rewritten facts, steering, unlearning and a merge, judged.

Facts are those of ``tools.lm.known_facts`` whose answer the model gives. Each is rewritten to
another subject's answer by ``sonde.edit.RankOneEdit`` and by ROME in plain torch
(``tools.lm.rome``), at the same layer and with the second moment of the same texts, which is
computed once. Other wordings and the same question about other subjects judge them; the edits of
sonde, and those of ``tools.lm.other_edits``, are judged by all eight figures. The command writes a
line for each edit and goes on where it stopped; ``--page`` puts the table between the lines of a
page.

In the tiny Llama neither method writes a fact: its ordinary states are clipped to a length beside
which a change of one layer is nothing.
"""

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tools.lm.commands import parsed, write_part
from tools.lm.known_facts import known_facts
from tools.lm.other_edits import merged, steered, unlearned
from tools.lm.rome import rome_weight
from tools.lm.train_twin import FOLDER, document
from torch import nn

import sonde
from sonde.core.inputs import Model
from sonde.edit import Fact, RankOneEdit, SecondMoment
from sonde.run.changing.acts import module_act, plan_act
from sonde.run.changing.fact_prompts import FactPrompts, measure_facts
from sonde.run.changing.language_figures import measure_language, plain_texts

BEGIN, END = "<!-- printed by python -m tools.lm.edits -->", "<!-- end of edits -->"
METHODS = "sonde", "rome"
KINDS = ("steer", "facts", "forget", "merge")
THREE = ("efficacy", "generality", "specificity")
EIGHT = (*THREE, "other topics", "text loss", "fluency", "plausibility", "refusals")


def second_moment(model: Model, layer: str, texts: Sequence[str]) -> torch.Tensor:
    """Return the mean of ``x x^T`` of a layer's inputs, by a hook."""
    total, n = torch.zeros((), dtype=torch.float64), 0

    def add(_: Any, given: Any) -> None:
        nonlocal total, n
        x = given[0][0].double()
        total, n = total + x.T @ x, n + len(x)

    hook = model.module.get_submodule(layer).register_forward_pre_hook(add)
    with torch.no_grad():
        for text in texts:
            model.module(input_ids=torch.tensor([model.processor(text)["input_ids"]]))
    hook.remove()
    mean = total / n
    return mean + 1e-3 * mean.diagonal().mean() * torch.eye(len(mean), dtype=mean.dtype)


def changed_by_rome(model: Model, layer: str, fact: Fact, moment: torch.Tensor) -> nn.Module:
    """Return a copy of the model that ROME in plain torch has edited."""
    asked = fact.prompt, fact.subject, fact.target
    weight = rome_weight(model.module, model.processor, layer, asked, moment)
    new = copy.deepcopy(model.module)
    new.get_submodule(layer).weight.data = weight
    return new


def rewritten(
    model: Model, layer: str, texts: Sequence[str], which: slice, done: set[str]
) -> Iterator:
    """Yield a line for each fact and method that is not done."""
    facts = known_facts(model, 0)[which]
    names = [f"{f.prompt}{f.target}" for f in facts]
    if {f"{method}: {name}" for name in names for method in METHODS} <= done:
        return
    rows = sonde.read(model, list(texts), sites=f"{layer}:in", reducer="tokens", check=False)
    fitted = sonde.fit(SecondMoment(ridge=1e-3), rows, progress=False)
    moment, plain = second_moment(model, layer, texts), plain_texts(model)
    for fact in facts:
        prompts = FactPrompts.of(model, [fact])
        for method in METHODS:
            key = f"{method}: {fact.prompt}{fact.target}"
            if key in done:
                continue
            start = time.process_time()
            if method == "sonde":
                act = plan_act(model, RankOneEdit(fact, layer).plan(model, fitted))
            else:
                act = module_act(changed_by_rome(model, layer, fact, moment))
            took = time.process_time() - start
            if method == "sonde":
                scores = measure_language(model, act, facts=prompts, plain=plain).scores
            else:
                found = measure_facts(model, act, prompts)
                scores = {
                    "efficacy": found.efficacy[1],
                    "generality": found.generality[1],
                    "specificity": found.specificity,
                }
            yield {"key": key, "kind": f"rewrite a fact, {method}", "scores": scores, "s": took}


def table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return the mean scores of each kind of edit, and the harmonic mean of the first three."""
    kinds = dict.fromkeys(line["kind"] for line in lines)
    measured = {name for line in lines for name in line["scores"]}
    names = [name for name in EIGHT if name in measured]
    head = ["edit", "n", *names, "harmonic mean of three", "worst below 0.5", "s"]
    found = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind in kinds:
        some = [line for line in lines if line["kind"] == kind]
        means: dict[str, float] = {}
        for name in names:
            values = [one["scores"][name] for one in some if name in one["scores"]]
            if values:
                means[name] = statistics.mean(values)
        poor = sum(min(one["scores"].values()) < 0.5 for one in some)
        cells = [f"{means[name]:.2f}" if name in means else "" for name in names]
        seconds = statistics.mean(one["s"] for one in some)
        of_three = joint_words(some) if kind.startswith("rewrite") else ""
        last = [of_three, f"{poor}", f"{seconds:.1f}"]
        found.append(f"| {' | '.join([kind, str(len(some)), *cells, *last])} |")
    return found


def joint(lines: Sequence[dict[str, Any]]) -> float:
    """Return the harmonic mean of the mean efficacy, generality and specificity."""
    return statistics.harmonic_mean(
        [statistics.mean(line["scores"][name] for line in lines) for name in THREE]
    )


def joint_words(lines: Sequence[dict[str, Any]]) -> str:
    """Return the harmonic mean with its 95 % interval by the bootstrap over facts."""
    whole = [line for line in lines if all(name in line["scores"] for name in THREE)]
    if len(whole) < 2:
        return f"{joint(whole):.2f}" if whole else ""
    draw = random.Random(0)
    means = sorted(joint(draw.choices(whole, k=len(whole))) for _ in range(2000))
    return f"{joint(whole):.2f} ({means[50]:.2f} to {means[1949]:.2f})"


def main() -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.lm.edits", description=__doc__)
    parser.add_argument("model", nargs="?", default=str(FOLDER), help="a model folder")
    parser.add_argument("--layer", default="model.layers.3.mlp.down_proj", help="layer of facts")
    parser.add_argument("--site", default="model.layers.3", help="site of steering")
    parser.add_argument("--facts", type=int, default=50, help="facts, with those left")
    parser.add_argument(
        "--skip", type=int, default=0, help="facts at the start of the list to leave"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="edits to judge")
    parser.add_argument("--results", type=Path, default=Path("reports/lm"), help="folder of lines")
    typed = parsed(parser)
    name = Path(typed.model).name
    typed.results.mkdir(parents=True, exist_ok=True)
    path = typed.results / f"{name}.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    done = {line["key"] for line in lines}
    model, draw = sonde.load(typed.model), random.Random(3)
    texts = [document(draw).replace("<|endoftext|>", "") for _ in range(60)]
    kinds = {
        "steer": steered(model, typed.site, done),
        "facts": rewritten(model, typed.layer, texts, slice(typed.skip, typed.facts), done),
        "forget": unlearned(model, done),
        "merge": merged(model, typed.model, done),
    }
    for kind in typed.kinds:
        for line in kinds[kind]:
            lines.append(line)
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line["key"], {k: round(v, 2) for k, v in line["scores"].items()}, flush=True)
    printed = f"`{name}`, facts at `{typed.layer}`, steering at `{typed.site}`:\n\n"
    printed += "\n".join(table(lines))
    print(printed)
    write_part(typed.page, BEGIN, END, printed)


if __name__ == "__main__":
    main()
