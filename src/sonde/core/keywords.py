"""Answers to parameter names that a method does not have, also those of other libraries.

Base classes of methods use ``checked_new`` as their ``__new__``, so that a wrong name, or a value
of another type than a parameter's, is answered before ``__init__`` runs. Functions are decorated
with ``answered``.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from sonde.core.errors import InputError, near
from sonde.core.inputs import Model
from sonde.core.ranges import listed
from sonde.core.renaming import former_names

F = TypeVar("F", bound=Callable[..., Any])

ELSEWHERE: Final[dict[str, tuple[str, ...]]] = {
    # scikit-learn
    "alpha": ("level", "penalty", "l2", "ridge", "shrinkage"),
    "bandwidth": ("sigma",),
    "C": ("penalty", "l2"),
    "contamination": ("alpha",),
    "gamma": ("sigma", "beta"),
    "leaf_size": (),
    "learning_rate": ("rate",),
    "max_depth": ("depth",),
    "max_iter": ("steps", "epochs", "passes", "max_rounds"),
    "metric": ("distance", "kernel", "kind"),
    "min_samples_leaf": ("least",),
    "n_clusters": ("k", "components", "n_codes"),
    "n_components": ("rank", "dim", "k", "components", "width"),
    "n_estimators": ("n_seeds",),
    "n_iter": ("steps", "epochs", "passes"),
    "n_jobs": ("workers", "threads"),
    "n_neighbors": ("k",),
    "nu": ("level", "alpha"),
    "pos_label": ("positive",),
    "random_state": ("seed",),
    "reg_covar": ("shrinkage", "ridge", "damp"),
    "sample_weight": ("weight", "weights"),
    "store_precision": (),
    "support_fraction": ("keep",),
    "tol": ("tolerance",),
    "verbose": ("progress",),
    "y_pred": ("scores",),
    "y_score": ("scores",),
    "y_true": ("out_of_distribution", "right"),
    # captum
    "additional_forward_args": (),
    "attribute_to_layer_input": (),
    "baselines": ("baseline",),
    "feature_mask": ("groups", "units"),
    "forward_func": (),
    "internal_batch_size": ("batch", "chunk"),
    "layer": ("site",),
    "n_samples": ("n", "m", "n_random", "n_sets"),
    "n_steps": ("steps", "ig_steps"),
    "nt_samples": ("n",),
    "perturbations_per_eval": ("batch", "chunk"),
    "sliding_window_shapes": ("window", "size"),
    "stdevs": ("noise", "sigma", "spread"),
    "strides": ("stride", "step"),
    # pyod
    "bins": ("n_bins",),
    "decision_threshold": ("threshold",),
    "dropout_rate": ("dropout",),
    "epoch_num": ("epochs",),
    "hidden_neurons": ("hidden", "width", "features"),
    "hidden_neuron_list": ("hidden", "width", "features"),
    "l2_regularizer": ("l2", "penalty", "weight_decay"),
    "lr": ("rate",),
    "n_bins": ("bins",),
    "n_histograms": ("n_bins", "bins"),
    "subset_size": ("m",),
    # torchmetrics
    "average": (),
    "ignore_index": (),
    "min_precision": ("rate", "level"),
    "min_recall": ("rate", "level"),
    "min_sensitivity": ("rate", "level"),
    "num_bins": ("n_bins", "bins"),
    "num_bootstraps": ("resamples",),
    "num_classes": ("n_classes", "classes"),
    "num_labels": ("n_classes", "classes"),
    "preds": ("scores",),
    "quantile": ("level",),
    "target": ("out_of_distribution", "right"),
    "thresholds": ("threshold", "levels"),
    "top_k": ("k", "top"),
    # transformers, peft and torch.nn.utils.prune
    "amount": ("remove",),
    "bnb_4bit_quant_type": ("levels",),
    "do_sample": ("temperature",),
    "group_size": ("group",),
    "lora_alpha": ("scale", "strength"),
    "lora_rank": ("rank",),
    "num_heads": ("heads", "n_heads"),
    "num_train_epochs": ("epochs",),
    "r": ("rank",),
    "ratio": ("keep", "remove", "merge"),
    "sparsity": ("remove",),
    "target_modules": ("layers", "sites"),
    "w_bit": ("bits",),
    "wbits": ("bits",),
}
"""Names of parameters in other libraries, with our names; the first that a method has is meant."""


IN_WORDS: Final[dict[type, str]] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a word",
}
"""Types of parameters whose values are checked, as they stand in an error."""


def answer_to(name: str, known: Collection[str]) -> str:
    """Return what a wrong name of a parameter should be, as a sentence with a leading blank.

    Parameters
    ----------
    name : str
        Name that was given.
    known : collection of str
        Names that the method has.

    Examples
    --------
    >>> answer_to("n_neighbors", ["k", "m"]), answer_to("x", ["k", "m"])
    (' The name here is k.', ' Its parameters: k, m.')
    >>> answer_to("temp", ["temperature"])
    ' Did you mean temperature? Its parameters: temperature.'
    """
    meant = next((own for own in ELSEWHERE.get(name, ()) if own in known), None)
    if meant is not None:
        return f" The name here is {meant}."
    own = f" Its parameters: {', '.join(known)}." if known else " It has no parameters."
    return near(name, known) + own


def checked_new(cls: type[Any], *args: Any, **given: Any) -> Any:
    """Return an empty object of a method's class; raise if a parameter's name or type is wrong.

    Raises
    ------
    TypeError
        With the name that is meant, or near names and all names.
    InputError
        If a model is given in place of the first parameter, or a parameter has other choices.
    """
    check_names(cls, given)
    if args and isinstance(args[0], nn.Module | Model) and not _takes_model(cls):
        raise InputError(
            f"{cls.__name__}: expected parameters, got the model "
            f"{type(getattr(args[0], 'module', args[0])).__name__}. Write "
            f"{cls.call_form.format(name=cls.__name__)}."
        )
    check_values(cls, args, given)
    return object.__new__(cls)


def check_names(cls: type[Any], given: Iterable[str]) -> None:
    """Raise if a name of a class's parameter is wrong.

    Raises
    ------
    TypeError
        With the name that is meant, or near names and all names.
    """
    names = _known(cls) if given else None
    if names is not None:
        _require_known(cls.__name__, given, names)


def check_values(cls: type[Any], args: Iterable[Any], given: Mapping[str, Any]) -> None:
    """Raise if a value is none of those that a parameter's type allows.

    Asked of parameters of numbers, yes or no, words and listed choices; other types pass.

    Raises
    ------
    InputError
        With what is allowed.
    """
    kinds = _kinds(cls)
    for name, value in {**dict(zip(_known(cls) or (), args, strict=False)), **given}.items():
        wanted = kinds.get(name)
        if wanted is None or any(_fits(value, kind) for kind in wanted):
            continue
        listed_values = [kind for kind in wanted if not isinstance(kind, type)]
        words = [word for word in listed_values if isinstance(word, str)]
        meant = near(value, words) if isinstance(value, str) else ""
        types = [IN_WORDS[kind] for kind in wanted if kind in IN_WORDS]
        choices = [*types, *([listed(listed_values)] if listed_values else [])]
        raise InputError(
            f"{cls.__name__}: expected {name} {' or '.join(choices)}, got {value!r}.{meant}"
        )


class InitSignature:
    """Descriptor: the signature of a class whose ``__new__`` is ``checked_new``."""

    def __get__(self, _: Any, owner: type[Any]) -> inspect.Signature:
        whole = inspect.signature(owner.__init__)
        return whole.replace(parameters=[*whole.parameters.values()][1:])


def answered(advice: str = "") -> Callable[[F], F]:
    """Answer calls of a function with wrong names or too many arguments.

    Parameters
    ----------
    advice : str, default=""
        What to write if there are too many positional arguments.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def calling(*args: Any, **given: Any) -> Any:
            names = [*signature.parameters]
            old = former_names(function).values()
            _require_known(function.__name__, given, (*names, *old))
            try:
                signature.bind_partial(*args)
            except TypeError as error:
                raise TypeError(f"{function.__name__}: {error}. {advice}".rstrip()) from None
            return function(*args, **given)

        return calling  # type: ignore[return-value]

    return decorate


def _require_known(owner: str, given: Iterable[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise TypeError(f"{owner}: there is no parameter {name!r}.{answer_to(name, known)}")


@functools.cache
def _known(cls: type[Any]) -> tuple[str, ...] | None:
    """Return the names that a class takes, old names last; None if it takes any name."""
    parameters = InitSignature().__get__(None, cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return (*parameters, *former_names(cls).values())


@functools.cache
def _kinds(cls: type[Any]) -> dict[str, tuple[Any, ...]]:
    """Return of each parameter the types and values that its type lists, if these can be asked."""
    try:
        hints = get_type_hints(cls.__init__)
    except (NameError, TypeError):  # a type that is imported for type checkers alone
        return {}
    return {name: kinds for name, hint in hints.items() if (kinds := _kinds_in(hint))}


def _kinds_in(hint: Any) -> tuple[Any, ...]:
    """Return the plain types and ``Literal`` values of a type; nothing if it has other parts."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if hint in IN_WORDS or hint is NoneType:
        return (hint,)
    if get_origin(hint) not in (Union, UnionType):
        return ()
    parts = [_kinds_in(part) for part in get_args(hint)]
    return tuple(kind for kinds in parts for kind in kinds) if all(parts) else ()


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a plain type, or is the listed value."""
    if not isinstance(kind, type):
        return isinstance(value, str | int | float) and value == kind
    if kind in (str, NoneType):
        return isinstance(value, kind)
    is_bool = isinstance(value, bool) or getattr(value, "dtype", None) in (bool, torch.bool)
    if kind is bool or is_bool:
        return kind is bool and is_bool
    # Numbers of NumPy and tensors of one number are numbers too.
    return hasattr(value, "__index__" if kind is int else "__float__")


@functools.cache
def _takes_model(cls: type[Any]) -> bool:
    """Return whether the first parameter of a class may be a model."""
    first = next(iter(inspect.signature(cls).parameters.values()), None)
    return first is not None and _names_module(first.annotation)


def _names_module(annotation: Any) -> bool:
    """Return whether a type, or a part of a type, may be a module; True for unresolved types."""
    if isinstance(annotation, str) or annotation in (Any, inspect.Parameter.empty):
        return True
    if parts := get_args(annotation):
        return any(_names_module(part) for part in parts if not isinstance(part, str))
    return inspect.isclass(annotation) and issubclass(annotation, nn.Module | Model)
