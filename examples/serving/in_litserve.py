"""A served model beside the endpoints of LitServe, in one server.

Run it: python in_litserve.py
"""

import os

import litserve

import sonde.serving


class Sum(litserve.LitAPI):
    """An endpoint of your own; LitServe runs it in processes of its own."""

    def setup(self, device):
        self.device = device

    def decode_request(self, request):
        return request["numbers"]

    def predict(self, numbers):
        return sum(numbers)

    def encode_response(self, total):
        return {"total": total}


def server() -> litserve.LitServer:
    """Return the server, with the served model below ``/model``."""
    made = litserve.LitServer(Sum(), accelerator="cpu", workers_per_device=1)
    model = os.environ.get("MODEL", "sonde:digits")
    made.app.mount("/model", sonde.serving.app(model, os.environ.get("PROBE")))
    return made


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    server().run(port=port, host="127.0.0.1", generate_client_file=False)
