"""One tower of an image-text model, for data with only images or only texts."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Final, final

from torch import nn

from sonde.core.inputs import Inputs, Model
from sonde.data.image_text import ImageTextEncoder
from sonde.data.inputs import ItemInputs

FEATURES: Final = ("get_image_features", "get_text_features")


def has_two_towers(module: nn.Module) -> bool:
    """Return whether a model reads images and texts separately, with features of each."""
    return all(callable(getattr(module, name, None)) for name in FEATURES)


def reader_of(model: Model, inputs: Inputs) -> Model:
    """Return the model for some inputs: itself, or its tower for images or texts only.

    Sites of a tower have the addresses that they have in the whole model.

    Parameters
    ----------
    model : Model
        Model with one or several towers.
    inputs : Inputs
        Inputs that the model will read.
    """
    encoder = inputs.encoder if isinstance(inputs, ItemInputs) else None
    if not isinstance(encoder, ImageTextEncoder) or not encoder.two_towers:
        return model
    if encoder.image is not None and encoder.text is not None:
        return model
    tower = ImageTower(model.module) if encoder.text is None else TextTower(model.module)
    return replace(model, module=tower, config=tower.config)


class _Tower(nn.Module, ABC):
    """A module with all parts of a model that runs one of its towers."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self._modules = whole._modules
        self._parameters, self._buffers = whole._parameters, whole._buffers
        self.training = whole.training
        self._whole: tuple[Any] = (whole,)  # in a tuple, so that it is no part of its own part

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the features of the tower."""


@final
class ImageTower(_Tower):
    """The part of a model that computes image features.

    Parameters
    ----------
    whole : nn.Module
    """

    main_input_name = "pixel_values"

    @property
    def config(self) -> Any:
        """The configuration of the tower."""
        return self._whole[0].config.vision_config

    def forward(self, pixel_values: Any) -> Any:
        """Return the features of images."""
        return self._whole[0].get_image_features(pixel_values=pixel_values)


@final
class TextTower(_Tower):
    """The part of a model that computes text features.

    Parameters
    ----------
    whole : nn.Module
    """

    main_input_name = "input_ids"

    @property
    def config(self) -> Any:
        """The configuration of the tower."""
        return self._whole[0].config.text_config

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """Return the features of texts."""
        return self._whole[0].get_text_features(input_ids=input_ids, attention_mask=attention_mask)
