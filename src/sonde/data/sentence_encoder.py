"""A transformer with the later stages of sentence-transformers, as one module.

The stages are those of a folder's ``modules.json``: pooling over the real tokens (special ones are
among them), linear layers, layer norms, unit length. For anything else that library can put there,
such as routes by kind of input, pass a live module.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sonde.core.errors import InputError, near
from sonde.core.inputs import Model

EMBEDDING: Final = "sentence_embedding"
"""What that library calls the vector of a text."""
TRANSFORMER: Final = "model"
"""Where a sentence encoder holds its transformer."""
ROW_OF: Final = {"cls": "cls", "lasttoken": "last"}
"""The reducers that take the state which a way of pooling takes; the others take a mean."""


@final
class SentenceEncoder(nn.Module):
    """Texts to vectors: a transformer, pooling over its last states, and later stages.

    Parameters
    ----------
    model : nn.Module
        Its first output has a state for each token.
    pooling : Pooling
    stages : mapping of str to nn.Module
        What the pooled vector goes through, in this order, by name.
    """

    main_input_name = "input_ids"

    def __init__(self, model: nn.Module, pooling: "Pooling", stages: Mapping[str, nn.Module]):
        super().__init__()
        self.model, self.pooling = model, pooling
        self.config = model.config
        self.stages = tuple(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding table."""
        return cast("Any", self.model).get_input_embeddings()

    @property
    def last(self) -> str:
        """The name of the last stage, which gives the output."""
        return self.stages[-1] if self.stages else "pooling"

    @property
    def reducer(self) -> str:
        """The reducer of states that is most similar to the pooling."""
        modes = self.pooling.modes
        return ROW_OF.get(modes[0], "mean+special") if len(modes) == 1 else "mean+special"

    # A wrapper that hands on every argument: what it takes is what the transformer takes.
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Float[Tensor, "row dim"]]:
        """Return the embedding of each text, by name."""
        states = self.model(*args, **kwargs)[0]
        mask = kwargs.get("attention_mask")
        if mask is None and args:
            named = inspect.signature(self.model.forward).bind(*args, **kwargs).arguments
            mask = named.get("attention_mask")
        x = self.pooling(states, mask)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return {EMBEDDING: x}


def stored_part(module: nn.Module) -> nn.Module:
    """Return the part of a model with tensors in its folder: a transformer without stages."""
    return module.model if isinstance(module, SentenceEncoder) else module


@final
class SimilarityTo(nn.Module):
    """A sentence encoder that returns the similarity of a text to a given vector.

    A vector of a text has no number that stands for its answer; its cosine with another has.

    Parameters
    ----------
    model : SentenceEncoder
    target : Float[Tensor, "dim"]
    """

    main_input_name = "input_ids"

    def __init__(self, model: SentenceEncoder, target: Float[Tensor, "dim"]):
        super().__init__()
        self.model, self.config = model, model.config
        self.register_buffer("target", target, persistent=False)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding table."""
        return self.model.get_input_embeddings()

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, "row"]:
        """Return the cosine of each text's vector with the target."""
        x = self.model(*args, **kwargs)[EMBEDDING]
        return functional.cosine_similarity(x, cast("Tensor", self.target)[None])


def similarity_to(model: Model, text: str) -> Model:
    """Return a sentence model that outputs its cosine with a text's embedding.

    Explainers, judges and ``sonde explain`` then say which tokens make a text like this one.

    Parameters
    ----------
    model : Model
        Loaded from a folder of sentence-transformers.
    text : str
        Text whose embedding the outputs are compared with.

    Raises
    ------
    InputError
        If the model embeds no texts.
    """
    module, tokenizer = model.module, model.processor
    if not isinstance(module, SentenceEncoder) or tokenizer is None:
        raise InputError(
            f"similarity_to: expected a folder of sentence-transformers, got {model.name or 'a'} "
            f"model of class {type(module).__name__}. Only vectors of texts can be compared."
        )
    place = next(module.parameters()).device
    fed = tokenizer([text], truncation=True, return_tensors="pt")
    with torch.no_grad():
        target = module(**{name: x.to(place) for name, x in fed.items()})[EMBEDDING][0]
    new = SimilarityTo(module, target).train(module.training)
    return replace(model, module=new, reducer="auto", sites=())


@final
class Pooling(nn.Module):
    """Pool the states of a text's real tokens to one vector; several modes are concatenated.

    Parameters
    ----------
    modes : sequence of {"cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"}
        The first or the last real token; the largest value of each unit; the mean; the sum over
        the root of the number of tokens; the mean with weights 1, 2, 3 and so on.

    Examples
    --------
    >>> states = torch.tensor([[[1.0], [4.0], [9.0]]])
    >>> Pooling(["mean", "weightedmean"])(states, torch.tensor([[1, 1, 0]])).tolist()
    [[2.5, 3.0]]
    """

    def __init__(self, modes: Sequence[str]):
        super().__init__()
        for mode in modes:
            if mode not in _WAYS:
                raise InputError(
                    f"load: expected pooling modes among {', '.join(_WAYS)}, got {mode!r}."
                    + near(mode, _WAYS)
                )
        self.modes = tuple(modes)

    def forward(
        self, states: Float[Tensor, "row pos dim"], mask: Tensor | None = None
    ) -> Float[Tensor, "row dim2"]:
        """Return the pooled vectors; without a mask all tokens are real."""
        n, length, _ = states.shape
        real = torch.ones(n, length, dtype=torch.bool, device=states.device)
        if mask is not None and mask.shape == real.shape:
            real = mask.to(states.device) != 0
        wide = torch.float32 if states.dtype in (torch.float16, torch.bfloat16) else states.dtype
        return torch.cat([_WAYS[m](states.to(wide), real) for m in self.modes], 1).to(states.dtype)

    def extra_repr(self) -> str:
        """Return the pooling modes for printing."""
        return ", ".join(self.modes)


@final
class Projection(nn.Module):
    """A linear map with activation, and a residual connection if the folder has one.

    The matrices are its own, not those of a linear layer inside: they lie in a file of their own
    that only the library of the folder opens, so that methods that pack layers leave them alone.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        ``linear.weight``, and ``linear.bias`` and ``residual.weight`` where there are such.
    activation : nn.Module
    adds : bool, default=False
        Whether the input is added; through ``residual.weight`` if the sizes differ.
    """

    bias: Tensor | None
    residual: Tensor | None

    def __init__(self, tensors: Mapping[str, Tensor], activation: nn.Module, adds: bool = False):
        super().__init__()
        self.weight = nn.Parameter(tensors["linear.weight"])
        for name, stored in (("bias", "linear.bias"), ("residual", "residual.weight")):
            x = tensors.get(stored)
            self.register_parameter(name, None if x is None else nn.Parameter(x))
        self.activation, self.adds = activation, adds

    def forward(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim2"]:
        """Return the projected vectors."""
        y = self.activation(functional.linear(x, self.weight, self.bias))
        if not self.adds:
            return y
        return y + (x if self.residual is None else functional.linear(x, self.residual))


@final
class UnitLength(nn.Module):
    """Normalise vectors to unit length."""

    def forward(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return the vectors with length 1."""
        return functional.normalize(x, dim=-1)


def _first(x: Float[Tensor, "row pos dim"], real: Bool[Tensor, "row pos"]) -> Tensor:
    return x[torch.arange(len(x), device=x.device), real.int().argmax(1)]


def _last(x: Float[Tensor, "row pos dim"], real: Bool[Tensor, "row pos"]) -> Tensor:
    place = real.shape[1] - 1 - real.int().flip(1).argmax(1)
    return x[torch.arange(len(x), device=x.device), place]


def _largest(x: Float[Tensor, "row pos dim"], real: Bool[Tensor, "row pos"]) -> Tensor:
    return x.masked_fill(~real[..., None], -torch.inf).amax(1)


def _mean(x: Float[Tensor, "row pos dim"], real: Bool[Tensor, "row pos"]) -> Tensor:
    return _weighted(x, real.to(x))


def _mean_by_root(x: Float[Tensor, "row pos dim"], real: Bool[Tensor, "row pos"]) -> Tensor:
    return _mean(x, real) * real.to(x).sum(1, keepdim=True).sqrt()


def _rising_mean(x: Float[Tensor, "row pos dim"], real: Bool[Tensor, "row pos"]) -> Tensor:
    place = torch.arange(1, x.shape[1] + 1, device=x.device) - real.int().argmax(1, keepdim=True)
    return _weighted(x, real.to(x) * place)


def _weighted(x: Float[Tensor, "row pos dim"], weight: Float[Tensor, "row pos"]) -> Tensor:
    # Not a product with the weights: 0 times an infinite state of padding is not a number.
    kept = x.masked_fill(weight[..., None] == 0, 0.0)
    return torch.einsum("npd,np->nd", kept, weight) / weight.sum(1, keepdim=True).clamp(min=1e-9)


_WAYS: Final = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _rising_mean,
    "lasttoken": _last,
}
"""In the order in which that library joins the vectors if a folder gives a switch for each."""
