import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmcv.cnn import build_norm_layer
from torch import nn

from cae_seg.errors import UserError
from cae_seg.models.layers.batch_norm import AnyDeviceSyncBN


def batch(channels: int = 5) -> torch.Tensor:
    return torch.randn(5, channels, 3, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1


def layer(channels: int = 5) -> AnyDeviceSyncBN:
    norm = AnyDeviceSyncBN(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias)
    return norm


def results(norm: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * weights).sum().backward()
    found = {"y": y.detach(), "x": x.grad, "w": norm.weight.grad, "b": norm.bias.grad}
    buffers = {name: value.double() for name, value in norm.named_buffers()}
    return found | buffers


def test_one_process_equals_batch_norm():
    norm, x = layer(), batch()
    plain = nn.BatchNorm2d(5)
    plain.load_state_dict(norm.state_dict())
    ours, theirs = results(norm, x, x.cos()), results(plain, x, x.cos())
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
    torch.testing.assert_close(norm.eval()(x), plain.eval()(x), rtol=0, atol=0)


def test_few_values_per_channel_keep_an_exact_gradient():
    # Two values a channel: normalised they are ±1, whatever they were, up to eps.
    x = torch.randn(2, 64, 1, 1, generator=torch.Generator().manual_seed(1)) + 3
    norm = layer(64)
    exact = nn.BatchNorm2d(64).double()
    exact.load_state_dict(norm.state_dict())
    ours, theirs = results(norm, x, x.cos()), results(exact, x.double(), x.cos().double())
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= 2e-6 * value.norm(), name


def _rank(rank: int, folder: str, norm: AnyDeviceSyncBN, x: torch.Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # An uneven cut: the mean must weigh ranks by their samples.
    part = slice(0, 2) if rank == 0 else slice(2, 5)
    # The processes share the memory of what they are handed.
    found = results(copy.deepcopy(norm), x[part], x[part].cos())
    torch.save({k: v.clone() for k, v in found.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_cpu_ranks_equal_one_process_with_the_whole_batch(tmp_path):
    norm, x = layer(), batch()
    expected = results(copy.deepcopy(norm), x, x.cos())
    mp.start_processes(_rank, args=(str(tmp_path), norm, x), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in ("y", "x"):
        joined = torch.cat([found[name] for found in ranks])
        torch.testing.assert_close(joined, expected[name], rtol=1e-5, atol=1e-5)
    for name in ("w", "b"):
        summed = ranks[0][name] + ranks[1][name]
        torch.testing.assert_close(summed, expected[name], rtol=1e-5, atol=1e-5)
    for found in ranks:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_one_value_per_channel_says_what_to_do():
    with pytest.raises(UserError, match="images per GPU"):
        layer()(torch.ones(1, 5, 1, 1))
    assert layer().eval()(torch.ones(1, 5, 1, 1)).shape == (1, 5, 1, 1)


def test_registered_for_mmcv_under_the_published_parameter_names():
    name, norm = build_norm_layer({"type": "AnyDeviceSyncBN", "requires_grad": True}, 4)
    assert name == "bn"
    assert set(norm.state_dict()) == set(nn.SyncBatchNorm(4).state_dict())
