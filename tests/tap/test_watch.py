import torch
from torch import Tensor, nn

from sonde.core.inputs import InputBatch
from sonde.core.site import Site
from sonde.tap.model.watch import watch
from tap_inputs import Arrays


class Twice(nn.Module):
    """Calls one layer twice and changes its second output in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.layer(self.layer(x)).relu_())


def batch() -> InputBatch:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    return next(iter(Arrays(x).batches(0, 3)))


def test_raw_tensors_by_call_and_port_before_changes_in_place() -> None:
    module, inputs = Twice().eval(), batch()
    wanted = [Site("layer", 0), Site("layer", 1), Site("layer", 1, "in"), Site("layer")]
    found = watch(module, inputs, wanted)
    x = inputs.args[0]
    with torch.no_grad():
        first = module.layer(x)
        second = module.layer(first)
    assert torch.equal(found.tensors["layer@0:out"], first)
    assert torch.equal(found.tensors["layer@1:out"], second)
    assert torch.equal(found.tensors["layer@1:in"], first)
    assert torch.equal(found.tensors["layer:out"], second)
    assert torch.equal(found.output, second.relu())
    assert not module.layer._forward_hooks


def test_flags_are_read_in_eval_mode_or_as_found() -> None:
    module, inputs = Twice().train(), batch()
    calm = [watch(module, inputs, []).output for _ in range(2)]
    assert torch.equal(*calm)
    assert module.drop.training
    torch.manual_seed(1)
    first = watch(module, inputs, [], as_found=True).output
    second = watch(module, inputs, [], as_found=True).output
    assert not torch.equal(first, second)
