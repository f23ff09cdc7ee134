"""Laws of all studies: what null arms can see, and how absence is shown."""

import inspect
import re
from typing import get_args

import pytest
import torch

from sonde import InputError
from sonde_studies import STUDIES, study_of
from sonde_studies._help_pages import language_model
from sonde_studies.nulls import BLIND, Fault, faults_seen
from sonde_studies.parts.heads import head_accuracy, linear_head, strongest_accuracy
from sonde_studies.places import PLACES
from tools import study_table

BLIND_ARMS, HARDLY_FAIL, NAMED_ARMS, UNNAMED_ARMS = 0, 61, 990, 0
"""Null arms of two equal runs, claims that can hardly fail (fewer, never more); claims that name
the two arms whose rows, updates and parameters are compared (more, never fewer); claims whose
figure compares, and which do not (fewer, never more)."""
COMPARES = re.compile(r"\b(less|(?<!correlation )(?<!interval )(?<!mean )over|difference|ratio)\b")
NUMBER = r"(0?\.\d+|\d+(\.\d+)?|a half|half|a quarter|chance|the limit|log [\d.]+)"
BAR = re.compile(rf"^{NUMBER} less\b|(, and|,? less|^) ?{NUMBER}\b")
"""What a figure is compared with if it is a bar and no arm; a mean over nets compares nothing."""
ABSENT = re.compile(r"\b(worse|less often|less of|out of|gone|cannot|hides?|tell less)\b")
LINEAR_ALONE = {
    ("swapped-codes", "hidden"),
    ("dense-contrast", "whole"),
}
"""Claims of absence, or of no loss, that a linear probe alone reads; they wait for a new run."""


def test_every_null_arm_names_a_fault_that_it_could_see_or_is_known_as_blind():
    assert STUDIES.keys() >= BLIND
    assert len(BLIND) <= BLIND_ARMS
    for word in STUDIES:
        faults = faults_seen(word)
        assert bool(faults) != (word in BLIND), f"{word}: name its faults in sonde_studies.nulls"
        assert {*faults} <= {*get_args(Fault)}


def test_every_study_runs_in_a_place_that_can_be_had():
    places = {word: study_of(word).place for word in STUDIES}
    assert {place for place in places.values() if not PLACES[place].source} == set()
    assert len({*places.values()}) >= 5
    small = [word for word, place in places.items() if place == "small"]
    assert [word for word in small if "sonde:stdlib" in _source(word)] == []


def test_a_model_that_was_not_fetched_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"model folder .lm/smollm2, got none.*Run `make places`"):
        language_model("smollm2", tiny=False)


def _source(word):
    return inspect.getsource(inspect.getmodule(type(study_of(word))))


def test_absence_is_never_shown_by_a_linear_probe_alone():
    """The list of those that are may only become shorter."""
    found = {
        (word, claim.key)
        for word in STUDIES
        for claim in study_of(word).claims
        if "probe" in claim.figure and "strongest" not in claim.figure and ABSENT.search(claim.text)
    }
    assert found == LINEAR_ALONE


def test_claims_that_name_their_two_arms_become_more():
    named = [claim for word in STUDIES for claim in study_of(word).claims if claim.arms]
    assert len(named) >= NAMED_ARMS


def test_claims_that_compare_and_name_no_arms_become_fewer():
    """A figure less a number, or a number less a figure, is compared with a bar, not an arm."""
    claims = [(word, claim) for word in STUDIES for claim in study_of(word).claims]
    unnamed = [
        (word, claim.key)
        for word, claim in claims
        if not claim.arms and COMPARES.search(BAR.sub("", claim.figure))
    ]
    assert len(unnamed) <= UNNAMED_ARMS


def test_claims_that_can_hardly_fail_become_fewer():
    inside = (row for rows in study_table.read().values() for row in rows)
    hardly = [row for row in inside if row.can_hardly_fail]
    assert len(hardly) <= HARDLY_FAIL


def test_the_strongest_probe_finds_what_lies_in_a_length():
    """A planted mark: rows of one kind are long, the others short, in any direction."""
    draw = torch.Generator().manual_seed(0)
    mark = torch.rand(240, generator=draw) < 0.5
    x = torch.nn.functional.normalize(torch.randn(240, 3, generator=draw), dim=1)
    x = x * torch.where(mark, 2.0, 1.0)[:, None]
    assert head_accuracy(linear_head(), x, mark, 160) < 0.7
    assert strongest_accuracy(x, mark.long(), 160) > 0.95
    other = torch.rand(240, generator=draw) < 0.5
    assert strongest_accuracy(x, other.long(), 160) < 0.65
