"""Test whether parallel adapters learn facts of two domains without harming others.

A toy: a net of one feed-forward layer that knows facts by heart. What came out (ten seeds): the
gated adapters lose none of the general facts, where tuning the layer on the domains' facts loses
half; tuned on the general facts again as well, as the gate is, the layer loses none either. They
know .78 of the domains' facts: under the penalty an adapter that thin learns no more of its own by
itself (.80); twice as wide it learns all, and so does the gate. Summed without a gate, adapters
spoil each other's facts, and without the penalty the general ones too. Where there is a gate the
penalty is not needed: adapters that were trained without it keep all as well, and know .98.
"""

import copy
from typing import Any, final

from torch import Tensor, nn

from sonde.layers import with_adapters
from sonde_studies._fact_memory import (
    ANSWERS,
    DIM,
    GROUPS,
    FactMemory,
    facts_of_groups,
    known_of,
    tell,
)
from sonde_studies.arms import note_again, note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

WIDTH, STEPS = 16, 400
ARMS = (("no penalty", WIDTH, 0.0), ("penalty", WIDTH, 10.0), ("twice as wide", 2 * WIDTH, 10.0))
DOMAINS = GROUPS[1:3]
FIGURE = "difference of the share of facts that are known"


@final
class ParallelAdaptersStudy(Study):
    """A fact memory with one feed-forward layer, and 160 facts of each of three groups."""

    name = "parallel-adapters"
    title = "do parallel adapters teach domain facts without forgetting?"
    paper = "diao2023mixda"
    fidelity = (
        "toy size: one feed-forward layer that reads subject and relation, for two of the twelve "
        "of a language model; adapters a sixteenth of the layer's width, both training stages as "
        "published, the task of the second being the same facts; nothing was chosen on them"
    )
    data = "random facts (subject, relation, one of 24 answers) of three groups, and untold ones"
    claims = (
        Claim(
            "learnt",
            "Adapters with their gate know more than 90% of the facts of both domains.",
            "share of facts that are known",
            above=0.9,
        ),
        Claim(
            "kept",
            "They lose less than 5 points of the general facts.",
            "difference of the share of facts that are known, after training less before",
            above=-0.05,
            arms=("gate, penalty", "before"),
        ),
        Claim(
            "kept over tuning",
            "They keep more general facts than tuning the layer on facts of the domains alone.",
            "difference of the share of facts that are known; adapters and gate take three times "
            "the updates on half as many rows more, of a quarter of the parameters",
            arms=("gate, penalty", "tuned layer"),
        ),
        Claim(
            "kept over repeating",
            "They keep more of them than tuning the layer on all facts, as their gate is.",
            "difference of the share of facts that are known; adapters and gate take three times "
            "the updates, of a quarter of the parameters",
            arms=("gate, penalty", "layer tuned on all facts"),
        ),
        Claim(
            "penalty",
            "Without a gate, the penalty on the change at general facts keeps more of them.",
            FIGURE,
            arms=("adapters, penalty", "adapters, no penalty"),
        ),
        Claim(
            "gate",
            "The gate, with further steps, rows and parameters, knows more than the sum of the "
            "adapters, mean of all groups.",
            FIGURE,
            arms=("gate, penalty", "adapters, penalty"),
        ),
    )
    null = Claim(
        "untold",
        "Facts that were told to no net are known by chance.",
        "share of facts that are known",
        above=1 / ANSWERS,
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train on general facts, then on those of two domains in each way."""
        steps = STEPS // 20 if tiny else STEPS
        facts = facts_of_groups(seed)
        tick("general facts")
        memory = drawn(FactMemory, seed)
        tell(memory, facts, ["general"], list(memory.parameters()), steps, seed)
        tick("tuned layer")
        tuned = copy.deepcopy(memory)
        tell(tuned, facts, [*DOMAINS], list(tuned.layer.parameters()), steps, seed)
        tick("layer tuned on all facts")
        again = copy.deepcopy(memory)
        tell(again, facts, ["general", *DOMAINS], list(again.layer.parameters()), steps, seed)
        arms: dict[str, Any] = {
            "before": memory, "tuned layer": tuned, "layer tuned on all facts": again
        }  # fmt: skip
        for name, width, penalty in ARMS:
            tick(f"adapters, {name}")
            each = [
                _adapter(memory, facts, domain, steps, seed, width, penalty) for domain in DOMAINS
            ]
            tick(f"gate, {name}")
            note_again(f"gate, {name}", f"adapters, {name}")
            arms[f"first alone, {name}"] = _joined(memory, each[:1], width, seed)
            arms[f"sum, {name}"] = _joined(memory, each, width, seed)
            gated = arms[f"gate, {name}"] = _joined(memory, each, width, seed, gated=True)
            gate = [*gated.layer.query.parameters(), *gated.layer.key.parameters()]
            tell(gated.train(), facts, ["general", *DOMAINS], gate, steps, seed)
        note_for("before", updates=0)
        known = {name: known_of(net.eval(), facts) for name, net in arms.items()}
        found = {f"{name} | {k}": v for name, row in known.items() for k, v in row.items()}
        kept = {name: row["general"] for name, row in known.items()}
        told = {name: sum(row[g] for g in GROUPS[:3]) / 3 for name, row in known.items()}
        return {
            "learnt": sum(known["gate, penalty"][domain] for domain in DOMAINS) / 2,
            "kept": kept["gate, penalty"] - kept["before"],
            "kept over tuning": kept["gate, penalty"] - kept["tuned layer"],
            "kept over repeating": kept["gate, penalty"] - kept["layer tuned on all facts"],
            "penalty": kept["sum, penalty"] - kept["sum, no penalty"],
            "gate": told["gate, penalty"] - told["sum, penalty"],
            "untold": known["gate, penalty"]["untold"],
            **found,
        }


def _adapter(
    memory: Any, facts: Tensor, domain: str, steps: int, seed: int, width: int, penalty: float
) -> nn.Module:
    """Return the adapter trained on the facts of a domain (the first stage)."""
    net = drawn(lambda: with_adapters(memory, ["layer"], DIM, width=width), seed)
    tell(net, facts, [domain], [*net.layer.adapters.parameters()], steps, seed, penalty)
    return net.layer.adapters[0]


def _joined(memory: Any, each: list[nn.Module], width: int, seed: int, gated: bool = False) -> Any:
    """Return the memory with adapters trained before."""
    options = {"n_domains": len(each), "width": width, "gated": gated}
    net = drawn(lambda: with_adapters(memory, ["layer"], DIM, **options), seed)
    net.layer.adapters = nn.ModuleList(copy.deepcopy(each))
    return net
