"""Narrow experts of one model for code, prose and numbers, with a gate in front."""

import ast
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

import sonde
from sonde.compress import ExtractExperts, PreGate, SlicedModel
from sonde.data import open_inputs
from sonde_studies._gpt2 import next_token_loss
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

DOMAINS, LENGTH, READ, JUDGED, PREFIX = ("code", "prose", "numbers"), 96, 24, 12, 16
SHARE = 0.5


@final
class DomainExpertsStudy(Study):
    """Half of the hidden units of the shipped byte model, chosen in four ways."""

    name = "domain-experts"
    title = "are the units that a domain uses a better half of a model than any half?"
    paper = "cai2024readme"
    fidelity = "units are chosen, not trained; gated units in place of ReLU; three small domains"
    data = "sonde:stdlib; docstrings and code of Python's library, and random tables of numbers"
    place = "byte-model"
    claims = (
        Claim("random", "A domain's expert, chosen on texts of it, has a lower loss on it than "
              "half of the units by lot.",
              "loss by lot less that of the expert, nats a byte, mean over domains",
              arms=("use", "random")),
        Claim("length", "It has a lower loss, chosen on texts, than the half with the largest "
              "weights.",
              "loss of the largest less that of the expert, nats a byte, mean over domains",
              arms=("use", "length")),
        Claim("own", "It has a lower loss on its domain than the experts of others.",
              "mean loss of others less its own, nats a byte",
              arms=("use", "experts of others")),
        Claim("cheap", "With half of the hidden units, chosen on texts, it loses at most a tenth "
              "of a nat a byte against the whole model.",
              "0.1 less the loss that it adds, mean over domains",
              arms=("use", "whole")),
        Claim("gate", "After 16 bytes a gate before the model knows the text's domain.",
              "share of later bytes that are sent to the expert of their domain, less 0.8"),
    )  # fmt: skip
    null = Claim("all units", "Experts that keep all units have the model's loss.",
                 "loss of experts less that of the model, nats a byte, mean over domains"
                 )  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Prune the model for the domains of a seed's texts, and evaluate on others."""
        model: Any = sonde.load("sonde:stdlib", device="cpu")
        n_read, n_judged = (6, 3) if tiny else (READ, JUDGED)
        texts = _domains(seed, n_read + n_judged)
        read = {name: t[:n_read] for name, t in texts.items()}
        fresh = {name: t[n_read:] for name, t in texts.items()}
        given = {name: [{"input_ids": row} for row in t] for name, t in read.items()}
        tick("experts")
        losses = {"whole": _losses(ExtractExperts(1.0).extract(model, given), fresh)}
        cut = ExtractExperts(SHARE).extract(model, given)
        losses["use"] = _losses(cut, fresh)
        for by in ("length", "random"):
            other = ExtractExperts(SHARE, by=by, seed=seed).extract(model, given)
            losses[by] = _losses(other, fresh)
        units = model.config.intermediate_size * model.config.num_hidden_layers
        for name in ("use", "experts of others", "length", "random", "whole"):
            chosen, share = name in ("use", "experts of others"), 1.0 if name == "whole" else SHARE
            note_for(name, rows=n_read * chosen, parameters=round(share * units))
        mean = {name: float(t.diagonal().mean()) for name, t in losses.items()}
        n = len(DOMAINS)
        others = (losses["use"].sum() - losses["use"].trace()) / (n * (n - 1))
        tick("gate")
        mixed = [item for items in given.values() for item in items]
        gate = PreGate.fit(cut, open_inputs(model, mixed), epochs=2 if tiny else 6, seed=seed)
        sent = [
            float((gate.experts(t)[:, PREFIX:] == i).double().mean())
            for i, t in enumerate(fresh.values())
        ]
        return {
            "random": mean["random"] - mean["use"],
            "length": mean["length"] - mean["use"],
            "own": float(others) - mean["use"],
            "cheap": 0.1 - (mean["use"] - mean["whole"]),
            "gate": sum(sent) / n - 0.8,
            "all units": lost_at(model, given, fresh),
            **{f"loss of {k} | {d}": float(t[i, i]) for k, t in losses.items()
               for i, d in enumerate(DOMAINS)},
            **{f"sent to its expert | {d}": s for d, s in zip(DOMAINS, sent, strict=True)},
        }  # fmt: skip


@torch.no_grad()
def lost_at(
    model: Any, given: dict[str, Any], fresh: dict[str, Tensor], share: float = 1.0
) -> float:
    """Return the loss that experts of a share of the units add to that of the model."""
    cut = _losses(ExtractExperts(share).extract(model, given), fresh).diagonal()
    own = [next_token_loss(model.module(ids).logits, ids) for ids in fresh.values()]
    return float(cut.mean()) - float(torch.stack(own).double().mean())


@torch.no_grad()
def _losses(model: SlicedModel, fresh: dict[str, Tensor]) -> Tensor:
    """Return the loss of each expert (row) on each domain (column), nats per byte."""
    found = torch.zeros(len(model.names), len(fresh), dtype=torch.float64)
    for e in range(len(model.names)):
        for d, ids in enumerate(fresh.values()):
            with model.routed(torch.full((len(ids),), e)) as routed:
                logits = routed(ids).logits
            found[e, d] = next_token_loss(logits, ids)
    return found


def _domains(seed: int, n: int) -> dict[str, Tensor]:
    """Return texts of each domain, as bytes (text, byte)."""
    draw = np.random.default_rng(seed)
    files = sorted(Path(ast.__file__).parent.glob("*.py"))
    found: dict[str, list[bytes]] = {name: [] for name in DOMAINS}
    for i in draw.permutation(len(files)):
        source = files[i].read_text("utf-8", errors="replace")
        if min(len(found["code"]), len(found["prose"])) >= n:
            break
        tree = ast.parse(source)
        nodes = [v for v in ast.walk(tree) if isinstance(v, ast.FunctionDef | ast.ClassDef)]
        told = [ast.get_docstring(v) or "" for v in (tree, *nodes)]
        prose = " ".join(" ".join(told).split()).encode()
        code = "\n".join(_without_docstring(v) for v in nodes if isinstance(v, ast.FunctionDef))
        for name, text in (("prose", prose), ("code", code.encode())):
            pieces = [text[k : k + LENGTH] for k in range(0, len(text) - LENGTH, LENGTH)]
            chosen = draw.permutation(len(pieces))[:4]
            found[name] += [pieces[k] for k in chosen]
    table = ", ".join(f"{v:.3f}" for v in draw.normal(0, 100, n * LENGTH // 4)).encode()
    found["numbers"] = [table[k : k + LENGTH] for k in range(0, n * LENGTH, LENGTH)]
    return {
        name: torch.tensor([list(piece) for piece in pieces[:n]]) for name, pieces in found.items()
    }


def _without_docstring(node: ast.FunctionDef) -> str:
    if ast.get_docstring(node) is not None:
        node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(node)
