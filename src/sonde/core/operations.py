"""A base for modes that see every operation of torch in a block."""

from torch.utils._python_dispatch import TorchDispatchMode


class OperationMode(TorchDispatchMode):
    """A ``TorchDispatchMode`` under which torch does not import its compiler, which takes 1 s."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
