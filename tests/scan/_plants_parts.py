"""Plants in parts of a model, and in texts that a language model reads."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import torch

import sonde
from scan._plants import Plant
from scan._unnamed_nets import early, patched
from scan._unnamed_texts import shipped, source_texts
from scan._zoo import quiet
from sonde.core.inputs import Model
from sonde.report import Report

TEXTS, PIECE = 48, 144


def _as_it_is(text: str) -> str:
    return text


@cache
def of_source(words: Callable[[str], str] = _as_it_is, letters: str = "") -> Report:
    """Scan the shipped language model over texts, with the embeddings of letters exchanged."""
    own = shipped()
    module = deepcopy(own.module).requires_grad_(False)
    ids = own.processor(letters)["input_ids"] if letters else []
    module.get_parameter("model.embed_tokens.weight")[ids] = module.get_parameter(
        "model.embed_tokens.weight"
    )[ids[::-1]]
    items = [{"text": words(text)} for text in source_texts()[:TEXTS]]
    model = Model(module, own.processor, own.config, own.name, "causal")
    return sonde.scan(model, items, settings=quiet(), max_length=PIECE)


def _without_breaks(text: str) -> str:
    return text.replace("\n", " ")


@cache
def of_layers(fault: str) -> Report:
    """Scan the trained net of six layers, as it is or with a fault."""

    def change(net: torch.nn.Module) -> None:
        layers = net.get_submodule("layers")
        assert isinstance(layers, torch.nn.ModuleList)
        if fault == "exchanged":
            layers[0], layers[4] = layers[4], layers[0]
        if fault == "early":
            for i in (1, 3):
                state = early().get_submodule(f"layers.{i}").state_dict()
                layers[i].load_state_dict(state)

    return patched().scan(change)


PLANTS = (
    Plant("SND066", "warning", lambda: of_source(_without_breaks), lambda: of_source()),
    Plant("SND067", "warning", lambda: of_source(letters="et"), lambda: of_source()),
    Plant("SND068", "warning", lambda: of_layers("exchanged"), lambda: of_layers("")),
    Plant("SND070", "warning", lambda: of_layers("early"), lambda: of_layers("")),
)
