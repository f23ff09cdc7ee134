"""The cost of a request is measured in three arms and printed beside the plain server."""

import pytest

pytest.importorskip("starlette")
pytest.importorskip("transformers")

from benchmarks.serving_requests import ARMS, main, printed


def test_ratios_are_those_of_each_round() -> None:
    times = {ARMS[0]: [(1.0, 0.1), (4.0, 0.1)], ARMS[1]: [(2.0, 0.3), (4.0, 0.5)]}
    line = printed(times).splitlines()[-1]
    assert line == "| sonde serve | 3.00 ms | 0.40 ms | 0.75 (0.50 to 1.00) |"


@pytest.mark.slow
def test_three_arms_answer_and_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--requests", "16", "--rounds", "1", "--clients", "4"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(ARMS)[1:]
