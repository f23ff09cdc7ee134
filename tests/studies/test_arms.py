"""What arms were given: noted by the training itself, and a comparison that hides a difference."""

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde_studies import Claim, Study, StudyTable, as_text, run_study
from sonde_studies.arms import (
    Arms,
    arm,
    note_for,
    note_mean,
    note_sum,
    part,
    trained_once,
    unequal,
    unsaid,
)
from sonde_studies.study import figures_of
from sonde_studies.worlds.learning import minimise


class Compared(Study):
    """Two arms: the first takes twice the steps and sees a third more rows."""

    name, title, data, fidelity = "compared", "is it better?", "none", "ours"
    claims = (Claim("better", "It is better.", "units", arms=("ours", "theirs")),)
    null = Claim("null", "Nothing.", "units")
    steps = 2

    def run(self, seed, tiny, tick):
        given = Arms()
        for name, steps in (("ours", self.steps), ("theirs", 1)):
            net = nn.Linear(3, 1)
            with arm(given, name):
                minimise(lambda r, n=net: n(torch.ones(len(r), 3)).mean(), net.parameters(), 9,
                         steps=steps, seed=seed)  # fmt: skip
        minimise(lambda r, n=net: n(torch.ones(1, 3)).mean(), net.parameters(), 9, steps=9, seed=0)
        return {"better": 1.0 + seed, "null": (-1.0) ** seed, **given.figures()}


def test_training_notes_what_it_was_given():
    figures = Compared().run(0, True, str)
    assert {k: v for k, v in figures.items() if k.startswith("given")} == {
        "given | ours | updates": 2,
        "given | ours | rows": 9,
        "given | ours | parameters": 4,
        "given | theirs | updates": 1,
        "given | theirs | rows": 9,
        "given | theirs | parameters": 4,
    }
    assert unequal("ours", "theirs", figures) == {"updates": 2.0}
    with pytest.raises(LookupError, match="got nothing"):
        unequal("one", "two", figures)


def test_every_step_of_an_optimiser_is_an_update_of_the_innermost_arm():
    """Loops of the studies' own count too, once however blocks are nested."""
    given, net = Arms(), nn.Linear(3, 1)
    unused = nn.Parameter(torch.ones(5))
    optimiser = torch.optim.SGD([*net.parameters(), unused], 0.1)

    def step():
        net(torch.ones(1, 3)).sum().backward()
        optimiser.step()

    with arm(given, "outer"):
        step()
        with part("inner"):
            step()
            step()
    step()
    with part("no study runs"):
        step()
    assert given.given == {
        "outer": {"updates": 1, "parameters": 4},
        "inner": {"updates": 2, "parameters": 4},
    }


def test_an_arm_that_is_not_trained_is_compared_by_its_updates_alone():
    figures = {"given | untrained | updates": 0.0, "given | ours | updates": 9.0,
               "given | ours | parameters": 4.0}  # fmt: skip
    assert unequal("ours", "untrained", figures) == {"updates": float("inf")}
    assert unequal("untrained", "ours", figures) == {"updates": 0.0}
    assert unsaid("It is better.", {"updates": float("inf")}) == ["updates"]
    assert unsaid("It is better than before.", {"updates": float("inf")}) == []
    assert unsaid("It is better than before.", {"updates": 2.0}) == ["updates"]


def test_every_arm_that_asks_for_a_shared_net_is_given_its_training():
    """With a plain cache only the first has it, so figures depend on which study ran before."""

    @trained_once
    def shared(steps):
        net = nn.Linear(3, 1)
        minimise(lambda r: net(torch.ones(len(r), 3)).mean(), net.parameters(), 9,
                 steps=steps, seed=0)  # fmt: skip
        return net

    class Shared(Compared):
        def run(self, seed, tiny, tick):
            given = Arms()
            for name in ("ours", "theirs"):
                with arm(given, name):
                    shared(3)
                    shared(3)
            return {"better": 1.0, "null": 0.0, **given.figures()}

    assert shared(3) is shared(3)
    ours, theirs = ([v for k, v in Shared().run(0, True, str).items() if arm in k]
                    for arm in ("| ours", "| theirs"))  # fmt: skip
    assert ours == theirs == [6, 9, 4]


def test_a_comparison_that_hides_a_difference_is_refused():
    with pytest.raises(
        InputError, match="'ours' with 2 times the updates of 'theirs' in the claim"
    ):
        run_study(Compared(), [0, 1, 2])

    class Told(Compared):
        claims = (Claim("better", "With twice the updates it is better.", "units",
                        arms=("ours", "theirs")),)  # fmt: skip

    class Even(Compared):
        steps = 1

    assert "ours against theirs: 2 x updates" in as_text(run_study(Told(), [0, 1, 2]))
    table = run_study(Even(), [0, 1, 2])
    assert "ours against theirs: equal updates, rows, parameters" in as_text(table)
    assert isinstance(table, StudyTable)


def test_arms_that_train_nothing_are_compared_by_their_bytes():
    figures = {"given | small | bytes": 10.0, "given | large | bytes": 25.0}
    assert unequal("large", "small", figures) == {"bytes": 2.5}
    assert unsaid("It loses less.", {"bytes": 2.5}) == ["bytes"]
    assert unsaid("With twice the bytes it loses less.", {"bytes": 2.5}) == []


class Staged(Compared):
    """Arms are named by the progress line alone."""

    def run(self, seed, tiny, tick):
        for name, steps in (("ours", self.steps), ("theirs", 1)):
            tick(name)
            net = nn.Linear(3, 1)
            minimise(lambda r, n=net: n(torch.ones(len(r), 3)).mean(), net.parameters(), 9,
                     steps=steps, seed=seed)  # fmt: skip
        return {"better": 1.0 + seed, "null": (-1.0) ** seed}


def test_what_the_progress_line_names_is_an_arm():
    with pytest.raises(InputError, match="'ours' with 2 times the updates of 'theirs'"):
        figures_of(Staged(), 0, True, str)
    even = Staged()
    even.steps = 1
    told = list[str]()
    figures = figures_of(even, 0, True, told.append)
    assert told == ["compared, seed 0: ours", "compared, seed 0: theirs"]
    assert unequal("ours", "theirs", figures) == {}


@pytest.mark.parametrize(
    ("sentence", "silent"),
    [
        ("It learns more.", ["updates", "parameters"]),
        ("With a third more parameters it learns more.", ["updates"]),
        ("Wider nets learn as much in half the steps.", []),
    ],
)
def test_a_sentence_says_what_is_unequal_in_its_own_words(sentence, silent):
    assert unsaid(sentence, {"updates": 2.0, "parameters": 1.3}) == silent


def test_an_arm_of_other_arms_has_their_mean_or_their_sum():
    given = Arms()
    with arm(given, "study"):
        note_for("small", updates=10, rows=6, parameters=100)
        note_for("large", updates=30, rows=8, parameters=300)
        note_mean("either", ["small", "large"])
        note_sum("both", ["small", "large"])
    note_mean("no study runs", ["small"])
    note_sum("no study runs", ["small"])
    assert given.given["either"] == {"updates": 20, "rows": 7, "parameters": 200}
    assert given.given["both"] == {"updates": 40, "rows": 8, "parameters": 400}
    assert "no study runs" not in given.given
