"""Count what work would do on a CUDA device, without one.

Tensors are fake (shapes, dtypes and devices without data), so that torch dispatches, casts and
differentiates as it would on a GPU, and every operation can be looked at. What a kernel's library
does inside (layout changes, split sums) is not seen: the counts are of torch's operations.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

DEVICE = torch.device("cuda", 0)
_ATEN = torch.ops.aten
# No kernel runs for these: views that some backends implement as operations, and bookkeeping.
_NO_KERNEL = frozenset(
    {
        "detach",
        "alias",
        "lift_fresh",
        "lift_fresh_copy",
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "_unsafe_view",
        "_reshape_alias",
        "is_pinned",
        "set_",
        "resize_",
        "record_stream",
        "_local_scalar_dense",
    }
)


@dataclass
class Counts:
    """What a piece of work did on the device."""

    kernels: int = 0
    bytes: int = 0  # read and written, each tensor of an operation once
    flops: int = 0  # of matrix products, convolutions and attention; a multiply-add is two
    copies: int = 0  # to the device
    blocking_copies: int = 0
    waits: int = 0  # reads from the device to the host
    peak_bytes: int = 0  # allocated above what was there before
    by_operation: Counter = field(default_factory=Counter)
    bytes_by_operation: Counter = field(default_factory=Counter)


class _Counting(TorchDispatchMode):
    """Look at each operation on its way to the fake tensors."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts
        self._allocated = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            # To the autograd engine the device is none, or it would ask the absent driver for its
            # streams; to everything else, autocast above all, it is CUDA.
            return torch.device("meta") if _in_backward() else args[0].fake_device
        if _in_backward() and kwargs.get("device") == torch.device("meta"):
            kwargs = kwargs | {"device": DEVICE}
        if func is _ATEN._local_scalar_dense.default:
            self.counts.waits += _on_device(args[0])
            return 1.0 if args[0].is_floating_point() else 1
        if func is _ATEN.index.Tensor:
            args = self._without_masks(*args)
        if func not in flop_registry:  # an operation that is made of others, in inference mode
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self._look(func, args, kwargs, out)
        return out

    def _without_masks(self, source: Tensor, places: list[Tensor | None]) -> tuple:
        """Note that the host waits for the size of what a mask picks; pretend that it picks all."""
        found = []
        for place in places:
            if place is None or place.dtype != torch.bool:
                found.append(place)
                continue
            self.counts.waits += _on_device(place)
            every = torch.empty(place.numel(), dtype=torch.int64, device=place.device)
            found += [every] * place.dim()
        return source, found

    def _look(self, func, args: tuple, kwargs: dict, out: Any) -> None:
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        self._note_memory(outputs)
        name = func._schema.name.partition("::")[2]
        if name == "_to_copy" and _in_backward() and args[0].dtype == out.dtype:
            return  # from the device that the engine sees to the one that there is
        if name in ("_to_copy", "copy_"):
            self._note_copy(name, args, kwargs, outputs)
        if not any(map(_on_device, inputs + outputs)) or _is_view(func) or name in _NO_KERNEL:
            return
        counts = self.counts
        launched = _launched(name, args)
        moved = _moved(name, args, inputs, outputs)
        counts.kernels += launched
        counts.bytes += moved
        counts.by_operation[name] += launched
        counts.bytes_by_operation[name] += moved
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            counts.flops += formula(*args, **kwargs, out_val=out)

    def _note_copy(self, name: str, args: tuple, kwargs: dict, outputs: list[Tensor]) -> None:
        source = args[1] if name == "copy_" else args[0]
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
        if _on_device(outputs[0]) and not _on_device(source):
            self.counts.copies += 1
            self.counts.blocking_copies += waits
        elif _on_device(source) and not _on_device(outputs[0]):
            self.counts.waits += 1

    def _note_memory(self, outputs: list[Tensor]) -> None:
        for tensor in filter(_on_device, outputs):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self._allocated += size
                weakref.finalize(storage, self._free, key, size)
        self.counts.peak_bytes = max(self.counts.peak_bytes, self._allocated)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._allocated -= size


class _Kernels(TorchFunctionMode):
    """Choose as torch chooses on CUDA where it asks the absent device."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _memory_efficient_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _memory_efficient_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Return the result of the fused kernel that takes a bias with a gradient."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        q, k, v = (x.to(dtype) for x in (q, k, v))
        attn_mask = attn_mask if attn_mask is None else attn_mask.to(dtype)
    bias = None
    if attn_mask is not None:
        bias = attn_mask.expand(*q.shape[:3], k.shape[2])
    want = any(x.requires_grad for x in (q, k, v)) and torch.is_grad_enabled()
    return _ATEN._scaled_dot_product_efficient_attention(
        q, k, v, bias, want, dropout_p, is_causal, scale=scale
    )[0]


@contextlib.contextmanager
def pretended_cuda() -> Iterator[None]:
    """Let fake tensors live on a CUDA device that this process need not have.

    Registers a second kind of device for the life of the process, so work that needs real tensors
    on a GPU does not belong into it.
    """
    _without_streams()
    scaler, wrapper = "torch.cuda.amp.common", "mmengine.optim.optimizer.amp_optimizer_wrapper"
    patches = [
        mock.patch(f"{scaler}.amp_definitely_not_available", return_value=False),
        mock.patch(f"{wrapper}.is_cuda_available", return_value=True),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Count the operations inside; within `pretended_cuda`."""
    counts = Counts()
    with _Kernels(), _Counting(counts):
        yield counts


@contextlib.contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """Cast as `torch.autocast("cuda", dtype)`, which refuses where there is no device."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype is not None)
    torch.set_autocast_dtype("cuda", dtype or torch.float16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


_registered = False


def _without_streams() -> None:
    """Keep the autograd engine from asking the absent CUDA device for its streams.

    It does so for the one kind of accelerator that a process has, and a registered backend comes
    before CUDA.
    """
    global _registered
    if _registered:
        return
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("absent")
    _registered = True


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _on_device(tensor: Tensor) -> bool:
    return getattr(tensor, "fake_device", tensor.device).type == "cuda"


def _is_view(func) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )


def _launched(name: str, args: tuple) -> int:
    """Return how many kernels an operation is at least."""
    if name == "convolution_backward":  # one for each gradient that is asked for
        return sum(args[-1])
    if name == "_foreach_copy_" and any(
        x.stride() != y.stride() for x, y in zip(*args[:2], strict=True)
    ):
        return len(args[0])  # torch copies one by one where layouts differ
    return 1


def _moved(name: str, args: tuple, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Return the bytes of the tensors that an operation reads and writes, each of them once."""
    if name in ("gather", "index_select"):  # reads what it returns, and the places of that
        return _size(args[2]) + _size(outputs[0]) + min(_size(args[0]), _size(outputs[0]))
    if name == "scatter_":
        return 2 * _size(args[2])
    return sum({id(x): _size(x) for x in inputs + outputs if _on_device(x)}.values())


def _size(tensor: Tensor) -> int:
    """Return the bytes of the elements that a tensor's memory holds once."""
    count = 1
    for side, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= side if stride else 1
    return count * tensor.element_size()
