"""States of modules at the last token of each text, stored from one call of a model."""

import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sonde.core.errors import SiteError
from sonde.core.site import Site
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import find, find_input


class LastStates(threading.local):
    """Hooks that store the state of the last token at some sites, per thread.

    Parameters
    ----------
    root : nn.Module
    sites : mapping of str to Site
        By the name under which states are kept; the last call of a module counts.
    """

    def __init__(self, root: nn.Module, sites: Mapping[str, Site]) -> None:
        modules = ModuleNames(root).modules
        self._sites = {name: (site, modules[site.path]) for name, site in sites.items()}
        self._states: dict[str, Tensor] = {}

    def hooked(self) -> list[RemovableHandle]:
        """Register the hooks and return the handles that remove them."""
        handles: list[RemovableHandle] = []
        for name, (site, module) in self._sites.items():
            if site.port == "in":
                hook = partial(self._before, name, site)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(partial(self._after, name, site)))
        return handles

    def take(self) -> dict[str, Tensor]:
        """Return the states of the last call.

        Raises
        ------
        SiteError
            If a site did not run.
        """
        states, self._states = self._states, {}
        if missing := [str(site) for name, (site, _) in self._sites.items() if name not in states]:
            raise SiteError(f"Decode: {', '.join(missing)} did not run. Read a module that runs.")
        return states

    def _after(self, name: str, site: Site, module: nn.Module, args: Any, output: Any) -> None:
        self._keep(name, site, find(output, site.key))

    def _before(self, name: str, site: Site, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._keep(name, site, find_input(module, args, kwargs, site.key)[1])

    def _keep(self, name: str, site: Site, x: Tensor | None) -> None:
        if x is None or x.ndim != 3:
            shape = "nothing" if x is None else tuple(x.shape)
            raise SiteError(f"Decode: expected (row, token, dim) at {site}, got {shape}.")
        self._states[name] = x[:, -1].detach()
