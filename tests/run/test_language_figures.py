"""Four figures of rewritten facts: a change that says the same of all subjects is called poor."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from lm_twin_case import twin
from sonde.edit import Fact
from sonde.run.changing.fact_figures import (
    FactFigures,
    FactPrompts,
    made_wordings,
    measure_facts,
    next_chances,
)

PROMPT = "The capital of France is"
OTHERS = tuple(f"The capital of {c} is" for c in ("Japan", "Egypt", "Poland", "Kenya"))


def prompts(target: str) -> FactPrompts:
    fact = Fact(PROMPT, "France", target, neighbours=OTHERS)
    return FactPrompts.of(twin(), [fact])


def own_answer() -> str:
    token = next_chances(twin(), twin().module, [PROMPT]).argmax(1)
    return str(twin().processor.decode(token))


@contextmanager
def always(token: int) -> Iterator[nn.Module]:
    """Open the model with one token as the answer to everything."""

    def raised(module: nn.Module, args: object, output: Tensor) -> Tensor:
        output[..., token] += 1e4
        return output

    handle = twin().module.lm_head.register_forward_hook(raised)
    yield twin().module
    handle.remove()


def test_no_change_keeps_everything() -> None:
    found = measure_facts(twin(), lambda: nullcontext(twin().module), prompts(own_answer()))
    assert found.efficacy == found.specificity == found.fluency == 1.0
    assert found.loss_nats == 0.0
    assert found.n_neighbours == 4


def test_one_answer_to_every_prompt_is_poor() -> None:
    token = int(twin().processor(" lira")["input_ids"][0])
    target = str(twin().processor.decode([token]))
    found = measure_facts(twin(), lambda: always(token), prompts(target))
    assert (found.efficacy, found.generality, found.specificity) == (1.0, 1.0, 0.0)
    assert found.fluency < 0.1
    assert found.loss_nats > 1.0
    assert found.verdict.startswith("The edit is poor: its worst figure is ")


def test_the_verdict_is_that_of_the_worst_figure_and_names_what_is_missing() -> None:
    found = FactFigures(1.0, 0.75, float("nan"), 0.9, 0.1, 4, 0)
    assert found.worst == ("generality", 0.75)
    assert "worst figure is generality, 0.75" in found.verdict
    assert "Not measured: specificity" in found.verdict


def test_given_wordings_and_neighbours_are_taken() -> None:
    fact = Fact(PROMPT, "France", " Rome", ("France has the capital",), OTHERS)
    found = FactPrompts.of(twin(), [fact])
    assert found.wordings == (("France has the capital",),)
    assert found.half(0).neighbours == (OTHERS[::2],)
    assert made_wordings(fact)[-1] == "France's capital is"
