"""The blocks of a language model and its final norm and head, from a stream that reads it."""

from torch import nn

from sonde.core.inputs import InputBatch
from sonde.core.site import Site
from sonde.tap import LiveStream
from sonde.tap.model.blocks import block_paths
from sonde.tap.model.readout import Readout, head_module, readout


def blocks_of(stream: LiveStream) -> list[Site]:
    """Return the last run of blocks, or of sites of one class, read at their output over tokens."""
    kinds = [k for k in stream.kinds if "|" not in k.key and k.site.port == "out"]
    kinds = [k for k in kinds if k.reduction.axes.words == ("row", "pos", "dim")]
    if not kinds:
        return []
    last = kinds[-1].schema
    blocks = set(block_paths(stream.probe.names, stream.probe))
    same = [
        k.site
        for k in kinds
        if k.schema.dim == last.dim
        and (k.schema.module == last.module or {k.site.path, last.site.path} <= blocks)
    ]
    return [site for site in same if not isinstance(site.call, str)]


def head_of(stream: LiveStream) -> nn.Module | None:
    """Return the layer that gives the logits, or None."""
    return head_module(stream.probe)


def decoder_of(stream: LiveStream, head: nn.Module, last: Site, text: InputBatch) -> Readout | None:
    """Return what the model does between its last block and its logits, if that is what it does."""
    return readout(stream.model.module, stream.probe, head, last, text)
