"""Data sets that name their classes, and number them each in its own order."""

import re
from typing import Any

import pytest
import torch

import sonde
from models import mlp
from sonde.core.errors import InputError, SondeWarning, StateError
from sonde.core.stream import Stream
from sonde.detect import Mahalanobis
from sonde.measure import Covariance, Norms
from sonde.run.fitting.calibrations import merge_calibrations
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.merge import merge
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score
from sonde.store import Store, add_sites, append_store, verify_store, write_store

QUIET: dict[str, Any] = {"progress": False}
NAMES = {"a": 0.0, "b": 6.0, "c": -6.0, "d": 12.0, "0": 0.0, "1": 6.0, "2": -6.0}


def items(names, each=40, seed=0):
    """Return items of named classes, each around another mean."""
    draw = torch.Generator().manual_seed(seed)
    return [
        {"x": torch.randn(8, generator=draw) + NAMES[name], "label": name}
        for _ in range(each)
        for name in names
    ]


def live(data, sites=("0",), **options):
    return sonde.read(mlp(), data, sites=list(sites), **options)


def means(data):
    """Return the mean state of each class by its name, by the model alone."""
    model = mlp()
    with torch.no_grad():
        return {
            name: model[0](torch.stack([i["x"] for i in data if i["label"] == name])).mean(0)
            for name in {i["label"] for i in data}
        }


def mean_of(stream, name):
    number = stream.label_names.index(name)
    label = torch.cat([b.label for b in stream])
    return torch.cat([b.rows["0:out"] for b in stream])[label == number].mean(0)


@pytest.mark.truth("class means by the model alone")
@pytest.mark.parametrize("later", ["bc", "b", "da"])
def test_appended_data_keep_the_numbers_of_a_store(tmp_path, later):
    first, second = items("ab", seed=1), items(later, seed=2)
    place = write_store(live(first), tmp_path / "a")
    append_store(live(second), place)
    append_store(live(items("cb", seed=3)), place)
    everything = [*first, *second, *items("cb", seed=3)]
    store = Store(place)
    assert set(store.label_names) == {i["label"] for i in everything}
    for name, mean in means(everything).items():
        torch.testing.assert_close(mean_of(store, name), mean)
    append_store(live(second), place)
    assert len(Store(place)) == len(everything)
    add_sites(live(second, sites=("0", "2")), place)
    assert verify_store(place).is_sound
    found = fit(Covariance(), store, **QUIET)
    assert found.label_names == store.label_names


@pytest.mark.truth("class means by the model alone")
@pytest.mark.parametrize(("first", "later"), [("12a", "01a"), ("01a", "12a"), ("2a", "12")])
def test_names_that_are_numbers_are_no_class_numbers(tmp_path, first, later):
    parts = items(first, seed=1), items(later, seed=2)
    place = write_store(live(parts[0]), tmp_path / "a")
    append_store(live(parts[1]), place)
    store = Store(place)
    for name, mean in means([*parts[0], *parts[1]]).items():
        torch.testing.assert_close(mean_of(store, name), mean)
    with pytest.raises(StateError, match="number their classes differently"):
        merge(*(fit(Mahalanobis(), live(part), **QUIET) for part in parts))


def test_bundles_of_other_class_numbers_do_not_merge(tmp_path):
    ab, bc, abc = (fit(Mahalanobis(), live(items(n, seed=i)), **QUIET)
                   for i, n in enumerate(("ab", "bc", "abc")))  # fmt: skip
    with pytest.raises(StateError, match=r"number their classes differently, \(0 = a, 1 = b\)"):
        merge(ab, bc)
    ab.save(tmp_path / "ab.sonde")
    both = merge(Fitted.load(tmp_path / "ab.sonde"), abc)
    assert both.label_names == ("a", "b", "c")
    free = [fit(Covariance(), live(items(n, seed=i)), **QUIET) for i, n in enumerate(("ab", "bc"))]
    assert merge(*free).label_names == ()


@pytest.mark.truth("the p-values of the same rows with the same class in other data")
def test_scores_by_class_follow_the_names():
    fitted = fit(Mahalanobis(), live(items("abc", seed=1)), calibrate=0, **QUIET)
    usual = calibrate(fitted, live(items("abc", seed=2)), by="label", **QUIET)
    few = calibrate(fitted, live(items("cb", seed=2)), by="label", **QUIET)
    assert few.label_names == ("a", "b", "c")
    new = items("abc", each=9, seed=3)
    all_p = score(usual, live(new), **QUIET).column("p").to_pylist()
    of_c = [p for p, item in zip(all_p, new, strict=True) if item["label"] == "c"]
    alone = [item for item in new if item["label"] == "c"]
    assert score(usual, live(alone), **QUIET).column("p").to_pylist() == of_c
    b = [item for item in new if item["label"] == "b"]
    assert min(score(few, live(b), **QUIET).column("p").to_pylist()) > 0.02
    with pytest.raises(StateError, match="use different numbers for the classes"):
        merge_calibrations(
            calibrate(fitted, live(items("ad", seed=4)), by="label", **QUIET),
            calibrate(fitted, live([{"x": i["x"], "label": "e" + i["label"]}
                                    for i in items("ab", seed=5)]), by="label", **QUIET),
        )  # fmt: skip


def test_a_bundle_that_does_not_know_the_attention_kernel_merges():
    one, other = (fit(Covariance(), live(items("ab", seed=s)), **QUIET) for s in (1, 2))
    one.header["model"]["attn"], other.header["model"]["attn"] = None, "sdpa"
    assert merge(one, other).header["model"] == merge(other, one).header["model"]
    assert merge(one, other).header["model"]["attn"] == "sdpa"
    one.header["model"]["attn"] = "eager"
    with pytest.raises(StateError, match="bundles of the same model"):
        merge(one, other)


class TestSharedRows:
    """Bundles that share most data do not merge; where they share some, that is said."""

    def test_a_longer_part_of_the_same_data(self):
        parts = [fit(Covariance(), live(items("ab")[:n]), **QUIET) for n in (30, 70)]
        with pytest.raises(StateError, match="30 of 30 examples of one bundle have the ids"):
            merge(*parts)

    def test_a_few_shared_examples_are_told_of(self):
        one, other = items("ab", seed=1), items("ab", seed=2)
        parts = [fit(Covariance(), live(data), **QUIET) for data in (one, [*other, *one[:5]])]
        with pytest.warns(SondeWarning, match=r"5 of 80 examples of one .* they now count twice"):
            assert merge(*parts).header["data"]["n_examples"] == 165

    @pytest.mark.truth("how the two ranges were cut")
    def test_ranges_that_overlap_without_a_sample(self):
        x = torch.randn(800, 2, generator=torch.Generator().manual_seed(0))
        parts = [fit(Norms(), Stream.of(p), **QUIET) for p in (x[:500], x[300:])]
        with pytest.warns(SondeWarning, match="of 500 examples of one bundle") as told:
            merge(*parts)
        found = re.search(r"about (\d+) of 500", str(told[0].message))
        assert found
        assert abs(int(found[1]) - 200) < 50

    def test_samples_that_left_rows_out(self):
        x = torch.randn(6000, 2)
        parts = [fit(Covariance(), Stream.of(x[:n]), **QUIET) for n in (3000, 6000)]
        with pytest.raises(StateError, match="would count twice"):
            merge(*parts)
        apart = [fit(Covariance(), Stream.of(p), **QUIET) for p in (x[:3000], x[3000:])]
        assert merge(*apart).header["data"]["n_examples"] == 6000

    def test_other_seeds(self):
        parts = [fit(Covariance(), live(items("ab", seed=s), seed=s), **QUIET) for s in (0, 1)]
        with pytest.raises(StateError, match="different seeds, 0 and 1"):
            merge(*parts)


def test_rows_of_a_class_that_the_model_does_not_have_are_scored_and_refused_for_calibration():
    known = items("ab", seed=1)
    fitted = fit(Mahalanobis(), live(known, classes="a,b"), **QUIET)
    alone = score(fitted, mlp(), [{"x": item["x"]} for item in items("cd", seed=2)], **QUIET)
    found = score(fitted, mlp(), items("cd", seed=2), classes="a,b", **QUIET)
    assert found["p"].to_pylist() == alone["p"].to_pylist()
    with pytest.raises(InputError, match="expected labels among the classes a, b, got c, d"):
        calibrate(fitted, mlp(), items("cd", seed=2), classes="a,b", **QUIET)


def test_a_store_keeps_whether_class_numbers_are_the_models_own(tmp_path):
    own, other = live(items("ab"), classes="a,b"), live(items("ab", seed=3))
    assert (own.own_labels, other.own_labels) == (True, False)
    for name, stream in (("own", own), ("other", other)):
        write_store(stream, tmp_path / name)
        assert Store(tmp_path / name).own_labels is stream.own_labels
