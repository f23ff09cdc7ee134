"""Ordinary texts and kept outcomes of the tool that plants faults into language models."""

from pathlib import Path

import pytest
from tools.lm.faults import Kept, Outcome, row
from tools.lm.planted import FAULTS
from tools.lm.texts import LONGEST, SHORTEST, chats, prose

from lm_twin_case import twin


def test_forty_faults_have_different_names_and_codes() -> None:
    assert len({one.name for one in FAULTS}) == len(FAULTS) == 40
    assert all(one.codes for one in FAULTS)


@pytest.mark.slow
def test_prose_has_the_asked_length_and_chats_the_template_of_the_model() -> None:
    processor = twin().processor
    texts = prose(processor, 20)
    assert len({*texts}) == 20
    assert texts == prose(processor, 20)
    assert texts != prose(processor, 20, seed=1)
    sizes = [len(processor(text)["input_ids"]) for text in texts]
    assert SHORTEST <= min(sizes) <= max(sizes) <= LONGEST
    assert all(chat.startswith("<|im_start|>user\nWhat does ") for chat in chats(processor, 3))


def test_a_later_run_goes_on_with_the_outcomes_that_were_kept(tmp_path: Path) -> None:
    path, made = tmp_path / "rows.jsonl", list[str]()

    def outcome() -> Outcome:
        made.append("scan")
        return Outcome("named", 0.5, ("SND028", "SND066"), "SND028", 41.2)

    first = Kept(path).get("start token twice", Outcome, outcome)
    again = Kept(path).get("start token twice", Outcome, outcome)
    assert made == ["scan"]
    assert (
        row("a", again) == row("a", first) == "| a | 0.5 | named | SND028 | SND028, SND066 | 41 |"
    )
