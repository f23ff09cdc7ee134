"""Causal tracing of facts: at which depth a model recalls what it says about a subject."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.inputs import Model
from sonde.edit import Fact
from sonde.edit._facts import FactTexts, prompts
from sonde.run.changing.fact_prompts import embedding_layer
from sonde.tap.hooks.outputs import find, replaced
from sonde.tap.hooks.session import Session

NOISE, DRAWS = 3.0, 4
"""Standard deviations of the noise on a subject's embeddings, and its draws."""
WINDOW = 0.1
"""Fraction of the blocks whose layers are restored together, on either side."""
SEED = 0


def restored_by_layer(
    model: Model, facts: Sequence[Fact], layers: Sequence[str]
) -> Float[Tensor, "layer"]:
    """Return how much of a model's own answers each layer's states at the subject bring back.

    The subject's embeddings are hidden by noise. Then the outputs of some neighbouring layers at
    the subject's last token are restored, and the rise of the probability of the answer that the
    model gives without noise is averaged over facts and draws of the noise.

    Parameters
    ----------
    model : Model
        A causal language model with its tokenizer.
    facts : sequence of Fact
        Facts whose prompts are asked.
    layers : sequence of str
        Paths of one layer of each block, from first to last.
    """
    texts, half = prompts(model, facts, ("",)), max(1, round(WINDOW * len(layers)))
    spans = _subject_tokens(model, facts, texts)
    trace = _Trace(model, texts, spans, layers)
    clean = trace.run(None)
    answer = clean.argmax(1)
    rows = torch.arange(len(answer))
    states = dict(trace.states)
    rises = torch.zeros(len(layers))
    for seed in range(DRAWS):
        trace.noise(seed)
        low = trace.run({})[rows, answer]
        for i in range(len(layers)):
            some = layers[max(0, i - half) : i + half + 1]
            rises[i] += (trace.run({n: states[n] for n in some})[rows, answer] - low).mean()
    return rises / DRAWS


def _subject_tokens(model: Model, facts: Sequence[Fact], texts: FactTexts) -> Tensor:
    """Return which tokens are of the subject, (text, pos)."""
    marks = torch.zeros_like(texts.mask)
    for i, fact in enumerate(facts):
        end = fact.prompt.rindex(fact.subject) + len(fact.subject)
        begin = end - len(fact.subject)
        offsets = model.processor(fact.prompt, return_offsets_mapping=True)["offset_mapping"]
        for j, (start, stop) in enumerate(offsets):
            marks[i, j] = stop > start and start < end and stop > begin
    return marks


class _Trace:
    """Runs the prompts with noise on the subjects and restored states at their last tokens."""

    def __init__(
        self, model: Model, texts: FactTexts, spans: Tensor, layers: Sequence[str]
    ) -> None:
        self._model, self._texts, self._spans = model, texts, spans
        self._layers = layers
        self.states: dict[str, Tensor] = {}
        self._noise: Tensor | None = None

    def noise(self, seed: int) -> None:
        """Draw the noise of the next runs."""
        table: Any = embedding_layer(self._model.module)
        weight = table.weight.detach()
        draw = torch.Generator().manual_seed(seed)
        shape = (*self._spans.shape, weight.shape[1])
        drawn = torch.randn(shape, generator=draw).to(weight)
        self._noise = drawn * NOISE * weight.float().std().to(weight) * self._spans[..., None]

    def run(self, given: dict[str, Tensor] | None) -> Float[Tensor, "text token"]:
        """Return the probabilities of the next token.

        Parameters
        ----------
        given : dict or None
            States to restore by layer, with noise on the subjects; None keeps the states and adds
            no noise.
        """
        module, texts = self._model.module, self._texts
        at = torch.arange(len(texts.ids), device=texts.ids.device), texts.subject

        def keep(path: str) -> Any:
            def hook(output: Any) -> Any:
                leaf = find(output, None)
                if leaf is None:
                    return None
                if given is None:
                    self.states[path] = leaf[at].detach()
                    return None
                return replaced(output, leaf, leaf.index_put(at, given[path].to(leaf)))

            return hook

        def hide(output: Any) -> Any:
            return output + self._noise

        named = self._layers if given is None else list(given)
        hooks: list[tuple[Any, Any]] = [(module.get_submodule(p), keep(p)) for p in named]
        if given is not None:
            hooks.append((embedding_layer(module), hide))
        with torch.no_grad(), Session(module, hooks, owner="restored_by_layer") as session:
            output = session.run((), {**texts.inputs(), "use_cache": False})
        last = texts.mask.sum(1) - 1
        return output.logits[at[0], last].float().softmax(1).cpu()
