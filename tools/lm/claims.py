"""``python -m tools.lm.claims MODEL``: established claims, tried on a pretrained language model.

Each draw takes other texts of Python's help pages: some to calibrate on, others to judge by. A
claim is judged as those of ``sonde_studies``: ten draws, an interval at 95 %, and a null arm that
can see the fault with which its effect could be confused. The command writes a line for each draw
and goes on where it stopped; ``--page`` puts the table between the lines of a page.
"""

import argparse
import json
import logging
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn

import sonde
from sonde.compress import GPTQ, RTN, PromptCompressor, PruneWeights
from sonde.core.inputs import Model
from sonde.data import open_inputs
from sonde.weights import Rewrite
from sonde_studies.places import PLACES
from sonde_studies.study import NULL_LEVEL, Claim, Outcome

BEGIN, END = "<!-- printed by python -m tools.lm.claims -->", "<!-- end of claims -->"
CALIBRATED, JUDGED, LENGTH, LONG = 6, 2, 300, 600
BLOCKS = ("model.layers.[0-9].*",)
"""Layers that are rounded or pruned: those of the first ten blocks, which takes seconds."""
MASSIVE = "model.layers.14"
"""A block after which the first token is massive."""
HALF = 0.5
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """One established claim's experiment.

    Parameters
    ----------
    source : str
        The paper, and what it says.
    claims : tuple of Claim
    null : Claim
        An arm without an effect.
    sees : str
        The fault that the null arm can see.
    run : callable
        Returns every claim's figure from a model and the number of the draw.
    """

    source: str
    claims: tuple[Claim, ...]
    null: Claim
    sees: str
    run: Callable[[Model, int], Figures]


def drawn_texts(draw: int, n: int, length: int) -> list[str]:
    """Return the beginnings of ``n`` help pages."""
    pages = [text for _, text in sorted(topics.items()) if len(text) > LONG]
    return [text[:length] for text in random.Random(draw).sample(pages, n)]


def mean_loss(model: Model, module: Any, texts: Sequence[str]) -> float:
    """Return the cross-entropy of texts, in nats per token."""
    total, n = 0.0, 0
    for text in texts:
        ids = torch.tensor([model.processor(text)["input_ids"]])
        total += float(losses_of(module, ids).sum())
        n += ids.shape[1] - 1
    return total / n


@torch.no_grad()
def losses_of(module: Any, ids: Tensor) -> Tensor:
    """Return the loss of each token after the first."""
    log_p = module(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(1)
    return -log_p.gather(1, ids[0, 1:, None])[:, 0]


def massive_states(model: Model, draw: int) -> Figures:
    """Change the largest entries of the first token's state, or as many others, at one block."""
    texts, block = drawn_texts(draw, JUDGED, LENGTH), model.module.get_submodule(MASSIVE)
    source = torch.Generator().manual_seed(draw)
    usual = _first_states(model, block, drawn_texts(1000 + draw, CALIBRATED, 80))

    def changed(how: str) -> float:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            state = (output[0] if isinstance(output, tuple) else output).clone()
            first = state[0, 0]
            most = first.abs().topk(4).indices
            if how == "zero":
                first[most] = 0.0
            elif how == "mean":
                first[most] = usual[most]
            else:
                rest = torch.randperm(len(first), generator=source)
                first[rest[~torch.isin(rest, most)][:4]] = 0.0
            return (state, *output[1:]) if isinstance(output, tuple) else state

        handle = block.register_forward_hook(hook)
        try:
            return mean_loss(model, model.module, texts)
        finally:
            handle.remove()

    plain = mean_loss(model, model.module, texts)
    return {
        "zero": changed("zero") - plain,
        "mean": 0.1 - (changed("mean") - plain),
        "others": changed("others") - plain,
    }


def _first_states(model: Model, block: nn.Module, texts: Sequence[str]) -> Tensor:
    """Return the mean state of the first token after a block."""
    states: list[Tensor] = []
    handle = block.register_forward_hook(
        lambda _, __, out: states.append((out[0] if isinstance(out, tuple) else out)[0, 0])
    )
    for text in texts:
        mean_loss(model, model.module, [text])
    handle.remove()
    return torch.stack(states).mean(0)


def shortened_prompts(model: Model, draw: int) -> Figures:
    """Shorten prompts to half of their words in several ways; the loss of what follows judges."""
    compressor, source = PromptCompressor(HALF, digits=False), random.Random(draw)
    totals: dict[str, list[float]] = {}
    for text in drawn_texts(draw, JUDGED, LONG):
        cut = text.rindex(" ", 0, 2 * len(text) // 3)
        prompt, after = text[:cut], text[cut:]
        short = compressor.compress(model, prompt)
        words, n = [prompt[a:b] for a, b in short.words], int(short.kept.sum())
        lots = [sorted(source.sample(range(len(words)), n)) for _ in range(2)]
        forms = {
            "whole": prompt,
            "compressed": short.text,
            "last": "".join(words[len(words) - n :]),
            "random": "".join(words[i] for i in lots[0]),
            "again": "".join(words[i] for i in lots[1]),
        }
        tail = model.processor(after, add_special_tokens=False)["input_ids"]
        for name, form in forms.items():
            ids = torch.tensor([[*model.processor(form)["input_ids"], *tail]])
            loss = float(losses_of(model.module, ids)[-len(tail) :].mean())
            totals.setdefault(name, []).append(loss)
    mean = {name: sum(values) / len(values) for name, values in totals.items()}
    return {
        "over random": mean["random"] - mean["compressed"],
        "over last": mean["last"] - mean["compressed"],
        "two lots": mean["again"] - mean["random"],
    }


def rounded(model: Model, draw: int) -> Figures:
    """Round ten blocks to 3 bits by GPTQ and to the nearest value."""
    return _compressed(model, draw, RTN(bits=3, layers=BLOCKS), GPTQ(bits=3, layers=BLOCKS))


def pruned(model: Model, draw: int) -> Figures:
    """Set two of every four weights of ten blocks to 0, by size and by size times input."""
    plain = PruneWeights(pattern="2:4", layers=BLOCKS)
    return _compressed(model, draw, plain, PruneWeights(
        pattern="2:4", score="wanda", layers=BLOCKS
    ))  # fmt: skip


def _compressed(model: Model, draw: int, plain: Rewrite, informed: Rewrite) -> Figures:
    """Return what calibration gains over none, and a second calibration over the first.

    The texts that judge are in no calibration.
    """
    texts = drawn_texts(draw, 2 * CALIBRATED + JUDGED, LENGTH)
    held = texts[2 * CALIBRATED :]

    def loss(rule: Rewrite, start: int) -> float:
        data = open_inputs(model, texts[start : start + CALIBRATED])
        new = rule.plan(model, {name: data for name in rule.reads()}).fold(model)
        return mean_loss(model, new, held)

    first = loss(informed, 0)
    return {"gain": loss(plain, 0) - first, "calibrations": loss(informed, CALIBRATED) - first}


_NATS = "nats a token of held-out texts"
_LEAK = Claim("calibrations", "Two calibrations serve alike.", f"{_NATS}, second less first")
TRIALS = {
    "massive states": Trial(
        "Sun et al. 2024: a few massive entries act as fixed biases, which the model needs",
        (
            Claim("zero", "Setting the four largest entries of the first token's state to 0 costs "
                  "more than 0.5 nats.", _NATS, 0.5),
            Claim("mean", "Setting them to their mean over other texts costs less than 0.1 nats.",
                  f"0.1 less the {_NATS}"),
        ),
        Claim("others", "Setting four other entries to 0 costs nothing.", _NATS),
        "that any change of the first token does harm",
        massive_states,
    ),
    "prompt compression": Trial(
        "Li et al. 2023: words of high self-information carry a prompt",
        (
            Claim("over random", "Half of the words by self-information serve better than a random "
                  "half.", f"{_NATS}, random less self-information"),
            Claim("over last", "They serve better than the last half.",
                  f"{_NATS}, last less self-information"),
        ),
        Claim("two lots", "Two random halves serve alike.", f"{_NATS}, one less the other"),
        "that the choice of random words decides",
        shortened_prompts,
    ),
    "2:4 pruning": Trial(
        "Sun et al. 2024 (Wanda): weights are scored by their size times the norm of their input",
        (Claim("gain", "With two of four weights left, Wanda's score beats size.",
               f"{_NATS}, size less Wanda"),),
        _LEAK,
        "that one set of calibration texts resembles the judging texts",
        pruned,
    ),
    "3 bits": Trial(
        "Frantar et al. 2023: GPTQ keeps a model at 3 bits where rounding does not",
        (Claim("gain", "At 3 bits GPTQ beats rounding to the nearest value.",
               f"{_NATS}, rounding less GPTQ"),),
        _LEAK,
        "that one set of calibration texts resembles the judging texts",
        rounded,
    ),
}  # fmt: skip


def table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the claims with their means, intervals and verdicts."""
    printed = [
        "| trial | claim | number | draws | mean | 95 % interval | verdict |",
        "|---" * 7 + "|",
    ]
    for name, trial in TRIALS.items():
        figures = [line["figures"] for line in lines if line["trial"] == name]
        if len(figures) < 3:
            continue
        for claim in (*trial.claims, trial.null):
            is_null = claim is trial.null
            values = tuple(one[claim.key] for one in figures)
            outcome = Outcome(values, claim.above, NULL_LEVEL) if is_null else Outcome(
                values, claim.above
            )  # fmt: skip
            low, high = outcome.interval
            word = f"null: {'as expected' if outcome.covers else 'not as expected'}"
            cells = (name, claim.text, claim.figure, len(values), f"{outcome.mean:.3f}",
                     f"{low:.3f} to {high:.3f}", word if is_null else outcome.verdict)  # fmt: skip
            printed.append(f"| {' | '.join(map(str, cells))} |")
    return printed


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.lm.claims", description=__doc__)
    parser.add_argument("model", help="a model folder, such as .lm/smollm2")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=list(TRIALS), help="trials, by name")
    parser.add_argument("--results", type=Path, default=Path("reports/lm"), help="folder of lines")
    parser.add_argument("--page", type=Path, help="a page with the two lines of this tool")
    typed = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    typed.results.mkdir(parents=True, exist_ok=True)
    path = typed.results / f"{Path(typed.model).name}.claims.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    done, model = {(line["trial"], line["draw"]) for line in lines}, sonde.load(typed.model)
    for name in typed.only:
        for draw in range(typed.draws):
            if (name, draw) not in done:
                figures = TRIALS[name].run(model, draw)
                lines.append({"trial": name, "draw": draw, "figures": figures})
                with path.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(name, draw, {k: round(v, 3) for k, v in figures.items()}, flush=True)
    printed = f"Place: {PLACES['smollm2'].what}.\n\n" + "\n".join(table(lines))
    print(printed)
    if typed.page is not None:
        before, after = typed.page.read_text().split(BEGIN)[0], typed.page.read_text().split(END)[1]
        typed.page.write_text(f"{before}{BEGIN}\n\n{printed}\n\n{END}{after}")


if __name__ == "__main__":
    main()
