import re
from dataclasses import replace

import pytest

from sonde_studies import STUDIES, study_of
from sonde_studies.places import PLACES
from tools import rows, study_table


@pytest.mark.slow
def test_every_name_of_the_list_exists():
    listed = rows.rows_of()
    assert len({row.name for row in listed}) == len(listed) == 208
    for row in listed:
        for code in row.code:
            assert rows.exported(code), code
        assert {*row.study} <= {*STUDIES}, row
        keys = {claim.key for word in row.study for claim in study_of(word).claims}
        assert {*row.claims} <= keys, row
        assert not row.place or row.place.partition(": ")[0] in PLACES, row
        assert all(": " in part for part in row.left_out), row
        assert bool(row.main) != row.closed, row
        if row.main:
            word, _, key = row.main.partition(": ")
            assert word in row.study, row
            assert key in (row.claims or keys), row


@pytest.mark.slow
def test_a_main_claim_can_be_read_without_the_claims_before_it():
    """The page of papers prints it alone."""
    known, said_before = rows.verdicts(), re.compile(r"(It|They|So|And|There|These|Those)\b")
    whole = [row for row in rows.rows_of() if rows.status(row, known).startswith("whole")]
    assert len(whole) > 100
    for row in whole:
        word, _, key = row.main.partition(": ")
        text = next(claim.text for claim in study_of(word).claims if claim.key == key)
        assert not said_before.match(text), row


@pytest.mark.parametrize("code", ["measure.NoSuchMeasure", "layers.Attention(no_such_parameter)"])
def test_a_name_that_is_gone_is_noticed(code):
    with pytest.raises((AttributeError, TypeError)):
        rows.exported(code)


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("measure.SpuriousShift", "tests/measure/test_spurious_shift.py"),  # by its function
        ("compress.KeepProbe", "tests/compress/test_prompt_compressor.py"),  # of another's file
        ("edit.LogLinear", "tests/edit/test_coda.py"),  # by another method's test
        ("recipes.no_such_recipe", ""),
    ],
)
def test_truth_of_an_export(code, test):
    assert rows.truth_of(code) == test


@pytest.mark.parametrize(
    ("study", "code", "runs"),
    [
        ("nac", "detect.NAC", True),
        ("nac", "measure.CKA", False),
        ("parallel-adapters", "layers.ParallelAdapters", True),  # by a function of its file
        ("codebook-bottleneck", "layers.VectorQuantizer", True),
        ("per-user-flow", "store.Policy", True),  # by a part of its recipe
        ("class-panel", "layers.Attention", False),
    ],
)
def test_whether_a_study_runs_an_export(study, code, runs):
    assert rows.runs(study, code) is runs


@pytest.mark.parametrize(
    ("study", "code", "lacking"),
    [
        ("field-selection", "layers.SharedTable(gated,tables)", []),  # a keyword, and by place
        ("unmix-norm", "layers.SharedTable(gated)", ["gated"]),
        ("attention-patterns", "layers.Attention(pattern)", []),
        ("attention-capacity", "layers.Attention(frozen,centres)", ["centres"]),
        ("nac", "recipes.weak_groups(limit)", []),
    ],
)
def test_parameters_to_which_a_study_gives_no_value(study, code, lacking):
    assert rows.not_given((study,), code) == lacking


def test_status_of_planted_rows():
    known = {("nac", claim.text): "holds" for claim in study_of("nac").claims}
    known["nac", study_table.NULL + study_of("nac").null.text] = "as expected"
    main = f"nac: {study_of('nac').claims[0].key}"
    whole = rows.Row("a", "NAC", code=("detect.NAC",), study=("nac",), main=main)
    assert (rows.status(whole, known), rows.main_verdict(whole, known)) == ("whole", "holds")
    assert rows.status(replace(whole, place="gpu: ImageNet"), known) == "whole, place too small"
    at_hand = replace(whole, place="smollm2: its caches")
    assert rows.status(at_hand, known) == "whole, fair place not run"
    assert rows.status(replace(whole, missing="an arm"), known) == "part"
    first = study_of("nac").claims[0]
    open_claim = known | {("nac", first.text): "undecided"}
    assert rows.status(whole, open_claim) == "unsettled"
    assert rows.reasons(whole, open_claim) == [f"nac: {first.key} = undecided"]
    assert rows.status(replace(whole, study=()), known) == "part"
    other = replace(whole, code=("detect.NAC", "measure.CKA"))
    assert rows.reasons(other, known) == ["no study runs measure.CKA"]
    assert rows.status(rows.Row("a", "X", missing="closed: no mechanism"), known) == "closed"


def test_a_fidelity_line_that_says_what_is_lacking_has_to_be_answered():
    row = rows.Row("a", "UnMix", code=("layers.UnMixNorm",), study=("spurious-shift",))
    assert rows.unanswered(row) == [
        f"fidelity of spurious-shift: {study_of('spurious-shift').fidelity}"
    ]
    assert not rows.unanswered(replace(row, left_out=("cosines: they need a model of texts",)))
    assert not rows.unanswered(replace(row, study=("nac",)))
