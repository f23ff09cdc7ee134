import pytest
import torch

from exact_softmax import LOGITS, exactly
from sonde.core.errors import InputError, ShapeError
from sonde.detect import MSP

# pytorch-ood 0.4.0, MaxSoftmax.predict_logits on these rows in double precision
PEER_ROWS = torch.tensor(
    [
        [3.0, 1.5, -0.5, 0.0, 2.5],
        [0.1, 0.2, 0.3, 0.4, 0.5],
        [9.0, -2.0, 1.0, 0.5, -4.0],
        [-1.0, -6.0, -1.5, 2.0, 1.9],
        [0.2, 4.0, 0.1, 0.3, 0.2],
    ]
)
PEER = {
    1.0: [-0.523657464, -0.241855138, -0.999442418, -0.503738416, -0.917677886],
    2.0: [-0.377633317, -0.220482586, -0.963233304, -0.422574048, -0.625528385],
}


def _score(logits, **parameters):
    return MSP(**parameters).fit(logits, logits=logits).score(logits)


@pytest.mark.truth("softmax in 120 decimal digits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_equals_the_exact_softmax(dtype, temperature):
    want = exactly(lambda p: -max(p), LOGITS, temperature)
    got = _score(LOGITS.to(dtype), temperature=temperature)
    rel = 1e-6 if dtype == torch.float32 else 1e-14
    assert got.tolist() == pytest.approx(want, rel=rel)


@pytest.mark.truth("pytorch-ood 0.4.0")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_another_library(temperature):
    got = _score(PEER_ROWS, temperature=temperature)
    assert got.tolist() == pytest.approx(PEER[temperature], rel=1e-6)


@pytest.mark.truth("worked out by hand")
def test_known_values():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [5.0, -1.0, -1.0]])
    assert _score(logits).tolist() == pytest.approx([-0.66524096, -0.33333333, -0.99506695])
    scorer = MSP().fit(logits, logits=logits)
    assert float(scorer) == pytest.approx(-(0.66524096 + 0.33333333 + 0.99506695) / 3)


@pytest.mark.truth("softmax in 120 decimal digits")
def test_sure_rows_still_differ_in_single_precision():
    logits = torch.tensor([[gap, 0.0, 1.0] for gap in (18.0, 22.0, 26.0, 30.0)])
    assert len(set(logits.softmax(1).amax(1).tolist())) == 1
    doubt = (1.0 + _score(logits)).tolist()
    want = exactly(lambda p: 1 - max(p), logits)
    assert doubt == pytest.approx(want, rel=1e-3)


def test_a_constant_does_not_change_it():
    torch.testing.assert_close(_score(LOGITS + 7.0), _score(LOGITS), rtol=1e-5, atol=0.0)


def test_half_precision_and_one_class():
    logits = torch.tensor([[6e4, -6e4]], dtype=torch.float16)
    assert _score(logits).tolist() == [-1.0]
    assert _score(torch.tensor([[3.0], [-2.0]])).tolist() == [-1.0, -1.0]


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="MSP: expected temperature above 0"):
        MSP(temperature=0.0)
    with pytest.raises(ShapeError, match=r"MSP.score: expected classes=5 \(as fitted\), got"):
        MSP().fit(LOGITS, logits=LOGITS).score(LOGITS[:, :2])
    with pytest.raises(InputError, match="needs the column 'logits'"):
        MSP().fit(LOGITS)
