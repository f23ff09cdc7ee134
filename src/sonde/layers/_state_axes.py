"""Axes of a site's states with features, from the classes of its modules."""

from collections.abc import Mapping

from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.layers.layer import Layer
from sonde.tap.model.features import by_class, by_classes, by_kind_of_pool
from sonde.tap.model.time_first import has_time_first


class StateAxes:
    """Axes of a site's states with features and rows, if the module's class defines them.

    Parameters
    ----------
    path : str
    modules : mapping of str to nn.Module
        Of the model before layers are put in.
    """

    def __init__(self, path: str, modules: Mapping[str, nn.Module]) -> None:
        site, parts = modules[path], path.split(".")
        around = [modules[".".join(parts[:i])] for i in range(len(parts), -1, -1)]
        self.has_time_first = any(has_time_first(module) for module in modules.values())
        self.features: dict[int, int] = {}
        self.sure = set[int]()
        for n in (3, 4, 5):
            own = None if site._modules else by_class(site, n) or by_kind_of_pool(site, n)
            spoken = (by_classes(part, n) for part in around)
            axes_told = (
                next((axes for axes in spoken if axes), set[int]()) if own is None else {own}
            )
            if own is not None:
                self.sure.add(n)
            if len(axes_told) == 1:
                self.features[n] = axes_told.pop()

    def features_of(self, x: Tensor, layer: Layer, key: str) -> int:
        """Return the features axis of states with three axes or more.

        Raises
        ------
        SiteError
            If several axes have the width of the layer, and no class tells.
        """
        dim, axis = getattr(layer, "dim", None), self.features.get(x.ndim)
        if axis is not None and (x.ndim in self.sure or dim is None or x.shape[axis] == dim):
            return axis
        wide = [i for i in range(1, x.ndim) if x.shape[i] == dim]
        if len(wide) > 1:
            raise SiteError(
                f"inserted: expected one axis of {dim} features at {key}, got states "
                f"{tuple(x.shape)}: it is not known which axis holds the features. Choose a site "
                "whose module is a layer of torch, such as a convolution or a linear layer."
            )
        return wide[0] if wide else layer.features_axis % x.ndim
