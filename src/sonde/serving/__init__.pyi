from sonde.serving.application import app as app
from sonde.serving.limits import Limits as Limits

__all__: list[str]
