import pytest
import torch
from torch import nn

from cae_seg.models.layers.stochastic import (
    SampleDropout2d,
    SampleDropPath,
    clear_randomness,
    set_randomness,
)


def toy() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 1), SampleDropPath(0.3), SampleDropout2d(0.4, 8))


def masks(model, **where):
    set_randomness(model, **where)
    return torch.cat([model[1].mask, model[2].mask], dim=1)


def test_masks_do_not_depend_on_how_the_batch_is_cut():
    whole = masks(toy(), seed=1, iteration=5, first_sample=0, samples=16, total=16)
    parts = [
        masks(toy(), seed=1, iteration=5, first_sample=first, samples=4, total=16)
        for first in (0, 4, 8, 12)
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("other", [{"seed": 2}, {"iteration": 6}])
def test_masks_depend_on_seed_and_iteration(other):
    where = {"seed": 1, "iteration": 5, "first_sample": 0, "samples": 64, "total": 64}
    assert not torch.equal(masks(toy(), **where), masks(toy(), **(where | other)))


def test_samples_and_modules_have_masks_of_their_own():
    model = nn.Sequential(nn.Linear(1, 1), SampleDropPath(0.5), SampleDropPath(0.5))
    set_randomness(model, seed=0, iteration=0, first_sample=0, samples=256, total=256)
    assert 0 < model[1].mask.sum() < 512
    assert not torch.equal(model[1].mask, model[2].mask)


def test_masks_keep_the_mean():
    model = toy()
    set_randomness(model, seed=3, iteration=0, first_sample=0, samples=20000, total=20000)
    for module in model[1:]:
        assert module.mask.mean().item() == pytest.approx(1, abs=0.02)
        values = module.mask.unique().tolist()
        assert values == [0, pytest.approx(1 / (1 - module.drop_prob))]


def test_forward_applies_the_mask_and_its_gradient():
    drop = SampleDropout2d(0.5, 6)
    set_randomness(
        nn.Sequential(nn.Linear(1, 1), drop),
        seed=0, iteration=0, first_sample=0, samples=4, total=4,
    )  # fmt: skip
    x = torch.ones(4, 6, 2, 2, requires_grad=True)
    y = drop(x)
    y.sum().backward()
    assert torch.equal(y.detach(), drop.mask[:, :, None, None].expand(4, 6, 2, 2))
    assert torch.equal(x.grad, y.detach())


def test_identity_in_eval_mode_and_torch_generator_without_masks():
    drop = SampleDropPath(0.5)
    x = torch.ones(64, 3)
    assert torch.equal(drop.eval()(x), x)
    drop.train()
    torch.manual_seed(0)
    first = drop(x)
    torch.manual_seed(0)
    assert torch.equal(drop(x), first)
    assert set(first.unique().tolist()) == {0, 2}


def test_stale_masks_are_refused_and_cleared():
    model = toy()
    set_randomness(model, seed=0, iteration=0, first_sample=0, samples=2, total=2)
    with pytest.raises(RuntimeError, match="set_randomness"):
        model(torch.ones(3, 3, 2, 2))
    clear_randomness(model)
    assert model(torch.ones(3, 3, 2, 2)).shape == (3, 8, 2, 2)


def test_masks_leave_the_state_dict_alone():
    model = toy()
    set_randomness(model, seed=0, iteration=0, first_sample=0, samples=2, total=2)
    assert set(model.state_dict()) == {"0.weight", "0.bias"}


def test_wrong_arguments():
    with pytest.raises(ValueError, match="drop_prob"):
        SampleDropPath(1.0)
    with pytest.raises(ValueError, match="outside"):
        set_randomness(toy(), seed=0, iteration=0, first_sample=3, samples=2, total=4)
