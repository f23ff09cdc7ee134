"""``sonde train``: what it writes, prints and refuses."""

import pytest
from torch import nn

import sonde
from cli_case import run_words
from sonde import train
from sonde.run.instruments.families import snake_case

WORDS = ("train", "sonde:digits", "sonde:digits/train", "--limit", 64, "--held", 60)
TERMS = ("--terms", "rate_reduction", "--sites", "blocks.1", "--rate", 1e-3, "--epochs", 1)


@pytest.mark.slow
def test_both_arms_a_page_a_model_and_the_way_back(run, tmp_path):
    new = tmp_path / "NEW"
    told = run_words(*WORDS, *TERMS, "-o", new, "--json").json()
    (term,) = told["terms"]
    assert term["with"] < term["without"]
    assert told["trained_on"] == 64
    assert told["held"] == 60
    assert told["gain"]["accuracy"]["low"] <= told["gain"]["accuracy"]["high"]
    assert len(told["curves"]["with"]) == len(told["curves"]["without"])
    page = new.with_suffix(".html").read_text()
    assert "RateReduction(blocks.1) fell further with one seed" in page
    assert "A single seed cannot show whether the task gained" in page
    assert not new.with_suffix(".run").exists()
    assert sonde.load(str(new), device="cpu").task == "image_classifier"
    assert run("edit", "undo", new, "-o", tmp_path / "OLD").code == 0


@pytest.mark.slow
def test_maps_of_attention_and_an_average_of_the_model_itself(tmp_path):
    terms = (
        "--terms",
        "attention_entropy,align(distance='mse'),masked_features(rebuilder='conv')",
        "--sites",
        "blocks.1",
        "blocks.2",
        "blocks.3",
    )
    more = ("--teacher", "ema", "--rate", 1e-3, "--epochs", 1, "--weight", 3)
    words = ("train", "sonde:digits", "sonde:digits/train", "--limit", 64, "--held", 30)
    told = run_words(*words, *terms, *more, "-o", tmp_path / "NEW", "--json").json()
    entropy, align, masked = told["terms"]
    assert entropy["term"] == "AttentionEntropy(blocks.1:probs)"
    assert entropy["with"] < entropy["without"]
    assert align["term"] == "Align(blocks.2, teacher:blocks.2)"
    assert len({align[name] for name in ("before", "with", "without")}) == 3
    assert masked["term"] == "MaskedFeatures(blocks.3)"
    assert masked["with"] < masked["before"]


def test_the_list_says_what_losses_need(run):
    said = run("train", "--list").out
    assert "rate_reduction" in said
    words = {x["loss"] for x in run("train", "--list", "--json").json() if "loss" in x}
    members = [getattr(train, name) for name in train.__all__]
    losses = [x for x in members if isinstance(x, type) and issubclass(x, nn.Module)]
    losses = [x for x in losses if "forward" in vars(x)]  # others change weights
    assert "scaled_weights" not in words
    assert words == {snake_case(kind.__name__) for kind in losses}
    assert "x, label" in said
    (line,) = [line for line in said.splitlines() if "attention_entropy" in line]
    assert "probs" in line
    assert "Python only" not in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train",), "expected MODEL DATA"),
        (WORDS, "expected -o NEW"),
        ((*WORDS, "-o", "NEW"), "expected --terms and --sites"),
        ((*WORDS, *TERMS, "--epochs", 0, "-o", "NEW"), "--epochs: expected more than 0"),
        ((*WORDS, *TERMS, "--weight", "0.1,0.2", "-o", "NEW"), "one for each of 1 losses, got 2"),
        ((*WORDS, *TERMS, "--weight", "nan", "-o", "NEW"), "--weight: expected finite numbers"),
        (
            (*WORDS, "--terms", "nested_dropout", "--sites", "blocks.1", "-o", "NEW"),
            "nested_dropout changes states and has no value",
        ),
        (
            (*WORDS, *TERMS, "--scope", "half", "-o", "NEW"),
            "--scope: expected all, norms, layers, top:N, last:N or low-rank:N",
        ),
        ((*WORDS, *TERMS, "--sites", "blocks.9", "-o", "NEW"), "this model has 4 blocks"),
    ],
)
def test_wrong_words_are_told_before_anything_is_written(
    run, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    assert message in run(*words).error()
    assert list(tmp_path.iterdir()) == []
