"""Merging of a mixture's experts by routing, evenly or at random, and their compression."""

import math
from typing import Any, final

import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

import sonde
from sonde import Model
from sonde.compress import MergeExperts, expert_use, fidelity
from sonde.data import open_inputs
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

EXPERTS, LAYERS, DIM, LENGTH, STEPS, BATCH, TEXTS = 8, 2, 32, 48, 120, 16, 40
ARMS: dict[str, dict[str, Any]] = {
    "routing": {},
    "even": {"mean": "even"},
    "by lot": {"by": "random"},
    "not aligned": {"align": False},
}
QUARTER: dict[str, dict[str, Any]] = {
    "rank and columns": {"keep": 0.5, "size": 0.5, "residual": 0.5},
    "rank alone": {"keep": 0.5, "size": 0.5},
    "columns alone": {"keep": 0.5, "size": 0.5, "residual": 1.0},
    "not merged": {"keep": 1.0, "size": 0.25, "residual": 0.5},
}
"""Ways to a quarter of the experts' numbers, beside merging to a quarter."""


@final
class MergedExpertsStudy(Study):
    """Small mixtures of eight experts on Python bytes, trained separately or from one expert."""

    name = "merged-experts"
    title = "is it the router that says which experts may be merged?"
    paper = "li2024mcsmoe"
    fidelity = "columns of the residual by their squared error; no training afterwards"
    data = "bytes of Python's standard library, 48 in a text; two layers of eight experts"
    place = "byte-model"
    claims = (
        Claim("lot", "Merged by routing to half, answers diverge less than merged by lot.",
              "divergence by lot over that by routing, logarithm",
              arms=("routing, apart, 0.5", "by lot, apart, 0.5")),
        Claim("use", "Means by use diverge less than even means, at half.",
              "divergence of even means over that of means by use, logarithm",
              arms=("routing, apart, 0.5", "even, apart, 0.5")),
        Claim("quarter", "Merged to a quarter, routing is better than lot, too.",
              "divergence by lot over that by routing, logarithm",
              arms=("routing, apart, 0.25", "by lot, apart, 0.25")),
        Claim("align", "Alignment helps where experts were drawn apart.",
              "divergence without over that with it, logarithm, at half",
              arms=("routing, apart, 0.5", "not aligned, apart, 0.5")),
        Claim("not upcycled", "It helps less where all experts started from one.",
              "difference of both logarithms",
              arms=("routing, apart, 0.5", "routing, upcycled, 0.5")),
        Claim("sparse", "Low rank with columns of the residual keeps answers better than low rank "
              "alone, where each merged expert is stored in half of its numbers.",
              "divergence of low rank alone over that of both, logarithm",
              arms=("rank and columns", "rank alone")),
        Claim("compressed", "Merged to half and compressed to half, they diverge less than merged "
              "to a quarter, which is as small.",
              "divergence at a quarter over that of merged and compressed, logarithm",
              arms=("rank and columns", "routing, apart, 0.25")),
        Claim("merged first", "So do they against unmerged experts that are each compressed to a "
              "quarter.",
              "divergence of unmerged over that of merged and compressed, logarithm",
              arms=("rank and columns", "not merged")),
    )  # fmt: skip
    null = Claim("all kept", "Where all experts are kept, answers do not diverge.",
                 "divergence in nats, merged by routing, experts trained apart")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both mixtures, merge them in all ways, and compare answers on test texts."""
        train, fresh = (_texts(part) for part in ("train", "test"))
        order = torch.randperm(len(fresh), generator=torch.Generator().manual_seed(seed))
        fresh = fresh[order[: 5 if tiny else TEXTS]]
        kl: dict[str, float] = {}
        all_kept = 0.0
        for kind in ("apart", "upcycled"):
            tick(kind)
            model = _trained(kind, train, seed, 10 if tiny else STEPS)
            calibration = open_inputs(model, [{"input_ids": t} for t in train[:TEXTS]])
            use = expert_use(model, calibration)
            inputs = open_inputs(model, [{"input_ids": t} for t in fresh])
            named = model.module.named_parameters()
            held = sum(p.nbytes for name, p in named if "experts" in name)
            for keep in (0.5, 0.25):
                for arm, given in ARMS.items():
                    lots = (0, 1, 2, 3) if arm == "by lot" else (0,)
                    found: list[float] = []
                    for lot in lots:
                        rule = MergeExperts(keep, "layer", **given, seed=4 * seed + lot)
                        plan = rule.plan(model, {"calibration": use})
                        found.append(fidelity(model, plan.fold(model), inputs).kl)
                    note_for(f"{arm}, {kind}, {keep:g}", rows=TEXTS, bytes=keep * held)
                    kl[f"{arm}, {kind} | {keep:g}"] = sum(found) / len(found)
            if kind == "apart":
                all_kept = lost_at(model, use, inputs)
            for arm, given in QUARTER.items() if kind == "apart" else ():
                plan = MergeExperts(within="layer", **given).plan(model, {"calibration": use})
                note_for(arm, rows=TEXTS, bytes=given["keep"] * given["size"] * held)
                kl[f"{arm} | 0.25"] = fidelity(model, plan.fold(model), inputs).kl

        def gain(worse: str, better: str, keep: float, kind: str = "apart") -> float:
            return _log(kl[f"{worse}, {kind} | {keep:g}"], kl[f"{better}, {kind} | {keep:g}"])

        both = kl["rank and columns | 0.25"]
        aligned = gain("not aligned", "routing", 0.5)
        return {
            "lot": gain("by lot", "routing", 0.5),
            "use": gain("even", "routing", 0.5),
            "quarter": gain("by lot", "routing", 0.25),
            "align": aligned,
            "not upcycled": aligned - gain("not aligned", "routing", 0.5, "upcycled"),
            "sparse": _log(kl["rank alone | 0.25"], both),
            "compressed": _log(kl["routing, apart | 0.25"], both),
            "merged first": _log(kl["not merged | 0.25"], both),
            "all kept": all_kept,
            **{f"divergence of {name}": v for name, v in kl.items()},
        }


def lost_at(model: Model, use: Any, inputs: Any, keep: float = 1.0) -> float:
    """Return the divergence where a share of the experts is kept, merged by routing."""
    plan = MergeExperts(keep, "layer", **ARMS["routing"]).plan(model, {"calibration": use})
    return fidelity(model, plan.fold(model), inputs).kl


def _log(a: float, b: float) -> float:
    """Return the logarithm of a ratio of divergences that may be 0."""
    return math.log((a + 1e-9) / (b + 1e-9))


def _texts(part: str) -> Tensor:
    """Return texts of equal length, as bytes."""
    model = sonde.load("sonde:stdlib", device="cpu")
    inputs = open_inputs(model, f"sonde:stdlib/{part}")
    ids = torch.cat([b.kwargs["input_ids"] for b in inputs.batches(0, 256)])
    return ids[:, : ids.shape[1] // LENGTH * LENGTH].reshape(-1, LENGTH)


def _trained(kind: str, texts: Tensor, seed: int, steps: int) -> Model:
    config = MixtralConfig(
        vocab_size=256, hidden_size=DIM, intermediate_size=DIM, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, num_local_experts=EXPERTS,
        num_experts_per_tok=2, max_position_embeddings=LENGTH, router_aux_loss_coef=0.02,
        output_router_logits=True,
    )  # fmt: skip
    net: Any = drawn(lambda: MixtralForCausalLM(config), seed)
    if kind == "upcycled":
        with torch.no_grad():
            for layer in net.model.layers:
                for p in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                    p.copy_(p[:1].expand_as(p))

    def loss(rows: Tensor) -> Tensor:
        return net(texts[rows], labels=texts[rows]).loss

    net.train()
    minimise(loss, net.parameters(), len(texts), steps=steps, seed=seed, batch=BATCH)
    config.output_router_logits = False
    return Model(net.eval(), config=config, task="causal")
