"""Choose each token's expert before the model runs, from the preceding tokens."""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.compress.extract_experts import SlicedModel
from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs
from sonde.engine.steps import Descent, seeded, shuffled
from sonde.tap.model.token_table import find_token_table
from sonde.tap.rows.padding import right_padded

NONE = -100
"""Label of a token that has no next token, as ``cross_entropy`` leaves it out."""


@final
class PreGate(nn.Module):
    """A small causal network that chooses each token's expert for all layers.

    Since it stands outside of the model, experts are known before a forward: requests can be
    grouped by them (``group_requests``), and weights can be loaded ahead.

    Parameters
    ----------
    embedding : Float[Tensor, "token dim"]
        Embedding of the model's tokens; it is not trained.
    n_experts : int
        Number of experts.
    width : int, default=32
        Number of features of the recurrent state.

    References
    ----------
    cai2024readme
    """

    paper: ClassVar[str] = "cai2024readme"
    embedding: Tensor

    def __init__(
        self, embedding: Float[Tensor, "token dim"], n_experts: int, width: int = 32
    ) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding.detach().clone())
        self.past = nn.GRU(embedding.shape[1], width, batch_first=True)
        self.line = nn.Linear(width, n_experts)

    def forward(self, ids: Int[Tensor, "row token"]) -> Float[Tensor, "row token expert"]:
        """Return the score of each expert at each token, from the tokens up to it."""
        return self.line(self.past(self.embedding[ids])[0])

    def experts(self, ids: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
        """Return the best expert of each token."""
        with torch.no_grad():
            return self(ids).argmax(-1)

    @staticmethod
    def fit(
        model: SlicedModel,
        inputs: Inputs,
        *,
        width: int = 32,
        epochs: int = 10,
        rate: float = 3e-3,
        seed: int = 0,
    ) -> "PreGate":
        """Return a gate trained to predict the expert with the lowest loss at each token.

        Parameters
        ----------
        model : SlicedModel
            Cut from a causal language model that takes ``input_ids``.
        inputs : Inputs
            Texts of all domains.
        width, epochs, rate, seed
            Of the training by Adam.

        Raises
        ------
        InputError
            If the inputs are no token ids.
        """
        batches = [right_padded(batch) for batch in inputs.batches(0, len(inputs))]
        labelled = [_labelled(model, batch) for batch in batches]
        table = _table(model, batches[0])
        with seeded(seed) as draw:
            gate = PreGate(table, len(model.names), width)
            descent = Descent("PreGate.fit", gate.parameters(), rate)

            def loss(i: int) -> Tensor:
                ids, best = labelled[i]
                return cross_entropy(gate(ids).flatten(0, 1), best.flatten(), ignore_index=NONE)

            descent.run(loss, shuffled(len(labelled), epochs, draw))
        return gate.eval()


def _table(model: SlicedModel, batch: InputBatch) -> Float[Tensor, "token dim"]:
    """Return the weights of the token embedding table."""
    ids: Any = batch.kwargs["input_ids"]
    with model.routed(torch.zeros(len(ids), dtype=torch.int64)) as routed:
        table = find_token_table(routed, (), batch.kwargs)
    weight = None if table is None else getattr(table.module, "weight", None)
    if not isinstance(weight, Tensor):
        raise InputError(
            "PreGate.fit: expected a model with an embedding that reads the token ids, found "
            "none. Use a causal language model of transformers."
        )
    return weight


@torch.no_grad()
def _labelled(
    model: SlicedModel, batch: InputBatch
) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row token"]]:
    """Return token ids, and the expert with the lowest loss on the next token."""
    ids: Any = batch.kwargs.get("input_ids")
    if ids is None:
        raise InputError("PreGate.fit: expected inputs with input_ids. Pass texts or token ids.")
    losses: list[Tensor] = []
    for e in range(len(model.names)):
        with model.routed(torch.full((len(ids),), e)) as routed:
            logits: Tensor = routed(**batch.kwargs).logits
        losses.append(cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none"))
    best = torch.stack(losses).argmin(0)
    if batch.mask is not None:
        best = best.masked_fill(~batch.mask[:, 1:], NONE)
    return ids, nn.functional.pad(best, (0, 1), value=NONE)
