"""The net of the benchmark behind LitServe."""

from typing import Any

import litserve
import torch
from torch import Tensor

from benchmarks.serving_arms import MOST, answers, net


class Api(litserve.LitAPI):
    """The net; one input in a request, several in a batch.

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int) -> None:
        super().__init__(max_batch_size=MOST, batch_timeout=0.002)
        self.width = width

    def setup(self, device: str) -> None:
        """Make the net."""
        torch.set_num_threads(1)
        self.model = net(self.width)

    def decode_request(self, request):
        """Return the input; LitServe takes an annotation for the form of the body."""
        return torch.tensor(request["inputs"][0])

    def batch(self, inputs: Any) -> Tensor:
        """Return several inputs as one."""
        return torch.stack(list(inputs))

    def predict(self, x: Tensor) -> list[dict[str, Any]]:
        """Return the answers."""
        return answers(self.model, x)

    def unbatch(self, output: Any) -> Any:
        """Return the answer of each input."""
        return output

    def encode_response(self, output: Any) -> Any:
        """Return one answer as JSON."""
        return {"answers": [output]}


def serve(width: int, port: int) -> None:
    """Serve until killed."""
    server = litserve.LitServer(Api(width), accelerator="cpu")
    server.run(port=port, host="127.0.0.1", generate_client_file=False, log_level="error")
