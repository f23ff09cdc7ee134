"""Explainers, which explain a model's answers, and judges, which test explanations."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from sonde.core.inputs import Model
from sonde.core.keywords import InitSignature, checked_new
from sonde.core.result import Result


class Explainer(ABC):
    """A method that explains a model's answers by its inputs or states.

    Subclasses are final frozen dataclasses of parameters.

    Attributes
    ----------
    paper : str
        Key in ``docs/papers.bib``.
    examples : tuple of dict
        Small parameter sets for the contract tests.
    """

    call_form: ClassVar[str] = "{name}().explain(model, inputs)"
    __new__ = checked_new
    __signature__ = InitSignature()

    paper: ClassVar[str] = ""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    @abstractmethod
    def explain(self, model: Model | nn.Module, inputs: Any, /, *_: Any, **asked: Any) -> Result:
        """Return the explanation.

        Parameters
        ----------
        model : Model or nn.Module
            Left as it was, with its hooks and the state of every random generator.
        inputs : Tensor, tuple, dict or InputBatch
            What the model is called with, examples first.
        **asked
            Always by name: ``site``, which states are looked at; ``objective``, the number that
            is explained; and what else the method needs, such as the ``corrupt`` inputs of a patch.
        """


class Judge(ABC):
    """A test of whether an explanation is faithful to the model.

    Subclasses are final frozen dataclasses of parameters.

    Attributes
    ----------
    paper : str
        Key in ``docs/papers.bib``.
    examples : tuple of dict
        Small parameter sets for the contract tests.
    """

    call_form: ClassVar[str] = "{name}().judge(model, inputs, explanation)"
    __new__ = checked_new
    __signature__ = InitSignature()

    paper: ClassVar[str] = ""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    @abstractmethod
    def judge(self, model: Any, inputs: Any, explanation: Any, /, *_: Any, **asked: Any) -> Result:
        """Return the quality of an explanation.

        Parameters
        ----------
        model : Model or nn.Module
            Left as it was. Tests that train models anew take what trains them.
        inputs : Tensor, tuple, dict or InputBatch
            The inputs that were explained.
        explanation : Result or Explainer
            What was found; a test that explains again takes the method itself.
        **asked
            As of the explainer: ``site`` and ``objective``, by name.
        """
