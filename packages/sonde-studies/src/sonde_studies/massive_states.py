"""Massive activations: a few entries of the first token's state, which the model needs."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde_studies._help_pages import drawn_pages, language_model, mean_loss
from sonde_studies.study import Claim, Figures, Study, Tick

LARGEST, OTHERS, JUDGED, LENGTH = 4, 6, 2, 300
NATS = "nats a token of the texts"


@final
class MassiveStatesStudy(Study):
    """Entries of the first token's state after the middle block are set to 0, or to their mean."""

    name = "massive-states"
    title = "does a language model need the massive entries of its first token?"
    paper = "sun2024massive"
    fidelity = "the paper's interventions on the paper's kind of model; one block, two texts a seed"
    data = "SmolLM2-135M-Instruct and help pages of Python; other pages in each seed"
    place = "smollm2"
    claims = (
        Claim("zero", "Setting the four largest entries of the first token's state to 0 costs more "
              "than 0.5 nats.", NATS, 0.5),
        Claim("mean", "Setting them to their mean over other texts costs less than 0.1 nats.",
              f"0.1 less the {NATS}"),
    )  # fmt: skip
    null = Claim("others", "Setting four other entries to 0 costs nothing.", NATS)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Change the state of the first token in three ways, and read texts after each."""
        model, n_judged = language_model(self.place, tiny), 1 if tiny else JUDGED
        texts, layers = (
            drawn_pages(seed, n_judged, LENGTH),
            model.module.get_submodule("model.layers"),
        )
        block = list(layers.children())[len(list(layers.children())) // 2 - 1]
        source = torch.Generator().manual_seed(seed)
        tick("mean states")
        usual = _first_states(model, block, drawn_pages(1000 + seed, OTHERS, 80))

        def changed(how: str) -> float:
            def hook(_: nn.Module, __: Any, output: Any) -> Any:
                state = (output[0] if isinstance(output, tuple) else output).clone()
                first = state[0, 0]
                most = first.abs().topk(LARGEST).indices
                if how == "zero":
                    first[most] = 0.0
                elif how == "mean":
                    first[most] = usual[most]
                else:
                    rest = torch.randperm(len(first), generator=source)
                    first[rest[~torch.isin(rest, most)][:LARGEST]] = 0.0
                return (state, *output[1:]) if isinstance(output, tuple) else state

            handle = block.register_forward_hook(hook)
            try:
                return mean_loss(model, model.module, texts)
            finally:
                handle.remove()

        tick("changed states")
        plain = mean_loss(model, model.module, texts)
        return {
            "zero": changed("zero") - plain,
            "mean": 0.1 - (changed("mean") - plain),
            "others": changed("others") - plain,
            "loss of the texts": plain,
        }


def _first_states(model: Model, block: nn.Module, texts: Sequence[str]) -> Tensor:
    """Return the mean state of the first token after a block."""
    states: list[Tensor] = []
    handle = block.register_forward_hook(
        lambda _, __, out: states.append((out[0] if isinstance(out, tuple) else out)[0, 0])
    )
    for text in texts:
        mean_loss(model, model.module, [text])
    handle.remove()
    return torch.stack(states).mean(0)
