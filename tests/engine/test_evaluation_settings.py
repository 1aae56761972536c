"""What evaluations are given: number formats, and workers that outlive one of them."""

import pytest
import torch

from cae_seg.engine.precision import allow_tf32, evaluating
from cae_seg.engine.workers import configure_workers


def settings() -> tuple[bool, bool]:
    """Whether products and convolutions on CUDA may round to TF32."""
    products = torch.get_float32_matmul_precision() != "highest"
    return products, torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def _restore():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_fp32_rounds_nothing_and_tf32_both_products_and_convolutions():
    allow_tf32(False)
    with evaluating("fp32", "cuda"):
        assert settings() == (False, False)
    with evaluating("tf32", "cuda"):
        assert settings() == (True, True)
    assert settings() == (False, False)
    with evaluating("tf32", "cpu"):  # which has no TF32
        assert settings() == (False, False)


def test_half_precision_is_that_of_products():
    x, weight = torch.randn(2, 8), torch.randn(4, 8)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with evaluating(precision, "cpu"):
            assert torch.nn.functional.linear(x, weight).dtype == dtype


@pytest.mark.parametrize(("kind", "pinned"), [("cpu", False), ("cuda", True)])
def test_workers_are_kept_and_their_batches_pinned_for_a_gpu(kind, pinned):
    config = {"num_workers": 4, "persistent_workers": False, "prefetch_factor": 4}
    loader = configure_workers(dict(config), 2, torch.device(kind))
    assert loader == {
        "num_workers": 2,
        "persistent_workers": True,
        "prefetch_factor": 4,
        "pin_memory": pinned,
        "collate_fn": {"type": "whole_batch"},
    }
    own = {**config, "collate_fn": {"type": "default_collate"}}
    alone = configure_workers(dict(own), 0, torch.device(kind))
    assert alone == {
        "num_workers": 0,
        "persistent_workers": False,
        "pin_memory": pinned,
        "collate_fn": {"type": "default_collate"},
    }
