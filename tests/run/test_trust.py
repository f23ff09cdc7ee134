"""Which detector and site to trust: a planted one is named, and none where none sees."""

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics

from cli_case import run_words
from sonde.run.scoring.trust import Candidate, trust, trust_of

SITES = 12


def table(rng, n, shift, start=0, sees=5, rows=1, sites=SITES):
    """``n`` examples of ``rows`` rows, scored at several sites, of which one sees the shift."""
    return pa.table({
        "id": [f"{start + i // rows}" for _ in range(sites) for i in range(n * rows)],
        "site": [f"h.{s}:out" for s in range(sites) for _ in range(n * rows)],
        "instrument": ["knn"] * (sites * n * rows),
        "score": np.concatenate(
            [np.repeat(rng.normal(size=n), rows) + shift * (s == sees) for s in range(sites)]
        ),
    })  # fmt: skip


@pytest.mark.truth("planted: one of twelve sites sees; scikit-learn on the rows of the other half")
def test_the_site_that_sees_is_named_and_its_figures_are_those_of_the_other_half():
    rng = np.random.default_rng(0)
    both = table(rng, 60, 0.0), table(rng, 40, 1.5)
    found = trust(*both, resamples=200)
    assert (found["trusted"], found["site"], found["n_candidates"]) == (True, "h.5:out", 12)
    assert (found["n_usual"], found["n_unusual"]) == (30, 20)
    values = {}
    for half in (0, 1):
        named = [_half(t, kind)[half] for t, kind in zip(both, ("usual", "unusual"), strict=True)]
        mine = [
            [r["score"] for r in t.to_pylist() if r["site"] == "h.5:out" and r["id"] in kept]
            for t, kept in zip(both, named, strict=True)
        ]
        truth = np.repeat([0, 1], [len(m) for m in mine])
        values[half] = sklearn.metrics.roc_auc_score(truth, np.concatenate(mine))
    assert found["chosen_auroc"] == pytest.approx(values[0])
    assert found["auroc"] == pytest.approx(values[1])
    assert 0.5 < found["auroc_low"] < found["auroc"] < found["auroc_high"]


def _half(scored, kind):
    """Return the ids of either half: every other one in the order of their hashes."""
    from hashlib import blake2b

    def drawn(name):
        key = f"{kind} {name}".encode()
        return int.from_bytes(blake2b(key, digest_size=8, key=b"split|0").digest(), "little")

    order = sorted(set(scored["id"].to_pylist()), key=drawn)
    return set(order[::2]), set(order[1::2])


@pytest.mark.slow
@pytest.mark.truth("binomial: of 200 worlds in which nothing sees, 2.5 % are to be called so")
def test_where_none_sees_none_is_named_though_the_best_looks_good():
    rng, trusted, naive = np.random.default_rng(1), 0, 0
    truth = np.repeat([False, True], [20, 20])
    for seed in range(200):
        scores = rng.normal(size=(SITES, 40))
        group = [str(i) for i in range(40)]
        found = trust_of(
            [Candidate(("knn", str(s)), scores[s], truth, group) for s in range(SITES)],
            resamples=100, seed=seed,
        )  # fmt: skip
        trusted += found["trusted"]
        naive += max(sklearn.metrics.roc_auc_score(truth, s) for s in scores) > 0.6
    assert trusted <= 12
    assert naive > 100


def test_rows_of_one_example_stay_together_and_few_examples_say_nothing():
    rng = np.random.default_rng(2)
    found = trust(table(rng, 12, 0.0, rows=50), table(rng, 12, 9.0, start=50, rows=50))
    assert found["trusted"] is None
    assert found["site"] is None
    found = trust(table(rng, 16, 0.0, rows=5), table(rng, 16, 9.0, start=50, rows=5), resamples=50)
    assert (found["trusted"], found["n_usual"], found["n_unusual"]) == (True, 40, 40)


@pytest.mark.slow
def test_the_command_says_whom_to_trust(tmp_path):
    from pyarrow import parquet

    rng = np.random.default_rng(5)
    usual, seen, blind = (str(tmp_path / f"{n}.parquet") for n in ("usual", "seen", "blind"))
    for path, shift in ((usual, 0.0), (seen, 2.0), (blind, 0.0)):
        parquet.write_table(table(rng, 40, shift, sees=1, sites=3), path)
    words = ("evaluate", usual, seen, "--resamples", "50")
    ran = run_words(*words, "-o", tmp_path / "e.html")
    said = " ".join(ran.out.split())
    assert "Trust knn at h.1: chosen among 3 on one half of the examples, it has AUROC" in said, (
        said
    )
    assert "20 usual and 20 unusual rows" in said
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "Trust knn at h.1" in (tmp_path / "e.html").read_text("utf-8")
    assert run_words(*words, "--json").json()["trust"]["site"] == "h.1:out"
    said = " ".join(run_words("evaluate", usual, blind, "--resamples", "50").out.split())
    assert "Trust no detector: the best of 3 on one half of the examples" in said, said


@pytest.mark.truth("planted: the scores of one site are the errors")
def test_errors_have_their_own_line(tmp_path):
    from pyarrow import parquet

    rng = np.random.default_rng(4)
    wrong = [i % 3 == 0 for i in range(120)]
    text = "\n".join(
        f'{{"text": "a", "wrong": {int(w)}, "group": "g{i}"}}' for i, w in enumerate(wrong)
    )
    (tmp_path / "d.jsonl").write_text(text)
    made = table(rng, 120, 0.0, sees=2, sites=4)
    score = made["score"].to_numpy() + 2 * np.tile(wrong, 4) * np.repeat(np.arange(4) == 2, 120)
    made = made.set_column(3, "score", pa.array(score))
    made = made.append_column("row", pa.array(np.tile(np.arange(120), 4)))
    parquet.write_table(made, tmp_path / "s.parquet")
    words = ("evaluate", tmp_path / "s.parquet", tmp_path / "d.jsonl", "--errors", "wrong")
    ran = run_words(*words, "--resamples", "50")
    said = " ".join(ran.out.split())
    assert "Trust knn at h.2: chosen among 4 on one half of the examples" in said, said + ran.err
    assert "40 right and 20 wrong answers" in said
    assert run_words(*words, "--resamples", "50", "--json").json()["trust"]["trusted"] is True
