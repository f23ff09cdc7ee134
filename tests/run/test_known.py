"""One table held against errors, steps, masks: printed numbers, scikit-learn, by hand, refusals."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics
from PIL import Image

from sonde.core.errors import InputError
from sonde.run.scoring.exhibit import hashed_id
from sonde.run.scoring.known_errors import evaluate_errors
from sonde.run.scoring.known_pixels import evaluate_pixels, grid_of
from sonde.run.scoring.known_steps import evaluate_steps


def table(scores, row, position: Any = 0, p=None, ids=None):
    n = len(scores)
    return pa.table({
        "id": ids or [f"r{i}" for i in row],
        "row": list(row),
        "position": [position] * n if isinstance(position, int) else position,
        "site": ["h.0:out"] * n,
        "instrument": ["knn"] * n,
        "score": pa.array(scores, pa.float64()),
        "p": pa.array(p or [None] * n, pa.float64()),
    })  # fmt: skip


def only(found):
    (row,) = found
    return row


@pytest.mark.truth("the figures printed in the handbook's definition of PRR")
@pytest.mark.parametrize(
    ("scores", "want"),
    [([0.9, 0.1, 0.4, 0.6, 0.2], 1.0), ([0.9, 0.5, 0.4, 0.3, 0.2], 0.38271605), ([3.0] * 5, 0.0)],
)
def test_rejection_of_rows_in_any_order(scores, want, tmp_path):
    wrong = ["1", "0", "0", "1", "0"]
    path = tmp_path / "answers.csv"
    path.write_text("\n".join(["text,wrong", "a,", *(f"b,{w}" for w in wrong)]))
    order = [3, 1, 0, 4, 2]
    scored = table([*(scores[i] for i in order), 9.0], [*(i + 1 for i in order), 0])
    found = only(evaluate_errors(scored, path, "wrong", resamples=20))
    assert found["prr"] == pytest.approx(want, abs=1e-8)
    assert (found["n"], found["left_out"], found["groups"]) == (5, 1, 5)
    want = sklearn.metrics.roc_auc_score([int(w) for w in wrong], scores)
    assert found["auroc"] == pytest.approx(want)
    assert found["within"] is None


@pytest.mark.truth("scikit-learn, inside groups; an interval over groups is the wider one")
def test_groups_are_texts_and_resampled_whole():
    rng = np.random.default_rng(0)
    prompt = np.repeat([f"prompt {i}" for i in range(20)], 10)
    hard = np.repeat(rng.normal(size=20), 10)
    wrong = (hard + rng.normal(size=200) > 0).astype(int)
    scores = 3 * hard + rng.normal(size=200)
    items = [{"text": str(i), "wrong": int(w), "prompt": g}
             for i, (w, g) in enumerate(zip(wrong, prompt, strict=True))]  # fmt: skip
    scored = table(scores, range(200))
    alone = only(evaluate_errors(scored, items, "wrong", resamples=200))
    whole = only(evaluate_errors(scored, items, "wrong", group_column="prompt", resamples=200))
    assert (alone["groups"], whole["groups"], whole["n"]) == (200, 20, 200)
    width = [r["prr_high"] - r["prr_low"] for r in (alone, whole)]
    assert width[1] > 1.5 * width[0]
    pairs = [(scores[i] > scores[j]) for g in range(20) for i in range(10 * g, 10 * g + 10)
             for j in range(10 * g, 10 * g + 10) if wrong[i] > wrong[j]]  # fmt: skip
    assert whole["within"] == pytest.approx(np.mean(pairs))
    assert whole["within"] < whole["auroc"]


def test_errors_by_degree_have_no_auroc_and_infinite_scores_go_first():
    items = [{"text": "", "loss": v} for v in (0.0, 0.5, 2.0)]
    found = only(evaluate_errors(table([1.0, 2.0, None], range(3)), items, "loss", resamples=0))
    assert found["prr"] == pytest.approx(1.0)
    assert found["auroc"] is None


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["wrong", "right"], "a number of at least 0 .* got 'wrong' for item 0"),
        ([0, float("inf")], "a number of at least 0"),
        ([1, 1], "got 2 scored items with the same value"),
        ([None, ""], "got 0 scored items with no value"),
        ([-1, -1], "got 0 scored items with no value"),
    ],
)
def test_columns_that_say_nothing_are_refused(column, said):
    items = [{"text": "", "wrong": v} for v in column]
    with pytest.raises(InputError, match=said):
        evaluate_errors(table([1.0, 2.0], range(2)), items, "wrong")


def test_tables_of_other_data_are_refused():
    items = [{"text": "", "id": f"r{i}", "wrong": i % 2} for i in range(4)]
    scores = [1.0, 2.0, 3.0, 4.0]
    named = [hashed_id(f"r{i}") for i in range(4)]
    for ids in (None, named):
        assert only(evaluate_errors(table(scores, range(4), ids=ids), items, "wrong"))["n"] == 4
    with pytest.raises(InputError, match="got row 9 with the id r9, which is not among its 4"):
        evaluate_errors(table(scores, [0, 1, 2, 9]), items, "wrong")
    with pytest.raises(InputError, match="got row 1 with the id r0"):
        evaluate_errors(table(scores, [0, 1, 2, 3], ids=["r0"] * 4), items, "wrong")
    with pytest.raises(InputError, match="row in every line"):
        evaluate_errors(table(scores, [0, 1, 2, None], ids=["a"] * 4), items, "wrong")
    with pytest.raises(InputError, match=r"no column 'wrogn'.*wrong"):
        evaluate_errors(table(scores, range(4)), items, "wrogn")
    with pytest.raises(InputError, match="one line for each item, got 2 for item 3"):
        evaluate_errors(table(scores, [0, 1, 3, 3]), items, "wrong")
    with pytest.raises(InputError, match="uncertainties without NaN, got 1 NaN"):
        evaluate_errors(table([float("nan"), *scores[1:]], range(4)), items, "wrong")


TRAJECTORIES = [
    {"steps": ["a", "b", "c"], "first_error": 1},
    {"steps": ["a", "b"], "label": 0},
    {"steps": ["a", "b", "c"], "first_error": 2},
    {"steps": ["a", "b"], "label": 1},
    {"steps": ["a"], "label": None},
]


@pytest.mark.truth("counted by hand")
def test_steps_by_hand(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, TRAJECTORIES)))
    row = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4]
    step = [0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 0]
    p = [0.5, 0.01, 0.5, 0.5, 0.03, 0.5, 0.5, 0.01, 0.5, 0.5, 0.5]
    scores = [1.0, 5.0, 9.0, 0.0, 3.0, 1.0, 0.5, 4.0, 7.0, 7.0, 7.0]
    order = np.random.default_rng(0).permutation(11)
    scored = table(scores, row, step, p).take(order)
    found = only(evaluate_steps(scored, path, alpha=0.05, resamples=20))
    assert (found["n"], found["n_wrong"], found["left_out"]) == (3, 2, 2)
    assert found["localised"] == 0.5
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert found["joint"] == pytest.approx(2 / 3)
    assert found["auroc"] == 1.0
    assert only(evaluate_steps(scored, path, alpha=0.02, resamples=0))["joint"] == 1.0
    bare = scored.drop_columns("p")
    assert only(evaluate_steps(bare, path, resamples=0))["f1"] is None


@pytest.mark.truth("counted by hand")
def test_lines_of_trajectories_name_a_step():
    scored = table([3.0, 1.0, 2.0], [0, 1, 2], [1, 0, 0], [0.01, 0.5, 0.01])
    found = only(evaluate_steps(scored, TRAJECTORIES[:3], resamples=0))
    assert found["localised"] == 0.5
    assert found["joint"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert found["auroc"] is None


def test_steps_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="each of the 3 steps of item 0, got 2 lines"):
        evaluate_steps(table([1.0, 2.0], [0, 0], [0, 1]), TRAJECTORIES)
    with pytest.raises(InputError, match="each of the 2 steps of item 1, got 3 lines"):
        evaluate_steps(table([1.0, 2.0, 3.0], [1, 1, 1], [0, 1, 1]), TRAJECTORIES)
    with pytest.raises(InputError, match="trajectory whose first wrong step is known"):
        evaluate_steps(table([1.0, 2.0], [1, 1], [0, 1]), TRAJECTORIES)
    with pytest.raises(InputError, match="no column 'steps'"):
        evaluate_steps(table([1.0], [0]), [{"text": "a"}])


MAP = [[0.9, 0.8, 0.1, 0.1, 0.1, 0.7], [0.6, 0.5, 0.1, 0.1, 0.1, 0.1], [0.1] * 6,
       [0.1, 0.1, 0.1, 0.1, 0.4, 0.3]]  # fmt: skip
MASK = np.zeros((4, 6), dtype=np.uint8)
MASK[:2, :2] = MASK[3, 4:] = 255


def patches(maps):
    each = [np.ravel(m) for m in maps]
    row = np.repeat(np.arange(len(each)), [len(m) for m in each]).tolist()
    return table(np.concatenate(each), row, [i for m in each for i in range(len(m))])


@pytest.mark.truth("the figures printed in the handbook's definition of PRO")
def test_masks_in_a_column(tmp_path):
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    items = [{"image": "x.png", "mask": str(tmp_path / "mask.png")}]
    for resamples in (0, 20):
        found = only(evaluate_pixels(patches([MAP]), items, "mask", resamples=resamples))
        assert found["aupro"] == pytest.approx(0.86111111, abs=1e-8)
        assert found["pixel_auroc"] == pytest.approx(0.96296296, abs=1e-8)
        assert (found["n"], found["n_masked"]) == (1, 1)


@pytest.fixture
def folders(tmp_path):
    for folder in ("test/good", "test/bad", "truth/bad"):
        (tmp_path / folder).mkdir(parents=True)
    plain = Image.fromarray(np.zeros((8, 12, 3), dtype=np.uint8))
    for name in ("good/0", "good/1", "bad/0"):
        plain.save(tmp_path / "test" / f"{name}.jpg")
    mask = Image.fromarray(MASK).resize((12, 8), 0)
    mask.save(tmp_path / "truth" / "bad" / "0_mask.png")
    return tmp_path


@pytest.mark.truth("scikit-learn on the pixels of all images")
def test_masks_in_a_folder_lie_as_the_images(folders):
    rng = np.random.default_rng(0)
    maps = [rng.random((8, 12)) for _ in range(3)]
    maps[0][:4, :4] += 0.4
    truth = np.zeros((3, 8, 12), dtype=int)
    truth[0] = np.asarray(Image.open(folders / "truth" / "bad" / "0_mask.png")) > 0
    test, masks = folders / "test", str(folders / "truth")
    found = only(evaluate_pixels(patches(maps), test, masks, resamples=10))
    want = sklearn.metrics.roc_auc_score(truth.ravel(), np.ravel(maps))
    assert found["pixel_auroc"] == pytest.approx(want)
    assert (found["n"], found["n_masked"]) == (3, 1)
    smooth = only(evaluate_pixels(patches(maps), test, masks, sigma=1.0, resamples=0))
    assert smooth["pixel_auroc"] > found["pixel_auroc"]


def test_masks_that_do_not_fit_are_refused(folders):
    test, scored = folders / "test", patches([np.zeros((8, 12))] * 3)
    with pytest.raises(InputError, match=r"a column of .* or a folder of masks, got 'nothing'"):
        evaluate_pixels(scored, test, "nothing")
    mask = folders / "truth" / "bad" / "0_mask.png"
    mask.rename(folders / "truth" / "bad" / "7.png")
    with pytest.raises(
        InputError, match=r"one mask for an image .*7\.png.*whose name matches no image"
    ):
        evaluate_pixels(scored, test, str(folders / "truth"))
    Image.fromarray(MASK * 0).save(folders / "truth" / "bad" / "7.png")
    (folders / "truth" / "bad" / "7.png").rename(mask)
    with pytest.raises(
        InputError, match="masks with anomalous pixels, got none in the 3 scored images"
    ):
        evaluate_pixels(scored, test, str(folders / "truth"))
    Image.fromarray(MASK).resize((12, 8)).save(mask)
    with pytest.raises(InputError, match="each of 8 x 12 patches of an image, got 95 lines"):
        evaluate_pixels(scored.slice(1), test, str(folders / "truth"), grid=(8, 12))
    mask.write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"the mask of item 0: .*not an image"):
        evaluate_pixels(scored, test, str(folders / "truth"))


def test_patches_lie_in_a_square_or_as_the_image():
    assert grid_of(196, (300, 400)) == (14, 14)
    assert grid_of(192, (300, 400)) == (12, 16)
    assert grid_of(1, (5, 9)) == (1, 1)
    for n in (144, 13):
        with pytest.raises(InputError, match="--grid LINES COLUMNS"):
            grid_of(n, (90, 160))
