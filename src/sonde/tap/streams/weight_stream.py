"""The parameters of a model as a stream of rows, which needs no data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import SiteError
from sonde.core.hashing import bytes_key
from sonde.core.inputs import Model
from sonde.core.site import WEIGHT, Reducer, Site
from sonde.core.stream import Stream
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.model.fingerprint import fingerprint
from sonde.tap.model.sites import Pattern, places_of, port_of
from sonde.tap.model.structure import structure

WHOLE = Site("")


def weight_stream(
    model: Model | nn.Module, sites: Pattern | Sequence[Pattern], *, seed: int = 0
) -> "WeightStream":
    """Return the parameters named by sites of port ``weight``, each once, as a stream.

    A row holds the weights of one output: of a matrix (output, input) one line, of a kernel the
    weights of one output channel, of a table one entry. A vector is one row. Rows of the same
    number are one example, so the weights of two models can be compared row by row.

    Parameters
    ----------
    model : Model or nn.Module
        Model whose parameters are read.
    sites : pattern, Site, or several
        ``layers.*.mlp.down_proj:weight``; another parameter of the module by its name after a dot,
        ``self_attn:weight.in_proj_weight``.
    seed : int, default=0
        Key of the hash of rows.

    Raises
    ------
    SiteError
        If a site has another port, or its module no such parameter of floating-point numbers.

    Examples
    --------
    >>> stream = weight_stream(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), "0:weight")
    >>> next(iter(stream)).rows["0:weight"].shape
    torch.Size([4, 3])
    """
    module = model.module if isinstance(model, Model) else model
    patterns = [sites] if isinstance(sites, str | Site) else list(sites)
    names, rows, schema = ModuleNames(module), dict[str, Tensor](), list[SiteSchema]()
    if other := [str(pattern) for pattern in patterns if port_of(pattern) != WEIGHT]:
        raise SiteError(
            f"weight_stream: expected sites of port weight, got {', '.join(other)}, whose rows "
            "are examples. Read weights in a separate stream, without data."
        )
    site_of = {str(s): s for pattern in patterns for s in _having(places_of(pattern, names), names)}
    for key, site in site_of.items():
        part = names.modules[site.path]
        rows[key] = matrix_of(part, site)
        dtype = str(rows[key].dtype).removeprefix("torch.")
        kind = type(part).__name__
        schema.append(SiteSchema(key, site, Reducer("flat"), rows[key].shape[1], dtype, kind))
    return WeightStream(module, rows, tuple(schema), seed)


@dataclass(frozen=True, eq=False)
class WeightStream(Stream):
    """Parameters as rows; made by ``weight_stream``.

    Parameters
    ----------
    module : Module
        Module that has the parameters.
    rows : dict[str, torch.Tensor]
        Rows of each site, by name.
    sites : tuple[SiteSchema, ...]
        Description of each site.
    seed : int, default=0
        Key of the hash of rows.
    """

    module: nn.Module
    rows: dict[str, Tensor]
    sites: tuple[SiteSchema, ...]
    seed: int = 0

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        """One kind of rows for each parameter."""
        return self.sites

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The key of each row, its index."""
        return [bytes_key(f"row {i}".encode()) for i in range(max(map(len, self.rows.values())))]

    @property
    def grouped(self) -> bool:
        """False: rows are not grouped."""
        return False

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the rows with these indices, of every parameter that has them."""
        rows = {key: x[start:stop].detach().clone() for key, x in self.rows.items()}
        n, keys = stop - start, self.group_keys[start:stop]
        yield Batch(
            rows=rows,
            ids=[f"row {i}" for i in range(start, stop)],
            keys=keys,
            order=torch.arange(start, stop),
            occurrence=torch.zeros(n, dtype=torch.int64),
            example={key: torch.arange(len(x)) for key, x in rows.items()},
            position={key: torch.zeros(len(x), dtype=torch.int64) for key, x in rows.items()},
            group_keys=keys,
            label=torch.full((n,), -1),
            seed=self.seed,
        )

    def identity(self) -> dict[str, Any]:
        """Return the identity of the model and its parameters as JSON."""
        return {
            "model": fingerprint(self.module),
            "structure": structure(self.module),
            "sites": list(self.rows),
            "data": None,
            "seed": self.seed,
        }


def _having(sites: list[Site], names: ModuleNames) -> list[Site]:
    """Return the sites whose modules have the parameter, or the first site if none has it."""
    own = [s for s in sites if _is_usable(getattr(names.modules[s.path], s.key or WEIGHT, None))]
    return own or sites[:1]


def _is_usable(x: Any) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 0


def matrix_of(module: nn.Module, site: Site = WHOLE) -> Float[Tensor, "row dim"]:
    """Return a parameter as a view with one row per output."""
    name = site.key or WEIGHT
    x = getattr(module, name, None)
    if not _is_usable(x):
        names = [n for n, p in module.named_parameters() if p.is_floating_point()]
        raise SiteError(
            f"Site: expected a parameter {name!r} of floating-point numbers at {site.path!r} "
            f"({type(module).__name__}), got {_kind(x)}. Parameters below this module: "
            f"{', '.join(names[:8]) or 'none'}."
        )
    if x.ndim < 2:
        return x.reshape(1, -1)
    is_transposed = type(module).__name__ == "Conv1D" or _swaps_channels(module)
    return (x.transpose(0, 1) if is_transposed else x).flatten(1)


def _swaps_channels(module: nn.Module) -> bool:
    """Return whether a kernel's second axis holds its outputs."""
    return isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)


def _kind(x: Any) -> str:
    return f"one of {x.dtype}" if isinstance(x, Tensor) else "none"
