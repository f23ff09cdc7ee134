"""``sonde track`` of a net that learns: its page holds the information plane."""

import re

import pytest
import torch
from torch import nn

from sonde.measure import InformationPlane, Spectrum, information_plane
from sonde.run.training.callback import Recorder

SITES, STEPS = ("1", "3"), (0, 5, 10)


@pytest.mark.slow
@pytest.mark.truth("the measure on the states of the layers themselves, at each step")
def test_page_of_a_tracked_run_holds_the_plane_with_a_line_for_each_layer(run, tmp_path):
    torch.manual_seed(0)
    x = torch.cartesian_prod(*8 * [torch.tensor([-1.0, 1.0])])
    label = (x[:, :3].sum(1) > 0).long()
    net = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 2))
    both = [InformationPlane(about, n_bins=4) for about in ("input", "label")]
    recorder = Recorder([*both, Spectrum()], (x, label), tmp_path / "run.track", sites=SITES)
    optimiser = torch.optim.Adam(net.parameters(), 0.05)
    truth = {}
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            recorder.record(net, step)
            for site in SITES:
                states = net[: int(site) + 1](x).detach()
                truth[f"{site}:out", step] = [
                    float(information_plane(states, about, n_bins=4)) for about in (None, label)
                ]
        nn.functional.cross_entropy(net(x), label).backward()
        optimiser.step()
        optimiser.zero_grad()
    page = tmp_path / "track.html"
    ran = run("track", tmp_path / "run.track", "--json", "-o", page)
    assert ran.code == 0, ran.err
    plane, *_ = ran.json()["charts"]  # then those of the sampled rows
    found = {(row["site"], row["step"]): row for row in plane["data"]["values"]}
    assert found.keys() == truth.keys()
    for key, (held, told) in truth.items():
        assert (found[key]["input"], found[key]["label"]) == pytest.approx((held, told))
    section = page.read_text("utf-8").partition('id="charts"')[2].partition("</section>")[0]
    drawn = re.search(r"<svg.*?</svg>", section, re.DOTALL)
    assert drawn is not None
    lines = [d for d in re.findall(r'<path[^>]*? d="([^"]*)"', drawn[0]) if d.count("L") == 2]
    assert len(lines) == len(SITES)
