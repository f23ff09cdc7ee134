"""Laws of each kind of method, and ``check``, which tests a method against them.

A new kind of method needs a module with its laws and an entry in ``KINDS``.
"""

import importlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sonde.core.cache_packing import CachePacking
from sonde.core.cache_rule import CacheRule
from sonde.core.codec import Codec
from sonde.core.edit import Edit
from sonde.core.errors import InputError
from sonde.core.explainer import Explainer, Judge
from sonde.core.instrument import Detector, Instrument
from sonde.core.shift import Shift
from sonde.core.state import digest
from sonde.core.statistic import Learner, Statistic
from sonde.core.token_rule import TokenRule
from sonde.layers import Layer
from sonde.run.instruments.families import FAMILIES
from sonde.tap import Decode
from sonde.testing import (
    cache_laws,
    codec_laws,
    decode_laws,
    edit_laws,
    explainer_laws,
    instrument_laws,
    layer_laws,
    packing_laws,
    rewrite_laws,
    shift_laws,
    statistic_laws,
    token_laws,
)
from sonde.testing.explainer_laws import ExplainerCase
from sonde.testing.instrument_laws import make_inputs
from sonde.testing.layer_laws import LayerCase
from sonde.testing.rewrite_laws import RewriteCase
from sonde.testing.rows import make_columns
from sonde.testing.statistic_laws import Case
from sonde.weights import MergeRule, Rewrite


@dataclass(frozen=True)
class Law:
    """A property that every method of a kind must have, as a test.

    Parameters
    ----------
    name : str
        Name of the law, as printed by the tests.
    hold : callable
        Takes the method (a statistic as a ``Case``); raises AssertionError if it breaks the law.
    applies : callable
        Takes the method and returns whether the law applies to it.
    promise : str
        The law in one sentence.
    """

    name: str
    hold: Callable[[Any], None]
    applies: Callable[[Any], bool]
    promise: str


def _law(
    function: Callable[..., None],
    of: Callable[[], tuple[Any, ...]] = lambda: (),
    applies: Callable[[Any], bool] = lambda _: True,
) -> Law:
    """Return the law that calls ``function(method, *of())``, described by its docstring."""
    promise = (function.__doc__ or "").partition("\n")[0]
    name = function.__name__.removeprefix("law_")
    return Law(name, lambda method: function(method, *of()), applies, promise)


def _inputs() -> tuple[Any]:
    return (make_inputs(),)


def _make() -> tuple[Any]:
    return (make_inputs,)


def _columns() -> tuple[Any]:
    return (make_columns(300, 3, seed=7, dtype=torch.float64),)


def _few() -> tuple[Any]:
    return (make_columns(60, 3, seed=2, dtype=torch.float64),)


def _learns(instrument: Instrument) -> bool:
    return any(isinstance(r.statistic, Learner) for r in instrument.all_reads().values())


def _merges(case: Case) -> bool:
    return case.statistic.merging != "none"


def _exact(case: Case) -> bool:
    return case.statistic.merging == "exact"


def _meets_offsets(case: Case) -> bool:
    needs = case.statistic.needs()
    return _exact(case) and "x" in needs and "grad" not in needs


def _has_influence(case: Case) -> bool:
    return _exact(case) and type(case.statistic).influence is not Statistic.influence


def _company() -> tuple[Any, ...]:
    """Return one instance of every instrument of sonde, and rows for them."""
    company: list[Instrument] = []
    for family in FAMILIES:
        package = importlib.import_module(f"sonde.{family}")
        members = (getattr(package, name) for name in package.__all__)
        company += [
            m(**m.examples[0]) for m in members if isinstance(m, type) and issubclass(m, Instrument)
        ]
    return company, make_inputs()


_S, _I, _H, _E = statistic_laws, instrument_laws, shift_laws, edit_laws
_D, _R, _C, _X = decode_laws, rewrite_laws, cache_laws, explainer_laws
_B, _L = codec_laws, layer_laws

KINDS: dict[type, tuple[Law, ...]] = {
    Statistic: (
        _law(_S.law_split, of=_columns, applies=_exact),
        _law(_S.law_atoms, of=_few, applies=_exact),
        _law(_S.law_update, of=_columns, applies=_exact),
        _law(_S.law_size, applies=_merges),
        _law(_S.law_pure, of=_columns, applies=_merges),
        _law(_S.law_sizes, applies=_merges),
        _law(_S.law_half, applies=_merges),
        _law(_S.law_offset, applies=_meets_offsets),
        _law(_S.law_influence, applies=_has_influence),
        _law(_S.law_save, of=_columns, applies=_merges),
        _law(_S.law_identity, applies=_merges),
        _law(_S.law_bound, of=_columns, applies=lambda c: c.statistic.merging == "bounded"),
    ),
    Learner: (_law(_S.law_learner),),
    Instrument: (
        _law(_I.law_value, of=_inputs),
        _law(_I.law_degenerate, of=_make),
        _law(_I.law_sizes, of=_make),
        _law(_I.law_unlabelled, of=_inputs),
        _law(_I.law_order, of=_inputs, applies=lambda i: not _learns(i)),
        _law(_I.law_persons, of=_make, applies=lambda i: not isinstance(i, Detector)),
        _law(_I.law_ragged, of=_inputs, applies=lambda i: _I.size_of_example(i) > 1),
        _law(_I.law_again, of=_inputs),
        _law(_I.law_company, of=_company, applies=lambda i: not isinstance(i, Detector)),
        _law(_I.law_then, of=_make, applies=lambda i: type(i).then is not Instrument.then),
    ),
    Detector: (
        _law(_I.law_score_finite, of=_inputs),
        _law(_I.law_score_alone, of=_inputs),
        _law(_I.law_score_direction, of=_inputs),
    ),
    Shift: (
        _law(_H.law_itself),
        _law(_H.law_far),
        _law(_H.law_order),
        _law(_H.law_merged),
        _law(_H.law_again),
        _law(_H.law_groups),
        _law(_H.law_degenerate),
    ),
    Edit: (
        _law(_E.law_strength, applies=_E.has_strength),
        _law(_E.law_kept),
        _law(_E.law_rows),
        _law(_E.law_again),
        _law(_E.law_padding),
        _law(_E.law_rounding),
        _law(_E.law_untouched),
        _law(_E.law_restored),
        _law(_E.law_generates),
    ),
    Decode: (
        _law(_D.law_strength, applies=_E.has_strength),
        _law(_D.law_kept),
        _law(_D.law_constant),
        _law(_D.law_rows),
        _law(_D.law_recomputed),
        _law(_D.law_untouched),
    ),
    Rewrite: (
        _law(_R.law_named),
        _law(_R.law_untouched),
        _law(_R.law_again),
        _law(_R.law_shared),
        _law(_R.law_once),
        _law(_R.law_saved),
        _law(_R.law_undone),
        _law(_R.law_half, applies=lambda c: c.half),
        _law(_R.law_tied),
        _law(_R.law_missing, applies=_R.reads_something),
        _law(_R.law_finite),
    ),
    CacheRule: (
        _law(_C.law_score),
        _law(_C.law_empty),
        _law(_C.law_alone),
        _law(_C.law_budget),
        _law(_C.law_whole),
    ),
    CachePacking: (
        _law(packing_laws.law_form),
        _law(packing_laws.law_padding),
        _law(packing_laws.law_rows),
        _law(packing_laws.law_heads),
        _law(packing_laws.law_steps),
    ),
    TokenRule: (
        _law(token_laws.law_leads),
        _law(token_laws.law_padding),
        _law(token_laws.law_alone),
        _law(token_laws.law_shape),
    ),
    Codec: (
        _law(_B.law_round_trip),
        _law(_B.law_same_bytes),
        _law(_B.law_truncated),
        _law(_B.law_flipped),
        _law(_B.law_refused),
    ),
    Explainer: (
        _law(_X.law_alone),
        _law(_X.law_again),
        _law(_X.law_untouched),
        _law(_X.law_half),
        _law(_X.law_inputs),
        _law(_X.law_output, applies=_X.takes_objective),
    ),
    Judge: (_law(_X.law_again), _law(_X.law_untouched), _law(_X.law_half)),
    Layer: (
        _law(_L.law_start, applies=_L.is_insertable),
        _law(_L.law_gradients, applies=lambda c: c.layer.exact_gradient),
        _law(_L.law_again),
        _law(_L.law_alone, applies=_L.has_rows),
        _law(_L.law_symmetry, applies=_L.is_symmetric),
        _law(_L.law_padding, applies=_L.has_tokens),
        _law(_L.law_saved),
        _law(_L.law_bfloat16, applies=_L.is_bfloat16_safe),
        _law(_L.law_large, applies=_L.has_floats),
        _law(_L.law_keyword, applies=_L.takes_names),
        _law(_L.law_causal, applies=_L.is_causal),
        _law(_L.law_recomputed),
        _law(_L.law_unseen),
        _law(_L.law_counted),
    ),
    MergeRule: (
        _law(_R.law_rule_kept),
        _law(_R.law_rule_again),
        _law(_R.law_rule_same),
    ),
}
"""The laws of each kind; a method must obey those of every class that it is an instance of."""


def laws_of(method: Any) -> tuple[Law, ...]:
    """Return the laws that apply to a method; none for an unknown kind of method.

    Parameters
    ----------
    method : Instrument, Edit, Decode, CacheRule, CachePacking, Codec, MergeRule or a case
        An instance; a statistic as a ``Case``, a rewrite as a ``RewriteCase``, an explainer or a
        judge as an ``ExplainerCase``, a layer as a ``LayerCase``.
    """
    thing = method.statistic if isinstance(method, Case) else method
    thing = method.rewrite if isinstance(method, RewriteCase) else thing
    thing = method.explainer if isinstance(method, ExplainerCase) else thing
    thing = method.layer if isinstance(method, LayerCase) else thing
    kinds = [laws for kind, laws in KINDS.items() if isinstance(thing, kind)]
    return tuple(law for laws in kinds for law in laws if law.applies(method))


def check(method: Any, *, without: Collection[str] = ()) -> None:
    """Test whether a method obeys every law of its kind (detector, edit, decoding rule, ...).

    Parameters
    ----------
    method : class or instance
        A class is tried with each entry of its ``examples``, or with its defaults. Pass a statistic
        as a ``Case`` if some of its rows must stay in one batch, a rewrite as a ``RewriteCase`` if
        it is for other models than small convolutional classifiers, a layer as a ``LayerCase`` if
        it takes other tensors than its ``layout`` says. Edits are tried on activations
        of width 4, decoding rules on ``causal_model()``: models that a rule reads need its 32
        tokens.
    without : names of laws, optional
        Laws to skip, e.g. ``{"score_direction"}`` if a high score means one of two classes.

    Raises
    ------
    AssertionError
        If a law is broken: the message names the law, the method with its parameters, and the
        difference.
    InputError
        If the method is of no known kind, has no law of a name in ``without``, or reads columns
        that plain arrays do not bring.

    Examples
    --------
    >>> from sonde.core import Clamp
    >>> check(Clamp(low=0.0))
    """
    cases = [(one, laws_of(one)) for one in _instances(method)]
    names_of_laws = {law.name for _, laws in cases for law in laws}
    if not names_of_laws:
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        raise InputError(f"check: expected a method of a kind in {kinds}, got {method!r}.")
    if unknown := set(without) - names_of_laws:
        names = ", ".join(sorted(names_of_laws))
        raise InputError(f"check: {method!r} has no law {sorted(unknown)}. Its laws: {names}.")
    for one, laws in cases:
        for law in laws:
            if law.name not in without:
                _hold(law, one)


def _hold(law: Law, method: Any) -> None:
    try:
        law.hold(method)
    except AssertionError as error:
        promise = law.promise.rstrip(".")
        message = f"{method!r} breaks the law {law.name!r} ({promise}): {error}"
        raise AssertionError(message) from error
    except Exception as error:
        error.add_note(f"while {method!r} was held to the law {law.name!r}: {law.promise}")
        raise


def _instances(method: Any) -> Iterator[Any]:
    """Yield the cases to test, with an instrument's own statistics first."""
    if isinstance(method, type):
        instances = [method(**parameters) for parameters in getattr(method, "examples", ({},))]
    else:
        instances = [method]
    for one in instances:
        if isinstance(one, Statistic):
            yield statistic_laws.case_of(one)
            continue
        if isinstance(one, Rewrite):
            yield RewriteCase(one)
            continue
        if isinstance(one, Explainer):
            yield ExplainerCase(one)
            continue
        if isinstance(one, Layer):
            yield LayerCase(one)
            continue
        if isinstance(one, Instrument):
            instrument_laws.require_columns(one)
            read = {digest(r.statistic): r.statistic for r in one.all_reads().values()}
            for statistic in read.values():
                if not type(statistic).__module__.startswith("sonde."):
                    yield statistic_laws.case_of(statistic)
        yield one
