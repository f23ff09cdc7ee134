"""Methods that expose, find and remove a backdoor, tested on small nets.

Toy digits: a tenth have a white corner of 3 x 3 and are called seven; a conv net with batch norm.
"""

from typing import Any, final

import torch

from sonde.core import Model
from sonde.edit import AdversarialMask, CleanUnlearning, FinePrune, find_backdoor, remove_backdoor
from sonde_studies._trigger import (
    CLEAN,
    TARGET,
    TRAIN,
    clean_images,
    stand,
    surer_of,
    trained,
    triggered,
)
from sonde_studies.arms import note_again, note_for, part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images

LIKELY = 1.15


@final
class BackdoorStudy(Study):
    """One trigger, ten digits, a conv net, and 300 clean images for the search."""

    name = "backdoor"
    title = "does unlearning clean images expose a backdoor, and what names its class?"
    paper = "li2024ebyd"
    fidelity = (
        "the paper raises the loss, ours teaches the uniform distribution; both stop at a clean "
        "accuracy of 0.6; the class is named by the smallest patch on the model as it is; the bar "
        "of 1.15 was set on nets like these"
    )
    data = "digits: 1,100 for training, 300 clean ones to look with, the others for tests"
    claims = (
        Claim("exposed", "Where clean images are unlearned to 0.6, the trigger works on more than "
              "nine in ten.", "attack success, less 0.9"),
        Claim("beside ascent", "It outlives the uniform objective better than a raised loss.",
              "difference of attack success, each after the steps that it takes to the same "
              "accuracy",
              arms=("uniform", "ascent")),
        Claim("histogram names", "The exposed copy calls clean images the target more often than "
              "any other class.", "1 where it does, else 0", above=0.5),
        Claim("patch names", "The smallest patch is the target's, and the next is 1.15 times as "
              "large.", "ratio of the two, 1 where another class is named, less 1.15",
              arms=("patch of the target", "next patch")),
        Claim("patch of the copy",
              "The target's patch stands out more among patches that are sought on the exposed "
              "copy, all of whose weights moved in further steps.",
              "difference of that ratio, copy less model",
              arms=("patch of the copy", "patch of the model")),
        Claim("inputs told",
              "Exposure makes confidence a better detector of triggered inputs, beyond what it "
              "does on a net without a trigger, each after the steps to an accuracy of 0.6.",
              "AUROC, copy less model, less the same difference of a net without a trigger",
              arms=("uniform", "uniform, no trigger")),
        Claim("removed", "After the recovered trigger is unlearned, the real one works on fewer "
              "than a tenth.", "0.1 less attack success"),
        Claim("accuracy kept", "That costs less than 3 points.",
              "accuracy after less before, and 0.03",
              arms=("trigger unlearned", "as it is")),
    )  # fmt: skip
    null = Claim("halves", "Of two halves of the fresh images, neither without a trigger, the "
                 "exposed copy is as sure.",
                 "AUROC of its confidence, one half against the other, less 0.5")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net with a trigger and one without; expose, find and remove it."""
        tick("train")
        x, label = digit_images(seed)
        bad, wrong = x[:TRAIN].clone(), label[:TRAIN].clone()
        bad[: TRAIN // 10], wrong[: TRAIN // 10] = triggered(bad[: TRAIN // 10]), TARGET
        model = Model(trained(bad, wrong, seed, tiny))
        honest = Model(trained(x[:TRAIN], label[:TRAIN], seed, tiny))
        test = x[TRAIN + CLEAN :], label[TRAIN + CLEAN :]
        clean, (steps, epochs) = clean_images(model, x, label), (3, 1) if tiny else (220, 20)
        tick("expose")
        rules: dict[str, Any] = {"uniform": CleanUnlearning(), "ascent": CleanUnlearning("ascent")}
        exposed = {name: _exposed(name, rule, model, clean) for name, rule in rules.items()}
        clear = clean_images(honest, x, label)
        calm = _exposed("uniform, no trigger", rules["uniform"], honest, clear)
        with torch.no_grad():
            often = exposed["uniform"](x[TRAIN : TRAIN + CLEAN]).argmax(1).bincount(minlength=10)
        tick("find")
        finding = _searched("patch of the model", model, clean, steps)
        for name in ("patch of the target", "next patch"):
            note_again(name, "patch of the model")
        copy = Model(exposed["uniform"])
        note_again("patch of the copy", "uniform")
        on_copy = _searched("patch of the copy", copy, clean_images(copy, x, label), steps)
        other = find_backdoor(honest, clear, steps=steps, progress=False)
        tick("remove")
        data = {"clean": clean}
        plans = {
            "trigger unlearned": _unlearned(model, clean, finding, epochs),
            "fine-prune": FinePrune(epochs=1 if tiny else 10).plan(model, data),
            "adversarial mask": AdversarialMask(steps=3 if tiny else 100).plan(model, data),
        }
        nets = {"as it is": model.module, **exposed}
        nets |= {name: plan.fold(model) for name, plan in plans.items()}
        stands = {name: stand(net, *test) for name, net in nets.items()}
        bad = triggered(test[0][test[1] != TARGET])
        names = "trigger", "no trigger"
        copies = zip((model, honest), (exposed["uniform"], calm), strict=True)
        surer = {
            name: [surer_of(net, bad, test[0]) for net in (plain.module, copied)]
            for name, (plain, copied) in zip(names, copies, strict=True)
        }
        rise = {name: copied - plain for name, (plain, copied) in surer.items()}
        named = [f.ratio if f.target == TARGET else 1.0 for f in (finding, on_copy)]
        return {
            "exposed": stands["uniform"][1] - 0.9,
            "beside ascent": stands["uniform"][1] - stands["ascent"][1],
            "histogram names": float(int(often.argmax()) == TARGET),
            "patch names": named[0] - LIKELY,
            "patch of the copy": named[1] - named[0],
            "inputs told": rise["trigger"] - rise["no trigger"],
            "removed": 0.1 - stands["trigger unlearned"][1],
            "accuracy kept": stands["trigger unlearned"][0] - stands["as it is"][0] + 0.03,
            "halves": surer_of(exposed["uniform"], test[0][::2], test[0][1::2]) - 0.5,
            "ratio | with trigger": finding.ratio,
            "ratio | without": other.ratio,
            **{f"AUROC of confidence | {name}": plain for name, (plain, _) in surer.items()},
            **{f"AUROC of confidence, copy | {name}": v for name, (_, v) in surer.items()},
            **{f"accuracy | {name}": value for name, (value, _) in stands.items()},
            **{f"attack success | {name}": value for name, (_, value) in stands.items()},
        }


def _exposed(name: str, rule: CleanUnlearning, model: Model, clean: Any) -> Any:
    with part(name):
        return rule.expose(model, clean, progress=False)


def _searched(name: str, model: Model, clean: Any, steps: int) -> Any:
    with part(name):
        return find_backdoor(model, clean, steps=steps, progress=False)


def _unlearned(model: Model, clean: Any, finding: Any, epochs: int) -> Any:
    note_for("as it is", updates=0)
    with part("trigger unlearned"):
        return remove_backdoor(model, clean, finding, epochs=epochs, progress=False)
