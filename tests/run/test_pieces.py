"""Scores of texts in pieces: each piece is an example, whatever the batches are."""

from collections import defaultdict
from typing import Any

import pytest
import torch

import sonde
from sonde.core import Stream
from sonde.core.errors import InputError
from sonde.core.plan import Split
from sonde.detect import Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score
from sonde.store import Store, write_store

QUIET: dict[str, Any] = {"progress": False}
TEXTS = [f"x{i} = " + " + ".join(map(str, range(5 + 17 * i % 90))) for i in range(30)]
SITE = "model.layers.0"


@pytest.fixture(scope="module")
def model():
    return sonde.load("sonde:stdlib")


def pieces(model, batch_size, texts=TEXTS):
    options = {"reducer": "tokens", "max_length": 32, "batch_size": batch_size}
    return read(model, texts, sites=SITE, **options)


def by_hand(scorer, stream):
    """Return the largest score of the rows of each piece, with its group and its first position."""
    found = defaultdict(list)
    for batch in stream:
        (key,) = batch.rows
        scores = scorer.score(batch.rows[key]).tolist()
        for i, at, value in zip(
            batch.example[key].tolist(), batch.position[key].tolist(), scores, strict=True
        ):
            found[int(batch.order[i]), bytes(batch.group_keys[i])].append((at, value))
    return {piece: max(value for _, value in rows) for piece, rows in found.items()}


@pytest.mark.slow
@pytest.mark.truth("the largest score of the rows of each piece, by hand")
def test_scores_of_pieces_do_not_depend_on_their_batch(model, tmp_path):
    fitted = fit(Mahalanobis(), pieces(model, 4), reduction="max", calibrate=0.5, **QUIET)
    scorer = fitted.result("mahalanobis").scorer
    want = sorted(by_hand(scorer, pieces(model, 4)).values())
    assert len(want) > 2 * len(TEXTS)
    write_store(pieces(model, 7), tmp_path / "acts")
    for stream in (pieces(model, 1), pieces(model, 16), Store(tmp_path / "acts")):
        table = score(fitted, stream, explain=1, **QUIET)
        assert sorted(table["score"].to_pylist()) == pytest.approx(want, rel=1e-5)
        assert None not in table["p"].to_pylist()


@pytest.mark.slow
@pytest.mark.truth("the largest score of the rows of each piece, by hand")
def test_one_piece_of_each_text_calibrates(model):
    fitted = fit(Mahalanobis(), pieces(model, 4), reduction="max", calibrate=0.5, **QUIET)
    scorer = fitted.result("mahalanobis")
    of_text = defaultdict(set)
    for (_, text), value in by_hand(scorer.scorer, pieces(model, 4)).items():
        of_text[text].add(round(value, 2))
    held = scorer.calibration.scores.tolist()
    drawn = {
        key
        for batch in pieces(model, 4)
        for key, chosen in zip(batch.group_keys, Split(0.5).is_held(batch.split_draw), strict=True)
        if chosen
    }
    assert len(held) == len(drawn)
    assert set().union(*of_text.values()) >= {round(value, 2) for value in held}

    bare = fit(Mahalanobis(), pieces(model, 4), calibrate=0, **QUIET)
    new = [f"{text}  # again" for text in TEXTS]
    found = [
        calibrate(bare, pieces(model, size, new), reduction="max", **QUIET)
        .result("mahalanobis")
        .calibration.tail
        for size in (1, 16)
    ]
    assert len(found[0]) == len(TEXTS)
    assert torch.allclose(found[0].sort().values, found[1].sort().values, rtol=1e-5)


@pytest.mark.truth("the same arrays without a store")
def test_stored_arrays_keep_their_examples(tmp_path):
    x = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    ids, position = [str(i // 4) for i in range(600)], [i % 4 for i in range(600)]
    stream = Stream.of(x, ids=ids, position=position)
    fitted = fit(Mahalanobis(), stream, reduction="max", **QUIET)
    write_store(stream, tmp_path / "acts")
    stored = score(fitted, Store(tmp_path / "acts"), **QUIET)
    assert stored.num_rows == 150
    assert stored["score"].to_pylist() == score(fitted, stream, **QUIET)["score"].to_pylist()

    scattered = [str(i % 150) for i in range(600)], [i // 150 for i in range(600)]
    apart = Stream.of(x, ids=scattered[0], position=scattered[1])
    write_store(apart, tmp_path / "apart")
    with pytest.raises(InputError, match="are not adjacent"):
        score(fitted, Store(tmp_path / "apart"), **QUIET)
