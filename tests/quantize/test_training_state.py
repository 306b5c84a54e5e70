"""The state of a training run: what is written comes back, on the device where the optimizer wants it."""

import pytest
import torch
from f2i_quantize.train.training_state import MovingAverage, Progress, load_state, save_state


def trained(**options):
    """Two weights after three steps of AdamW, as (average, optimizer)."""
    torch.manual_seed(0)
    weights = {"unet/a": torch.nn.Parameter(torch.randn(3)), "unet/b": torch.nn.Parameter(torch.randn(2, 2))}
    average, optimizer = MovingAverage(weights, 0.9), torch.optim.AdamW(list(weights.values()), lr=0.1, **options)
    for step in range(3):
        sum(p.square().sum() for p in weights.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(step + 1)
    return average, optimizer


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_a_resumed_step_is_the_one_that_would_have_been(tmp_path, options):
    average, optimizer = trained(**options)
    save_state(tmp_path / "state", average, optimizer, Progress(step=3), {"lr": 0.1})
    weights = {name: torch.nn.Parameter(torch.zeros_like(p)) for name, p in average.weights.items()}
    again = torch.optim.AdamW(list(weights.values()), lr=0.1, **options)
    assert load_state(tmp_path / "state", MovingAverage(weights, 0.9), again, {"lr": 0.1}).step == 3
    for one, found in ((optimizer, average.weights), (again, weights)):
        sum(p.square().sum() for p in found.values()).backward()
        one.step()
    assert all(torch.equal(p, weights[name]) for name, p in average.weights.items())


@pytest.mark.parametrize(("options", "device"), [({"fused": True}, "meta"), ({"capturable": True}, "meta"), ({}, "cpu")])
def test_the_step_lies_where_the_optimizer_looks_for_it(tmp_path, options, device):
    """Weights on another device than the CPU: a fused AdamW raises where its step is not beside them."""
    average, optimizer = trained()
    save_state(tmp_path / "state", average, optimizer, Progress(step=3), {})
    weights = {name: torch.nn.Parameter(torch.zeros_like(p, device="meta")) for name, p in average.weights.items()}
    elsewhere = torch.optim.AdamW(list(weights.values()), lr=0.1, **options)
    load_state(tmp_path / "state", MovingAverage(weights, 0.9), elsewhere, {})
    for p in weights.values():
        assert {key: value.device.type for key, value in elsewhere.state[p].items()} == {
            "step": device,
            "exp_avg": "meta",
            "exp_avg_sq": "meta",
        }
