"""``python -m tools.lm.faults [MODEL]``: what a scan says of faults that people make.

Each fault is planted into a language model or its texts, and one scan runs. A fault counts if it
costs: if the loss on the texts rises by 0.05 nats per token, or if the model gives NaN. Of texts
that a fault makes longer, the loss is divided by the number of tokens without the fault. It is
*named* if a warning or error that the healthy model does not have is of a code that describes the
fault, or names the damaged module; the scan is *wrong* if its stated cause is neither; else it
*missed* the fault. The codes of each fault are listed in ``tools.lm.planted``,
before any scan runs.

The tiny twin reads documents of its own language, a pretrained model paragraphs of prose
(``tools.lm.texts``). Faults of chats are planted into chats of the model's own template.
"""

import argparse
import copy
import gc
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tools.lm.commands import parsed, write_part
from tools.lm.planted import FAULTS, SEED, Fault, Texts
from tools.lm.texts import chats, prose
from tools.lm.train_twin import FOLDER, document

import sonde
from sonde.core.inputs import Model

BEGIN, END = "<!-- printed by python -m tools.lm.faults -->", "<!-- end -->"
COSTS = 0.05
N_TEXTS = 40


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


def loss_of(model: Model, texts: Sequence[str]) -> tuple[float, int]:
    """Return the cross-entropy of texts, summed over tokens, and the number of tokens."""
    total, count = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([model.processor(text)["input_ids"]])
            log_p = model.module(input_ids=ids, use_cache=False).logits[0].float().log_softmax(1)
            total -= float(log_p[:-1].gather(1, ids[0, 1:, None]).sum())
            count += ids.shape[1] - 1
    return total, count


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


@dataclass(frozen=True)
class Base:
    """Texts without a fault, and what is known of them on the healthy model.

    Parameters
    ----------
    texts : list of str
    loss, n_tokens : float, int
        In nats per token, and the number of tokens.
    known : frozenset of str
        Codes of the warnings and errors of a scan.
    forward, scan : float
        Processor time of a forward pass of each text, and of a scan, in seconds.
    """

    texts: Texts
    loss: float
    n_tokens: int
    known: frozenset[str]
    forward: float
    scan: float


def base(healthy: Model, texts: Texts) -> Base:
    """Read the texts with the healthy model, and scan it."""
    start = time.process_time()
    loss, n = loss_of(healthy, texts)
    forward = time.process_time() - start
    report, seconds = scanned(healthy, texts)
    return Base(texts, loss / n, n, frozenset(loud(report)), forward, seconds)


def outcome(one: Fault, healthy: Model, own: Base) -> Outcome:
    """Plant a fault, scan, and return what the scan said."""
    module = copy.deepcopy(healthy.module)
    changed = one.plant(module, list(own.texts))
    model = replace(healthy, module=module)
    loss, n = loss_of(model, changed)
    cost = loss / min(n, own.n_tokens) - own.loss
    if cost < COSTS:
        return Outcome("free", cost, (), "", 0.0)
    report, seconds = scanned(model, changed)
    gc.collect()  # a scan leaves cycles that hold the copy of the model
    said = {code: some for code, some in loud(report).items() if code not in own.known}
    cause = report.json().get("cause") or ""

    def fits(code: str) -> bool:
        sites = " ".join(str(f["sites"]) + str(f["fix"]) for f in said.get(code, []))
        return code in one.codes or bool(one.place and one.place in sites)

    missed = "wrong" if cause else "missed"
    verdict = "named" if any(map(fits, said)) else missed
    return Outcome(verdict, cost, tuple(sorted(said)), cause, seconds)


def texts_for(model: Model, folder: str, n: int, of_chats: bool) -> Texts:
    """Return documents in the twin's own language, or prose; or chats."""
    if folder != str(FOLDER):
        return (chats if of_chats else prose)(model.processor, n)
    draw = random.Random(SEED)
    texts = [document(draw).replace("<|endoftext|>", "") for _ in range(n)]
    if not of_chats:
        return texts
    pairs = [text.partition(". ")[::2] for text in texts]
    return [
        model.processor.apply_chat_template(
            [{"role": "user", "content": a + "."}, {"role": "assistant", "content": b or "Yes."}],
            tokenize=False,
        )
        for a, b in pairs
    ]


class Kept:
    """Bases and outcomes in a file of JSON lines, so that a run can go on where it was ended."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
        self.values: dict[str, Any] = dict(json.loads(line) for line in lines)

    def get(self, name: str, kind: type, made: Callable[[], Any]) -> Any:
        """Return the value of this name, made and written if it is new."""
        if name not in self.values:
            self.values[name] = asdict(made())
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    row = json.dumps((name, self.values[name]), default=sorted)
                    file.write(row + "\n")
        return kind(**self.values[name])


def row(name: str, found: Outcome) -> str:
    """Return a fault's row of the table."""
    cost = "not finite" if math.isnan(found.cost) else f"{found.cost:.3g}"
    codes = ", ".join(found.said)
    cells = (name, cost, found.verdict, found.cause, codes, f"{found.seconds:.0f}")
    return f"| {' | '.join(cells)} |"


def total(found: Sequence[Outcome]) -> str:
    """Return the line below the table."""
    verdicts = [one.verdict for one in found]
    free = verdicts.count("free")
    return (
        f"\n{verdicts.count('named')} of {len(found) - free} named, {verdicts.count('wrong')} with "
        f"a wrong cause, {verdicts.count('missed')} missed; {free} cost nothing."
    )


def written(page: Path, folder: str, lines: Sequence[str]) -> None:
    """Replace the part of a page between the marks of this model."""
    name = "" if folder == str(FOLDER) else f" {Path(folder).name}"
    begin, end = (mark.replace(" -->", f"{name} -->") for mark in (BEGIN, END))
    write_part(page, begin, end, "\n".join(lines))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.lm.faults", description=__doc__)
    parser.add_argument("model", nargs="?", default=str(FOLDER), help="a model folder")
    parser.add_argument("--texts", type=int, default=N_TEXTS, help="number of texts")
    parser.add_argument("--only", default="", help="faults whose name contains this text")
    parser.add_argument("--lot", type=int, help="only this many faults, drawn by a fixed seed")
    parser.add_argument("--rows", type=Path, help="file of outcomes, which a later run goes on")
    parser.add_argument("--kept", action="store_true", help="only faults with kept outcomes")
    typed = parsed(parser)
    model = sonde.load(typed.model)
    kept, lines = Kept(typed.rows), list[str]()

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    def base_of(of_chats: bool) -> Base:
        texts = texts_for(model, typed.model, typed.texts, of_chats)
        return kept.get("chats" if of_chats else "documents", Base, lambda: base(model, texts))

    drawn = random.Random(SEED).sample(FAULTS, len(FAULTS) if typed.lot is None else typed.lot)
    every = FAULTS if typed.lot is None else drawn
    chosen = [one for one in every if typed.only in one.name]
    chosen = [one for one in chosen if not typed.kept or one.name in kept.values]
    for of_chats, words in ((False, "documents"), (True, "chats")):
        if any(one.of_chats == of_chats for one in chosen):
            own = base_of(of_chats)
            codes = ", ".join(sorted(own.known)) or "none"
            say(
                f"`{Path(typed.model).name}`: {len(own.texts)} {words}, loss {own.loss:.3g} nats "
                f"per token; a plain forward pass {own.forward:.1f} s, a scan {own.scan:.1f} s of "
                f"processor time; warnings of the healthy model: {codes}.\n"
            )
    say("| fault | cost, nats | verdict | cause | new warnings | scan, s |")
    say("|---|---|---|---|---|---|")
    every_found: list[Outcome] = []
    for one in chosen:
        own = base_of(one.of_chats)
        found = kept.get(one.name, Outcome, partial(outcome, one, model, own))
        every_found.append(found)
        say(row(one.name, found))
    say(total(every_found))
    if typed.page is not None:
        written(typed.page, typed.model, lines)


if __name__ == "__main__":
    main()
