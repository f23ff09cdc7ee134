"""Wrong names of parameters are answered, for every method and for names of other libraries."""

import inspect
import math
from typing import Any

import pytest
import torch
from sklearn.base import clone
from torch import nn

import sonde
from sonde.compress import SliceCodec, SliceContext
from sonde.core.errors import InputError, SondeWarning
from sonde.core.keywords import ELSEWHERE, answer_to
from sonde.core.renaming import former_names
from sonde.detect import KNN, Mahalanobis
from sonde.explain import IntegratedGradients
from sonde.layers.layer import Layer
from sonde.measure import two_nn
from sonde.metrics import auroc
from sonde.run.fitting.prepared import prepare
from sonde.run.instruments.catalogue import detectors
from sonde.run.instruments.entering import KINDS
from sonde.run.instruments.families import FAMILIES
from sonde.run.instruments.words import parse_methods

prepared: Any = inspect.unwrap(prepare)  # beartype, which tests alone have, refuses first


def method_classes() -> list[type[Any]]:
    """Return every exported class of a kind that is made of parameters."""
    rooms = [__import__(f"sonde.{family}", fromlist=["__all__"]) for family in FAMILIES]
    exports = [getattr(room, name) for room in rooms for name in room.__all__]
    bases = tuple(Layer if base is nn.Module else base for base in KINDS.values())
    kinds = [kind for kind in exports if isinstance(kind, type) and issubclass(kind, bases)]
    return [kind for kind in kinds if not inspect.isabstract(kind)]


CLASSES = method_classes()
ANY_NAME = [k for k in CLASSES if any(p.kind is p.VAR_KEYWORD
            for p in inspect.signature(k.__init__).parameters.values())]  # fmt: skip


def test_every_method_answers_a_wrong_name():
    assert len(CLASSES) > 250
    assert len(ANY_NAME) < 10
    for kind in CLASSES:
        if kind in ANY_NAME:
            continue
        with pytest.raises(TypeError, match=f"^{kind.__name__}: there is no parameter 'zzz'"):
            kind(zzz=1)


def test_every_method_answers_the_names_of_other_libraries():
    n_meant = 0
    for kind in CLASSES:
        known = [*inspect.signature(kind).parameters, *former_names(kind).values()]
        for name, ours in ELSEWHERE.items():
            meant = [own for own in ours if own in known]
            if kind in ANY_NAME or name in known or not meant:
                continue
            n_meant += 1
            with pytest.raises(TypeError, match=f"'{name}'. The name here is {meant[0]}.$"):
                kind(**{name: 1})
    assert n_meant > 500


def test_names_in_the_table_are_used_somewhere():
    known = {p for kind in CLASSES for p in inspect.signature(kind).parameters}
    functions = [auroc, sonde.fit]
    known |= {p for function in functions for p in inspect.signature(function).parameters}
    assert {own for ours in ELSEWHERE.values() for own in ours} <= known


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda net, x: KNN(n_neighbors=5), "The name here is k."),
        (lambda net, x: sonde.fit(KNN(), net, x), r"sonde.fit\(METHOD, sonde.read\(model, data"),
        (lambda net, x: prepared(KNN(), x, 0.2, "auto"), r"METHOD.fit\(rows\)"),
        (lambda net, x: prepared(KNN(), net, 0.2, "auto"), r"sonde.read\(model, data\)"),
        (lambda net, x: sonde.fit(KNN(), x, n_jobs=2), "The name here is workers."),
        (lambda net, x: KNN().fit(net), r"sonde.fit\(KNN\(...\), sonde.read\(model, data\)\)"),
        (lambda net, x: IntegratedGradients(net), r"IntegratedGradients\(\).explain\(model, inp"),
        (lambda net, x: IntegratedGradients(n_steps=50), "The name here is steps."),
        (lambda net, x: two_nn(x, random_state=0), "Its parameters: x, group"),
        (lambda net, x: auroc(y_score=x, y_true=x), "The name here is scores."),
        (lambda net, x: parse_methods("knn(n_neighbors=5)"), "The name here is k."),
    ],
)
def test_calls_in_the_form_of_other_libraries_say_what_to_write(call: Any, answer: str):
    with pytest.raises((TypeError, InputError), match=answer):
        call(nn.Linear(3, 2), torch.randn(9, 3))


def test_modules_that_are_parameters_are_accepted():
    context = SliceContext(8)
    assert SliceCodec(context).context is context
    with pytest.raises(InputError, match="got the model SliceContext"):
        KNN(context)  # type: ignore[arg-type]


def test_a_plain_function_that_answers_nothing_is_seen():
    def plain(k: int) -> int:
        return k

    with pytest.raises(TypeError) as error:
        plain(n_neighbors=5)  # type: ignore[call-arg]
    assert answer_to("n_neighbors", ["k"]).strip() not in str(error.value)


def test_every_detector_is_cloned_and_changed_as_scikit_learn_does():
    for method in detectors().values():
        for given in method.cls.examples:
            detector = method.cls(**given)
            twin = clone(detector)
            assert type(twin) is type(detector)
            assert twin == detector
            assert twin is not detector
            assert type(detector)(**twin.get_params()).set_params() == detector


def test_changed_parameters_do_not_reach_what_was_fitted():
    rows = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    detector = KNN(k=3)
    fitted = sonde.fit(detector, sonde.Stream.of(rows), progress=False)
    before = fitted.result("knn").score(rows)
    assert detector.set_params(k=40) is detector
    assert detector == KNN(k=40)
    assert [task.instrument.detector.k for task in fitted.tasks] == [3]
    assert torch.equal(fitted.result("knn").score(rows), before)
    with pytest.raises(InputError):
        detector.set_params(k=-1)
    with pytest.raises(TypeError, match="The name here is k"):
        detector.set_params(n_neighbors=1)
    assert detector == KNN(k=40)


def test_fit_predict_marks_the_highest_scores():
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    rows[7], rows[9] = 30.0, math.nan
    marked = Mahalanobis().fit_predict(rows.numpy(), alpha=0.1)
    score = Mahalanobis().fit(rows).score(rows)
    n_marked = int((marked == -1).sum())
    assert {7, 9} <= set((marked == -1).nonzero()[0].tolist())
    assert 15 <= n_marked <= 21  # a tenth of 199 finite rows, and the row with NaN
    assert score[torch.as_tensor(marked == -1)].min() > score[torch.as_tensor(marked == 1)].max()
    with pytest.raises(InputError, match="alpha in"):
        KNN().fit_predict(rows, alpha=0.0)
    with pytest.warns(SondeWarning, match="raise k"):  # each row is its own nearest neighbour
        assert (KNN(k=1).fit_predict(rows[:9]) == 1).all()
