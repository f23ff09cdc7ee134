"""A model of the benchmark behind LitServe."""

from typing import Any

import litserve
import torch

from benchmarks.serving_models import MOST, answering


class Api(litserve.LitAPI):
    """The model; one input in a request, several in a batch.

    Parameters
    ----------
    model : str
        A width of the net, or a folder.
    """

    def __init__(self, model: str) -> None:
        super().__init__(max_batch_size=MOST, batch_timeout=0.002)
        self.model = model

    def setup(self, device: str) -> None:
        """Load the model."""
        torch.set_num_threads(1)
        self.answers = answering(self.model)

    def decode_request(self, request):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the input; LitServe takes an annotation for the form of the body."""
        return request["inputs"][0]

    def batch(self, inputs: Any) -> list[Any]:
        """Return several inputs as one."""
        return list(inputs)

    def predict(self, x: list[Any]) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the answers."""
        return self.answers(x)

    def unbatch(self, output: Any) -> Any:
        """Return the answer of each input."""
        return output

    def encode_response(self, output: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return one answer as JSON."""
        return {"answers": [output]}


def serve(model: str, port: int) -> None:
    """Serve until killed."""
    server = litserve.LitServer(Api(model), accelerator="cpu")
    server.run(port=port, host="127.0.0.1", generate_client_file=False, log_level="error")
