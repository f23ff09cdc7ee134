"""A block of a pretrained language model at 2.25 bits: stacks of signs, rounding, or GPTQ."""

from collections.abc import Mapping
from random import Random
from typing import final

from sonde import Model
from sonde.compress import GPTQ, RTN, BitStack
from sonde.data import open_inputs
from sonde.weights import Rewrite
from sonde_studies._help_pages import drawn_pages, language_model, mean_loss, needed
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick

BITS, GROUP, LEVELS, CALIBRATED, JUDGED, LENGTH = 2.25, 128, 2, 6, 2, 500
NATS = "nats a token of held-out texts"


@final
class StackedPretrainedStudy(Study):
    """One of thirty blocks, another in each seed, is stored in 2.25 bits a weight.

    Two-bit codes with a scale and an offset for 128 weights take as many.
    """

    name = "stacked-pretrained"
    title = "do stacks of signs beat rounding at 2.25 bits in a pretrained language model?"
    paper = "wang2025bitstack"
    fidelity = (
        "blocks are sorted by errors of layers; one of thirty blocks of the model, in stacks of "
        "two; six pages calibrate"
    )
    data = "SmolLM2-135M-Instruct and help pages of Python; other pages and blocks in a seed"
    place = "smollm2"
    seconds = 30.0
    claims = (
        Claim("rounding", "At 2.25 bits stacks cost less than rounding to the nearest value.",
              f"{NATS}, rounding less stacks", arms=("stacks", "rounding")),
        Claim("gptq", "They cost less than GPTQ.", f"{NATS}, GPTQ less stacks",
              arms=("stacks", "GPTQ")),
        Claim("gptq over rounding", "GPTQ costs less than rounding to the nearest value.",
              f"{NATS}, rounding less GPTQ", arms=("GPTQ", "rounding")),
    )  # fmt: skip
    null = Claim("own texts", "The gain over rounding is no larger on texts that calibrated.",
                 "nats a token, gain on texts that calibrated less gain on held-out texts",
                 arms=("stacks", "rounding"))  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Store the block in each way, and read texts with each model."""
        model = language_model(self.place, tiny)
        n_blocks = len([*model.module.get_submodule("model.layers").children()])
        block = f"model.layers.{Random(seed).randrange(n_blocks)}."
        layers = (f"{block}*",)
        rules = {
            "rounding": RTN(int(BITS), GROUP, layers=layers),
            "GPTQ": GPTQ(int(BITS), GROUP, layers=layers),
            "stacks": BitStack(BITS, blocks=LEVELS, layers=layers),
        }
        lost = costs_of(model, rules, block, seed, tiny, tick)
        held = {name: lost[name, "held out"] for name in rules}
        return {
            "rounding": held["rounding"] - held["stacks"],
            "gptq": held["GPTQ"] - held["stacks"],
            "gptq over rounding": held["rounding"] - held["GPTQ"],
            "own texts": own_gain(lost, "rounding", "stacks"),
            **{f"cost, {name} | {k}": x for (name, k), x in lost.items()},
        }


def costs_of(
    model: Model, rules: Mapping[str, Rewrite], block: str, seed: int, tiny: bool, tick: Tick
) -> dict[tuple[str, str], float]:
    """Return what each rewrite costs on texts that calibrated and on held-out texts.

    Parameters
    ----------
    model : Model
    rules : mapping of str to Rewrite
    block : str
        What the names of the rewritten layers begin with.
    seed : int
        Draws the texts.
    tiny : bool
    tick : callable
    """
    n, n_calibrated = (1, 2) if tiny else (JUDGED, CALIBRATED)
    texts = drawn_pages(seed, n_calibrated + n, LENGTH // 2 if tiny else LENGTH)
    judged = {"own": texts[:n], "held out": texts[n_calibrated:]}
    plain = {k: mean_loss(model, model.module, some) for k, some in judged.items()}
    lost: dict[tuple[str, str], float] = {}
    for name, rule in rules.items():
        tick(name)
        data = open_inputs(model, texts[:n_calibrated])
        new = rule.plan(model, needed(rule, data)).fold(model)
        note(bytes=sum(t.nbytes for n, t in new.state_dict().items() if n.startswith(block)))
        for k, some in judged.items():
            lost[name, k] = mean_loss(model, new, some) - plain[k]
    return lost


def own_gain(lost: Mapping[tuple[str, str], float], plain: str, informed: str) -> float:
    """Return how much more a rewrite gains over another on texts that calibrated than on others."""
    own, held = (lost[plain, k] - lost[informed, k] for k in ("own", "held out"))
    return own - held
