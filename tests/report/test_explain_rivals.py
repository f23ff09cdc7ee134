"""What the page of ``sonde explain`` says of methods with a larger effect than the best one."""

from sonde.report.explain import _rivals


def method(word, label=None, believable=True, wrong=0.25, high=0.43, classes=()):
    return {
        "method": word,
        "effect": 1.32,
        "believable": believable,
        "verdict": {"label": label, "wrong": 0, "moved": 12},
        "violation": {"value": wrong, "high": high, "signed": True},
        "classes": list(classes),
    }


def said(best, rival):
    return _rivals({"best": "mine", "larger": ["rival"], "methods": [best, rival]})


def test_a_method_that_is_reliable_for_one_class_is_judged_on_all_inputs():
    text = said(method("mine"), method("rival", label="square", wrong=0.344, high=0.53))
    assert "rival has a larger effect (1.32), but the wrong sign on 34.4 % of the inputs" in text
    assert "0 of 12" not in text
    assert text.endswith("it is reliable for answers of square.")


def test_a_best_method_of_one_class_is_compared_on_this_class():
    held = {"label": "square", "wrong": 7, "moved": 12}
    text = said(method("mine", label="square"), method("rival", believable=False, classes=[held]))
    assert text.endswith("but the wrong sign on 7 of 12 inputs.")


def test_right_signs_are_not_called_wrong():
    text = said(method("mine"), method("rival", believable=False, wrong=0.1, high=0.2))
    assert text.endswith("but not significantly on all inputs.")
