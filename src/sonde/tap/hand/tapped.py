"""A tap's sites at each module, and the reduction of its last output."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import nn

from sonde.core.site import Site
from sonde.tap.rows.reduce import Reduction


@dataclass
class TappedSite:
    """A site, and the reduction of its last output."""

    site: Site
    name: str
    shape: Sequence[int] = ()
    reduction: Reduction | None = None
    mean: Hashable = None  # names the reduction where it is a mean over tokens
    of_encoder: bool = False  # its positions are those of the text that a decoder looks at

    def __post_init__(self) -> None:
        self.call, self.leaf = self.site.call, self.site.key
        self.any_call = not isinstance(self.call, int)


class TappedModule:
    """One module and port: its sites, and its number of calls in this forward pass.

    Attributes
    ----------
    lone : TappedSite or None
        The only site, of a module that runs once and returns a tensor.
    """

    def __init__(self, site: Site, module: nn.Module) -> None:
        self.path, self.port, self.module = site.path, site.port, module
        self.tapped_sites: list[TappedSite] = []
        self.lone: TappedSite | None = None
        self.calls = 0

    def add(self, tapped: TappedSite) -> None:
        """Add a site at this module."""
        self.tapped_sites.append(tapped)
        is_lone = len(self.tapped_sites) == 1 and tapped.call is None and tapped.leaf is None
        self.lone = tapped if is_lone else None

    def called(self) -> list[TappedSite]:
        """Count a call, and return the sites that read it."""
        call, self.calls = self.calls, self.calls + 1
        return [tapped for tapped in self.tapped_sites if tapped.any_call or tapped.call == call]
