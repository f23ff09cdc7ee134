"""Biases that make up for the mean change of outputs, after weights were rounded or pruned.

Not for methods that scale the inputs of layers (``AWQ``, ``SmoothQuant``) or remove channels:
``PruneChannels`` corrects biases itself.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from sonde.compress._layers import Weighted, weighted_layers
from sonde.compress.grams import LayerGrams, grams_for
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.weights import Change, Exchange, RewritePlan, as_model
from sonde.weights.change import written_type
from sonde.weights.folding import new_biases
from sonde.weights.needs import finite_examples


def correct_biases(
    plan: RewritePlan, model: Model | nn.Module, calibration: Inputs | LayerGrams
) -> RewritePlan:
    """Return a plan whose layers keep the mean of their outputs.

    If a layer's inputs have the mean ``m`` and its weight ``W`` became ``V``, the mean of its
    outputs moves by ``(V - W) m``. The bias gets ``(W - V) m``. The squared error of the outputs is
    then that of the inputs' covariance in place of their second moment, which is never larger on
    the calibration rows.

    Range        biases of linear layers and convolutions whose weight the plan changes; a layer
                 without a bias gets one if the configuration has an option for it, or if the model
                 has no configuration. A layer that no example reaches keeps its bias.
                 Figures: ``biases``, those that were changed or added;
                 ``without_bias``, layers that can have none.
    Cost         the moments of layers' inputs, one pass over the data; none if they are given.
    Assumes      inputs as the original model gives them: errors of earlier layers are not part of
                 the mean. Where most weights are removed answers can become worse, so compare with
                 ``fidelity``.
    Differs      from the paper: all layers at once, with means over data instead of means that
                 batch norms store.

    Parameters
    ----------
    plan : RewritePlan
        Plan of a method that rounds or prunes the weights of layers.
    model : Model or nn.Module
        Model that the plan was made for; it is not changed.
    calibration : Inputs or LayerGrams
        Examples, or the moments of layers' inputs over them.

    Raises
    ------
    InputError
        If the plan scales inputs of layers, or changes no weight of a layer, or more than a quarter
        of the examples are not finite.

    Examples
    --------
    >>> import sonde
    >>> from sonde.compress import RTN
    >>> from sonde.data import open_inputs
    >>> net = nn.Linear(3, 2)
    >>> with torch.no_grad():
    ...     _ = net.weight.copy_(torch.tensor([[0.3, 1.0, 0.1], [0.2, -0.9, 0.5]]))
    >>> net = nn.Sequential(net).eval()
    >>> x = open_inputs(sonde.Model(net), torch.ones(8, 3))
    >>> plan = correct_biases(RTN(bits=2).plan(net), net, x)
    >>> torch.allclose(plan.fold(net)(torch.ones(1, 3)), net(torch.ones(1, 3)), atol=1e-6)
    True

    References
    ----------
    nagel2019datafree
    """
    live = as_model(model)
    if plan.figures.get("scaled"):
        raise InputError(
            "correct_biases: expected a plan that leaves the inputs of layers as they are, got one "
            f"that scales those of {plan.figures['scaled']:.0f} layers. Use gptq or rtn."
        )
    layers = [one for one in weighted_layers("correct_biases", live, ("*",)) if _is_new(one, plan)]
    if not layers:
        raise InputError(
            "correct_biases: expected a plan that changes the weights of linear layers or "
            f"convolutions, got {plan.method or 'one'} that changes none. Use the plan as it is."
        )
    grams = _moments(live, calibration, layers)
    layers = [one for one in layers if grams.of_layers([one.name]).n]
    changes = {_bias(one): _corrected(one, plan.changes[one.weight], grams) for one in layers}
    missing = {_bias(one) for one in layers if one.module.bias is None}
    config, zeros, impossible = new_biases(live.module, missing)
    kept: dict[str, Change] = {n: x for n, x in changes.items() if n not in impossible}
    added = RewritePlan.of(live, {**zeros, **kept})
    return replace(
        plan,
        changes={**plan.changes, **added.changes},
        made_for={**plan.made_for, **added.made_for},
        ties={**plan.ties, **added.ties},
        config={**plan.config, **config},
        method=f"{plan.method}, biases corrected",
        figures={**plan.figures, "biases": len(kept), "without_bias": len(impossible)},
    )


def _moments(model: Model, given: Inputs | LayerGrams, layers: Sequence[Weighted]) -> LayerGrams:
    """Return the given moments of layers' inputs, or compute them over the finite examples."""
    owner, names = "correct_biases", tuple(one.name for one in layers)
    if not isinstance(given, LayerGrams):
        given = finite_examples(owner, "calibration", given)
    is_linear = all(one.is_linear for one in layers)
    usual = {one.name for one in weighted_layers(owner, model, None)} if is_linear else set[str]()
    return grams_for(owner, model, given, None if usual.issuperset(names) else names)


def _bias(layer: Weighted) -> str:
    return f"{layer.name}.bias"


def _is_new(layer: Weighted, plan: RewritePlan) -> bool:
    """Return whether a plan gives a layer a new weight of the same shape, and no new bias."""
    form = plan.forms.get(layer.name, {})
    return (
        layer.weight in plan.changes
        and _bias(layer) not in plan.changes
        and "shapes" not in form
        and plan.renamed(layer.name) is not None
    )


def _corrected(layer: Weighted, change: Change, grams: LayerGrams) -> Exchange:
    """Return the bias that gives a layer's outputs the mean that they had."""
    weight, bias = layer.module.weight.detach(), layer.module.bias
    gap = layer.matrix() - layer.matrix_of(change.of(weight).double())
    shift = gap.new_zeros(layer.n_out)
    for i, rows in enumerate(torch.arange(layer.n_out).chunk(layer.groups)):
        mean = grams.of_layers([layer.name], i).mean.to(gap)
        shift[rows] = gap[rows] @ mean
    new = shift if bias is None else bias.detach().double() + shift
    return Exchange(new.to(written_type(weight.dtype)))
