import pytest
import torch
from torch import nn

from cae_seg.models.optimizer import FastAdamW


def groups(model: nn.Module) -> list[dict]:
    return [
        {"params": [parameter], "lr": 1e-2 / (i + 1), "weight_decay": 0.05 * (i % 2)}
        for i, parameter in enumerate(model.parameters())
    ]


def train(kind: type, steps: int, found_inf: set[int] = frozenset(), **kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))
    optimizer = kind(groups(model), betas=(0.9, 0.99), **kwargs)
    x = torch.randn(8, 6)
    for step in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        if kwargs.get("fused"):
            optimizer.grad_scale = torch.tensor(1.0)
            optimizer.found_inf = torch.tensor(float(step in found_inf))
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize(
    "kwargs", [{"fused": True}, {"foreach": True}, {"fused": True, "amsgrad": True}]
)
def test_weights_and_state_equal_those_of_adamw_to_the_bit(kwargs):
    (ours, mine), (plain, theirs) = (
        train(kind, 5, found_inf={2}, **kwargs) for kind in (FastAdamW, torch.optim.AdamW)
    )
    for found, expected in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(found, expected)
        for key, value in theirs.state[expected].items():
            assert torch.equal(mine.state[found][key], value), key


def test_its_state_is_loaded_by_adamw_and_back():
    model, ours = train(FastAdamW, 3, fused=True)
    theirs = torch.optim.AdamW(groups(model), fused=True)
    theirs.load_state_dict(ours.state_dict())
    again = FastAdamW(groups(model), fused=True)
    again.load_state_dict(theirs.state_dict())
    steps = [state["step"].item() for state in again.state.values()]
    assert steps == [3.0] * 4


def test_an_overflow_skips_the_step_of_every_group():
    model, optimizer = train(FastAdamW, 1, found_inf={0}, fused=True)
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))
    for found, expected in zip(model.parameters(), start.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert all(state["step"].item() == 0 for state in optimizer.state.values())
