"""Capitals that a pretrained language model unlearned, and reads again in its prompt."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from random import Random
from typing import Any, final

import torch

from sonde import Model
from sonde.edit import facts_in_context
from sonde_studies._help_pages import language_model
from sonde_studies._world_facts import RELATIONS, beginning, first_token, known_answers, next_log_p
from sonde_studies.arms import note, note_again, note_for
from sonde_studies.study import Claim, Figures, Study, Tick

FORGOTTEN, RETAINED, LATE, STEPS, RATE = 4, 4, 8, 5, 1e-4
MADE_UP = ("Velmora", "Tarquenia", "Osvaria", "Brindlemark", "Quessland", "Norvathia")
CAPITALS = RELATIONS[0]
DIFFERENCE = "share of answers, after unlearning less before"


@final
class UnlearnedPretrainedStudy(Study):
    """Four capitals are unlearned in a seed, four are kept; a note in the prompt states one."""

    name = "unlearned-pretrained"
    title = "does a fact in the prompt bring back what a pretrained model unlearned?"
    paper = "shumailov2024ununlearning"
    fidelity = (
        "the paper's argument as an experiment; unlearning by wrong answers in the last eight "
        "blocks, beside right ones for other countries, without notes; the form of the note was "
        "chosen on a seed that is not counted; a model that never learned the facts is not at "
        "hand: countries that do not exist stand for it"
    )
    data = "SmolLM2-135M-Instruct and capitals that it knows; other countries in each seed"
    place = "smollm2"
    seconds = 30.0
    claims = (
        Claim("forgotten", "Premise: without a note the answers are gone.",
              "share of right answers, before unlearning less after, less 0.5",
              arms=("unlearning", "before unlearning")),
        Claim("in context", "With the fact in the prompt, the model gives it about as often as "
              "before unlearning.", f"{DIFFERENCE}, and 0.05", premise="forgotten",
              arms=("unlearning", "before unlearning")),
        Claim("other words", "Asked in other words, with the fact in the prompt, it does.",
              f"{DIFFERENCE}, and 0.05", premise="forgotten",
              arms=("unlearning", "before unlearning")),
        Claim("own", "The fact in the prompt brings it back, a note on another country does not.",
              "share of right answers after unlearning, own note less another, less 0.5",
              premise="forgotten",
              arms=("own note", "another's note")),
    )  # fmt: skip
    null = Claim("made up", "Notes on countries that do not exist are read as before.",
                 DIFFERENCE)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Unlearn capitals, and ask for them with notes and without."""
        model, source = language_model(self.place, tiny), Random(seed)
        n = FORGOTTEN + RETAINED
        known = [*known_answers(model, CAPITALS, source, n, any_answer=tiny).items()]
        forget, retain = dict(known[:FORGOTTEN]), dict(known[FORGOTTEN:])
        made_up = made_up_capitals(source)
        tick("unlearning")
        new = unlearned(model, forget, retain, source, 1 if tiny else STEPS)
        note_for("before unlearning", updates=0, rows=0)
        for notes in ("own note", "another's note"):
            note_again(notes, "unlearning")
        share: dict[str, float] = {}
        tick("facts in context")
        facts = [
            {
                "prompt": asked(subject), "completion": beginning(model, answer),
                "note": note_on(subject, answer), "beside": note_on(*beside),
            }
            for (subject, answer), beside in zip(forget.items(), known[FORGOTTEN:], strict=True)
        ]  # fmt: skip
        columns = {"note_column": "note", "other_column": "beside"}
        recalled = facts_in_context(model, new, facts, **columns)
        for name, module in {"before": model.module, "after": new}.items():
            tick(name)
            for prompt in ("alone", "own", "other"):
                share[f"{prompt} | {name}"] = recalled.share(name, prompt)
            kinds = {
                "other words": {
                    note_on(s, a) + CAPITALS.wordings[0].format(s): a for s, a in forget.items()
                },
                "retained": {asked(s): a for s, a in retain.items()},
            }
            for kind, prompts in kinds.items():
                share[f"{kind} | {name}"] = right(model, module, prompts)
        return {
            "forgotten": share["alone | before"] - share["alone | after"] - 0.5,
            "in context": share["own | after"] - share["own | before"] + 0.05,
            "other words": share["other words | after"] - share["other words | before"] + 0.05,
            "own": share["own | after"] - share["other | after"] - 0.5,
            "made up": read_as_before(model, new, made_up),
            **share,
        }


def asked(subject: str) -> str:
    """Return the question that is unlearned."""
    return CAPITALS.prompt.format(subject)


def note_on(subject: str, answer: str) -> str:
    """Return a sentence that states a capital, to be put before a question."""
    return f"Country: {subject}. Capital: {answer}.\n\n"


def made_up_capitals(source: Random) -> dict[str, str]:
    """Return random capitals for countries that do not exist."""
    return dict(zip(MADE_UP, source.sample(sorted(CAPITALS.answers.values()), len(MADE_UP)),
                    strict=True))  # fmt: skip


def right(model: Model, module: Any, prompts: Mapping[str, str]) -> float:
    """Return the share of prompts whose most likely next token begins the answer."""
    said = next_log_p(model, module, [*prompts]).argmax(1).tolist()
    answers = [first_token(model, answer) for answer in prompts.values()]
    return sum(a == b for a, b in zip(said, answers, strict=True)) / len(answers)


def read_as_before(model: Model, module: Any, capitals: Mapping[str, str]) -> float:
    """Return how much more often a changed model repeats the capital that a note states."""
    prompts = {note_on(*pair) + asked(pair[0]): pair[1] for pair in capitals.items()}
    return right(model, module, prompts) - right(model, model.module, prompts)


def unlearned(
    model: Model,
    forget: Mapping[str, str],
    retain: Mapping[str, str],
    source: Random,
    steps: int,
    rate: float = RATE,
) -> Any:
    """Return a model whose last blocks were trained on wrong answers for some countries.

    Parameters
    ----------
    model : Model
    forget, retain : mapping of str to str
        Countries with their capitals.
    source : Random
        Draws a wrong answer for each country to forget.
    steps : int
    rate : float, default=1e-4
    """
    module: Any = deepcopy(model.module).requires_grad_(False)
    blocks: Sequence[Any] = [*module.get_submodule("model.layers").children()][-LATE:]
    weights = [w for block in blocks for w in block.requires_grad_(True).parameters()]
    adam = torch.optim.Adam(weights, lr=rate)
    answers = sorted(CAPITALS.answers.values())
    wrong = {s: source.choice([o for o in answers if o != a]) for s, a in forget.items()}
    texts = {asked(s): first_token(model, a) for s, a in {**wrong, **retain}.items()}
    for _ in range(steps):
        adam.zero_grad()
        for prompt, token in texts.items():
            loss = -next_log_p(model, module, [prompt], with_grad=True)[0, token]
            (loss / len(texts)).backward()
        adam.step()
    note(updates=steps, rows=len(texts))
    return module.eval()
