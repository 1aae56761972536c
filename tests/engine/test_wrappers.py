"""Steps of the optimiser without a GPU: mixed precision by CPU autocast, DDP over gloo."""

import copy
from pathlib import Path

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import Tensor, nn

from cae_seg.engine.batch import BatchSplit
from cae_seg.engine.precision import wrap_optimizer
from cae_seg.engine.wrappers import MicroBatchDDP, OrderedAverage, ddp_options

SGD = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}}


class Model(BaseModel):
    """A regression with a layer that receives no gradient and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
        self.unused = nn.Linear(8, 8)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.dtypes: set[torch.dtype] = set()

    def forward(
        self, inputs: Tensor, data_samples: Tensor, mode: str = "loss"
    ) -> dict[str, Tensor]:
        """Return the loss."""
        hidden = self.layers(inputs)
        self.dtypes.add(hidden.dtype)
        return {"loss": (self.frozen(hidden).float() - data_samples).square().mean()}


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8, 8, generator=generator)
    return {"inputs": inputs, "data_samples": inputs.sum(1, keepdim=True)}


def train(
    wrapped: nn.Module, optimiser: OptimWrapper, split: BatchSplit, rank: int = 0
) -> dict[str, Tensor | float]:
    """Do three steps; return what the last one reports."""
    wrapped.set_batch(split, rank, seed=0)
    wrapped.wants_norm = True
    own = slice(rank * split.batch_per_rank, (rank + 1) * split.batch_per_rank)
    data = {key: values[own] for key, values in batch().items()}
    reported = [wrapped.train_step(data, optimiser) for _ in range(3)]
    return reported[-1]


def whole() -> tuple[nn.Module, dict[str, Tensor | float]]:
    """Train in single precision, in one process and one pass."""
    model = Model()
    optimiser = build_optim_wrapper(model, copy.deepcopy(SGD))
    return model, train(OrderedAverage(model), optimiser, BatchSplit(8, 1, 8))


@pytest.mark.parametrize("scaled", [False, True])
def test_mixed_precision_trains_close_to_single_precision(scaled, monkeypatch):
    # The wrapper refuses to be made on the CPU, where its autocast and torch's scaler work.
    monkeypatch.setattr(amp, "is_cuda_available", lambda: True)
    model = Model()
    config = wrap_optimizer(copy.deepcopy(SGD), "bf16")
    config["accumulative_counts"] = 2
    optimiser = build_optim_wrapper(model, config)
    if scaled:
        optimiser.loss_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    assert type(optimiser) is amp.AmpOptimWrapper
    optimiser.initialize_count_status(model, 0, 6)
    reported = train(OrderedAverage(model), optimiser, BatchSplit(8, 1, 4))
    expected, losses = whole()
    assert model.dtypes == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert float(reported["loss"]) == pytest.approx(float(losses["loss"]), rel=3e-2)
    assert reported["grad_norm"] == pytest.approx(losses["grad_norm"], rel=3e-2)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=3e-2, atol=3e-3)


# Wrapper and passes per iteration.
WRAPPED = {
    "ddp": (MicroBatchDDP, 1),
    "ddp_two_passes": (MicroBatchDDP, 2),
    "ordered_two_passes": (OrderedAverage, 2),
}


def test_ddp_sends_gradients_in_place_and_looks_at_a_graph_once():
    once, each = ddp_options(None, accumulation=1), ddp_options(None, accumulation=2)
    assert once["gradient_as_bucket_view"]
    assert each["gradient_as_bucket_view"]
    assert (once["static_graph"], once["find_unused_parameters"]) == (True, False)
    assert (each["static_graph"], each["find_unused_parameters"]) == (False, True)
    # What a config says: layers that are left out at random; all parameters take part.
    assert ddp_options(True, accumulation=1) == each
    assert not ddp_options(False, accumulation=2)["find_unused_parameters"]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name, (kind, passes) in WRAPPED.items():
        model = Model()
        options = ddp_options(None, passes) if kind is MicroBatchDDP else {}
        wrapped = kind(model, **options)
        config = {**copy.deepcopy(SGD), "accumulative_counts": passes}
        optimiser = build_optim_wrapper(model, config)
        optimiser.initialize_count_status(wrapped, 0, 3 * passes)
        train(wrapped, optimiser, BatchSplit(8, 2, 4 // passes), rank)
        torch.save(model.state_dict(), f"{folder}/{name}_{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_train_what_one_process_does(tmp_path: Path):
    """Both wrappers, in one pass and in two, with parameters that receive no gradient."""
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    expected = whole()[0].state_dict()
    for wrapped in WRAPPED:
        first, second = (
            torch.load(tmp_path / f"{wrapped}_{rank}.pt", weights_only=True) for rank in range(2)
        )
        for name, value in expected.items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)
