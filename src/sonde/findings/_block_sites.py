"""The sites of a language model's blocks."""

from sonde.core.site import Site
from sonde.tap import LiveStream
from sonde.tap.model.blocks import block_paths


def blocks_of(stream: LiveStream) -> list[Site]:
    """Return the sites like the last output over tokens: as wide, of its class or both blocks."""
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
