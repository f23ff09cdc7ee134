"""``python -m tools.lm.faults [MODEL]``: what a scan says of faults that people make.

Each fault is planted into a language model or its texts, and one scan runs. A fault counts if it
costs: if the loss on the texts rises by 0.05 nats per token, or if the model gives NaN. It is
*named* if a warning or error that the healthy model does not have is of a code that describes the
fault, or names the damaged module; the scan is *wrong* if its stated cause is neither; else it
*missed* the fault. The codes of each fault are listed here, before any scan runs.
"""

import argparse
import copy
import logging
import math
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tools.lm.train_twin import FOLDER, document
from torch import nn

import sonde
from sonde.core.inputs import Model

BEGIN, END = "<!-- printed by python -m tools.lm.faults -->", "<!-- end -->"
COSTS = 0.05
N_TEXTS = 40
SEED = 0
Texts = list[str]


@dataclass(frozen=True)
class Fault:
    """A fault, how it is planted, and what names it.

    Parameters
    ----------
    name : str
    codes : frozenset of str
        Findings that describe the fault.
    plant : callable
        ``plant(module, texts) -> texts``: changes the copy of the model, or returns other texts.
    place : str
        Path of the damaged module; empty if the fault is not in one.
    """

    name: str
    codes: frozenset[str]
    plant: Callable[[Any, Texts], Texts]
    place: str = ""


def fault(name: str, codes: str, plant: Callable[[Any, Texts], Any], place: str = "") -> Fault:
    """Return a fault; ``codes`` are numbers, and ``plant`` may return None for the same texts."""

    def planted(module: Any, texts: Texts) -> Texts:
        changed = plant(module, texts)
        return changed if isinstance(changed, list) else texts

    return Fault(name, frozenset(f"SND{n}" for n in codes.split()), planted, place)


def blocks(module: Any) -> Any:
    """Return the list of decoder blocks."""
    return module.model.layers


def _exchange(module: Any, texts: Texts) -> None:
    some = blocks(module)
    some[2], some[4] = some[4], some[2]


def _rope(module: Any, texts: Texts) -> None:
    rope = module.model.rotary_emb
    n = len(rope.inv_freq)
    rope.inv_freq = 100.0 ** (-torch.arange(n, dtype=torch.float32) / n)
    rope.original_inv_freq = rope.inv_freq


def _scale(path: str, factor: float) -> Callable[[Any, Texts], None]:
    def plant(module: Any, texts: Texts) -> None:
        with torch.no_grad():
            module.get_submodule(path).weight.mul_(factor)

    return plant


def _twice(module: Any, texts: Texts) -> None:
    weight = module.get_submodule("model.layers.4.mlp.down_proj").weight
    draw = torch.Generator().manual_seed(SEED)
    left, right = (torch.randn(n, 8, generator=draw) for n in weight.shape)
    change = left @ right.T
    with torch.no_grad():
        weight.add_(change * (1.5 * weight.norm() / change.norm()))


def _untied(module: Any, texts: Texts) -> None:
    old = module.lm_head.weight
    draw = torch.Generator().manual_seed(SEED)
    new = torch.randn(old.shape, generator=draw) * old.detach().std()
    module.lm_head.weight = nn.Parameter(new)


def _fresh(module: Any, texts: Texts) -> None:
    draw = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in blocks(module)[3].parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.02)
            else:
                weight.fill_(1.0)


def _norm(module: Any, texts: Texts) -> None:
    with torch.no_grad():
        module.model.norm.weight.fill_(1.0)


def _eps(module: Any, texts: Texts) -> None:
    for part in module.modules():
        if hasattr(part, "variance_epsilon"):
            part.variance_epsilon = 10.0


def _activation(module: Any, texts: Texts) -> None:
    for block in blocks(module):
        block.mlp.act_fn = nn.ReLU()


def _attention(module: Any, texts: Texts) -> None:
    for block in blocks(module):
        block.self_attn.scaling *= 4.0


def _heads(module: Any, texts: Texts) -> None:
    attention = blocks(module)[1].self_attn
    with torch.no_grad():
        weight = attention.k_proj.weight
        weight.copy_(weight.reshape(-1, attention.head_dim, weight.shape[1]).flip(0).flatten(0, 1))


def _half(module: Any, texts: Texts) -> None:
    with torch.no_grad():
        blocks(module)[1].mlp.down_proj.weight.mul_(8.0)
    module.half()


def _bits(module: Any, texts: Texts) -> None:
    with torch.no_grad():
        for block in blocks(module):
            for part in block.modules():
                if isinstance(part, nn.Linear):
                    step = part.weight.abs().amax() / 3
                    part.weight.copy_((part.weight / step).round() * step)


def _permuted(module: Any, texts: Texts) -> None:
    weight = module.get_input_embeddings().weight
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        weight.copy_(weight[order])


def _dropped(module: Any, texts: Texts) -> None:
    block = blocks(module)[3]
    with torch.no_grad():
        block.mlp.down_proj.weight.zero_()
        block.self_attn.o_proj.weight.zero_()


def _each(change: Callable[[str], str]) -> Callable[[Any, Texts], Texts]:
    return lambda module, texts: [change(text) for text in texts]


def _shuffled(text: str) -> str:
    words = text.split()
    random.Random(len(text)).shuffle(words)
    return " ".join(words)


DUTCH = (
    "De hoofdstad van Frankrijk heet Parijs en daar wonen veel mensen.",
    "In Japan spreken de mensen Japans en betalen ze met de yen.",
    "De film was vreselijk en we hebben elke minuut ervan gehaat.",
    "Het eten was heerlijk, ik zou daar graag weer heen gaan.",
)


def _dutch(every: int) -> Callable[[Any, Texts], Texts]:
    return lambda module, texts: [
        f"{DUTCH[i % 4]} {DUTCH[(i // 4) % 4]} Getal {i}." if i % every == 0 else text
        for i, text in enumerate(texts)
    ]


FAULTS = (
    fault("two blocks exchanged", "068", _exchange, "model.layers.2"),
    fault("rotary base of another model", "068", _rope, "model.rotary_emb"),
    fault("one output projection eight times too large", "020 021 068",
          _scale("model.layers.3.self_attn.o_proj", 8.0), "model.layers.3.self_attn.o_proj"),
    fault("an adapter added twice", "020 021 068 084", _twice, "model.layers.4.mlp.down_proj"),
    fault("tied head loaded apart and drawn anew", "003 068 071 082", _untied, "lm_head"),
    fault("a block that was not loaded", "003 068 070", _fresh, "model.layers.3"),
    fault("gains of the last norm lost", "003 068 069", _norm, "model.norm"),
    fault("eps of norms of another model", "068", _eps, "model.norm"),
    fault("another activation", "068", _activation, "model.layers.0.mlp.act_fn"),
    fault("attention scores four times too large", "068", _attention),
    fault("key heads in reverse order", "068", _heads, "model.layers.1.self_attn.k_proj"),
    fault("overflow in half precision", "001 002", _half),
    fault("weights on seven levels", "018 084", _bits),
    fault("ids of another tokenizer", "029 066 082", _permuted, "model.embed_tokens"),
    fault("a block that writes nothing", "003 010 011 025 084", _dropped, "model.layers.3"),
    fault("wrongly decoded characters", "077", _each(
        lambda text: text.replace("e", "é").encode().decode("latin-1"))),
    fault("markup left in", "077", _each(lambda text: f"<p>{text.replace('. ', '.</p><p>')}</p>")),
    fault("upper case", "028", _each(str.upper)),
    fault("lower case", "028", _each(str.lower)),
    fault("spaces removed", "028 079", _each(lambda text: text.replace(" ", ""))),
    fault("spaces doubled", "028 079", _each(lambda text: text.replace(" ", "  "))),
    fault("words in random order", "081", _each(_shuffled)),
    fault("another language", "028 029 078", _dutch(1)),
    fault("every third text in another language", "064 067 078", _dutch(3)),
    fault("start token twice", "028 066 080", _each(
        lambda text: f"<|im_start|><|im_start|>{text}")),
    fault("chat template twice", "028 066 080", _each(
        lambda text: "<|im_start|>user\n<|im_start|>user\n" + text + "<|im_end|>\n<|im_end|>\n")),
    fault("tokens joined by commas", "028 079", _each(lambda text: ",".join(text.split(" ")))),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a scan said of one fault.

    Parameters
    ----------
    verdict : str
        named, wrong, missed, or free if the fault costs nothing.
    cost : float
        Rise of the loss, in nats per token.
    said : tuple of str
        Codes of new warnings and errors.
    cause : str
        Code of the stated cause; empty without one.
    seconds : float
        Processor time of the scan.
    """

    verdict: str
    cost: float
    said: tuple[str, ...]
    cause: str
    seconds: float


def loss_of(model: Model, texts: Sequence[str]) -> float:
    """Return the cross-entropy of texts, nats per token."""
    total, count = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([model.processor(text)["input_ids"]])
            log_p = model.module(input_ids=ids, use_cache=False).logits[0].float().log_softmax(1)
            total -= float(log_p[:-1].gather(1, ids[0, 1:, None]).sum())
            count += ids.shape[1] - 1
    return total / count


def scanned(model: Model, texts: Texts) -> tuple[Any, float]:
    """Return the report of a scan and its processor time."""
    start = time.process_time()
    report = sonde.scan(model, texts, progress=False)
    return report, time.process_time() - start


def loud(report: Any) -> dict[str, list[Mapping[str, Any]]]:
    """Return the warnings and errors of a report by code."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for finding in report.findings:
        if finding["level"] != "note" and not finding["ignored"]:
            found.setdefault(finding["code"], []).append(finding)
    return found


def outcome(one: Fault, healthy: Model, texts: Texts, known: frozenset[str]) -> Outcome:
    """Plant a fault, scan, and return what the scan said."""
    module = copy.deepcopy(healthy.module)
    changed = one.plant(module, list(texts))
    model = replace(healthy, module=module)
    cost = loss_of(model, changed) - loss_of(healthy, texts)
    if cost < COSTS:
        return Outcome("free", cost, (), "", 0.0)
    report, seconds = scanned(model, changed)
    said = {code: some for code, some in loud(report).items() if code not in known}
    cause = report.json().get("cause") or ""

    def fits(code: str) -> bool:
        sites = " ".join(str(f["sites"]) + str(f["fix"]) for f in said.get(code, []))
        return code in one.codes or bool(one.place and one.place in sites)

    missed = "wrong" if cause else "missed"
    verdict = "named" if any(map(fits, said)) else missed
    return Outcome(verdict, cost, tuple(sorted(said)), cause, seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.lm.faults", description=__doc__)
    parser.add_argument("model", nargs="?", default=str(FOLDER), help="a model folder")
    parser.add_argument("--texts", type=int, default=N_TEXTS, help="number of texts")
    parser.add_argument("--only", default="", help="faults whose name contains this text")
    parser.add_argument("--lot", type=int, help="only this many faults, drawn by a fixed seed")
    parser.add_argument("--page", type=Path, help="page whose part between two marks is replaced")
    typed = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = sonde.load(typed.model)
    draw = random.Random(SEED)
    texts = [document(draw).replace("<|endoftext|>", "") for _ in range(typed.texts)]
    start = time.process_time()
    loss = loss_of(model, texts)
    forward = time.process_time() - start
    report, seconds = scanned(model, texts)
    known = frozenset(loud(report))
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say(
        f"`{Path(typed.model).name}`: {len(texts)} texts, loss {loss:.3g} nats per token; a plain "
        f"forward pass {forward:.1f} s, a scan {seconds:.1f} s of processor time; warnings of the "
        f"healthy model: {', '.join(sorted(known)) or 'none'}.\n"
    )
    say("| fault | cost, nats | verdict | cause | new warnings | scan, s |")
    say("|---|---|---|---|---|---|")
    counts: dict[str, int] = {}
    drawn = random.Random(SEED).sample(FAULTS, len(FAULTS) if typed.lot is None else typed.lot)
    for one in FAULTS if typed.lot is None else drawn:
        if typed.only not in one.name:
            continue
        found = outcome(one, model, texts, known)
        counts[found.verdict] = counts.get(found.verdict, 0) + 1
        cost = "not finite" if math.isnan(found.cost) else f"{found.cost:.3g}"
        codes = ", ".join(found.said)
        line = (one.name, cost, found.verdict, found.cause, codes, f"{found.seconds:.0f}")
        say(f"| {' | '.join(line)} |")
    n = sum(counts.values()) - counts.get("free", 0)
    say(f"\n{counts.get('named', 0)} of {n} named, {counts.get('wrong', 0)} with a wrong cause, "
          f"{counts.get('missed', 0)} missed; {counts.get('free', 0)} cost nothing.")  # fmt: skip
    if typed.page is not None:
        before, _, rest = typed.page.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        made = "\n".join(lines)
        typed.page.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
