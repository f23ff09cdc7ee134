"""``sonde compress search``: its best trials, going on after a stop, and what is refused."""

import contextlib
import json

import pytest
import torch

from cli_case import run_words
from sonde import Model
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.data.shipped import model_directory
from sonde.run.compressing import search
from sonde.run.compressing.search import SizeTrial, best_trials

WORDS = ("compress", "search", "sonde:digits", "sonde:digits/train", "--limit", 8, "--held", 24)
SOME = ("--to", "2bit,4bit", "50%", "--methods", "rtn,prune_weights")


@pytest.mark.truth("every pair of trials compared")
def test_best_trials_are_those_that_no_other_beats():
    sizes, kls = [5, 3, 9, 3, 7, 1, 9, 4], [0.4, 0.6, 0.1, 0.5, 0.4, 2.0, 0.3, 0.5]
    made = [SizeTrial("4bit", f"m{i}", n, {"kl": kl})
            for i, (n, kl) in enumerate(zip(sizes, kls, strict=True))]  # fmt: skip
    free = [
        t
        for t in made
        if not any(o.n_bytes <= t.n_bytes and o.kl <= t.kl and o is not t for o in made)
    ]
    assert sorted(best_trials(made), key=id) == sorted(free, key=id)
    assert [t.n_bytes for t in best_trials(made)] == [1, 3, 5, 9]


def test_a_method_that_refuses_the_model_is_left_out(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(11, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    model = Model(net.eval())
    x = torch.randn(20, 11, generator=torch.Generator().manual_seed(1))
    ours, told = open_inputs(model, x), list[str]()
    file = search.TrialFile(tmp_path / "trials", "key")
    given = (model, ours, ours)
    refused = [("25%", "slice_width")]
    with pytest.raises(InputError, match=r"SliceWidth.plan: expected a residual stream"):
        list(search.trials(*given, refused, file, told.append))
    assert told[-1].startswith("left out: SliceWidth.plan")


def test_a_budget_takes_the_least_divergence_and_max_kl_the_fewest_bytes():
    told = (("a", 9, 0.1), ("b", 5, 0.3), ("c", 7, 0.2), ("d", 6, 0.4))
    made = [SizeTrial("4bit", method, n, {"kl": kl}) for method, n, kl in told]
    assert search.fitting_trial(made, 8, None).method == "c"
    assert search.fitting_trial(made, None, 0.35).method == "b"
    with pytest.raises(InputError, match="at most 4 bytes; the nearest is 4bit by b with 5"):
        search.fitting_trial(made, 4, None)
    with pytest.raises(InputError, match=r"within --budget .* nearest is 4bit by b with 0.3"):
        search.fitting_trial(made, 6, 0.2)
    assert search.pairs_to_seek("sign_quant") == [("1bit", "sign_quant")]
    assert len(search.pairs_to_seek("sparse_gpt")) == 9
    assert {*search.USUAL} < {*search.pairs_to_seek("any")}


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_stopped_and_draws_a_page(tmp_path, monkeypatch):
    page, tried = tmp_path / "p.html", []
    real = search.fidelity

    def stopping(*args):
        tried.append(args)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(search, "fidelity", stopping)
    with contextlib.suppress(KeyboardInterrupt):
        run_words(*WORDS, *SOME, "-o", page)
    kept = page.with_name("p.html.trials.jsonl")
    assert not page.exists()
    assert len(kept.read_text().splitlines()) == 2
    kept.write_text(kept.read_text() + '{"key": "cut o')
    told = run_words(*WORDS, *SOME, "-o", page, "--json").json()
    assert len(tried) == 4  # 2bit and 4bit by rtn were kept; 50% was stopped, then made
    assert {(t["size"], t["method"]) for t in told["trials"]} == {
        ("2bit", "rtn"), ("4bit", "rtn"), ("50%", "prune_weights"),
    }  # fmt: skip
    sizes = {t["size"]: t["n_bytes"] for t in told["trials"]}
    whole = (json.loads(line) for line in kept.read_text().splitlines() if line.endswith("}"))
    assert len(list(whole)) == 3
    assert sizes["2bit"] < sizes["4bit"] < sizes["50%"] < told["bytes"]
    text = page.read_text()
    assert '<section id="curve"' in text
    assert "sonde compress sonde:digits" in text
    small = run_words("compress", *WORDS[2:], "--to", "4bit", "--method", "rtn", "--json",
                      "-o", tmp_path / "S").json()  # fmt: skip
    assert small["bytes"][1] == pytest.approx(sizes["4bit"], rel=0.05)
    assert str(model_directory("sonde:digits")) not in text


def test_methods_that_reach_no_size_are_refused(tmp_path):
    page = tmp_path / "p.html"
    for words, message in (
        (("--to", "2:4", "--methods", "rtn"), "rtn has no parameter pattern"),
        (("--methods", "gtpq"), "Did you mean gptq?"),
        (("--to", "tiny"), "--to: expected 4bit"),
    ):
        ran = run_words(*WORDS, *words, "-o", page)
        assert message in ran.error()
        assert not page.exists()
