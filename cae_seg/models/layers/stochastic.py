"""Drop path and channel dropout whose masks depend on the sample, not on the machine.

torch draws masks from one stream per process, so the same batch cut otherwise over processes,
devices or micro-batches is trained with other noise. Here the mask of a sample is a function of
(seed, iteration, module, position in the global batch). The training loop calls `set_randomness`
before each (micro-)batch; the masks are then ready as tensors, so that gradient checkpointing
recomputes with the same ones and a compiled graph reads them as plain inputs.
"""

from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

# Keeps these streams apart from those of augmentation and sample order, which share the run's seed.
_STREAM = 0x6D61736B


class _SampleMask(nn.Module):
    """Multiply by a mask per sample in train mode; the identity in eval mode.

    Args:
        drop_prob: probability of a zero; kept entries are divided by 1 - drop_prob.
        width: mask entries per sample.
    """

    def __init__(self, drop_prob: float, width: int) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1:
            raise ValueError(f"drop_prob: {drop_prob} is not in [0, 1)")
        self.drop_prob = float(drop_prob)
        self.width = width
        # No buffer: DistributedDataParallel would overwrite it with that of rank 0.
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (samples first) masked; the shape stays."""
        mask = self.mask_for(x)
        if mask is None:
            return x
        return x * mask.to(x.dtype).view(len(x), self.width, *[1] * (x.dim() - 2))

    def mask_for(self, x: Tensor) -> Tensor | None:
        """Return the mask (samples, width) that `x` would be multiplied by, if any.

        Raises:
            RuntimeError: the masks were drawn for another number of samples.
        """
        if not self.training or self.drop_prob == 0:
            return None
        mask = self._random_mask(x) if self.mask is None else self.mask
        if len(mask) != len(x):
            raise RuntimeError(
                f"masks were set for {len(mask)} samples, the batch has {len(x)}: "
                "call set_randomness before each batch"
            )
        return mask

    def _random_mask(self, x: Tensor) -> Tensor:
        keep = 1 - self.drop_prob
        return x.new_empty(len(x), self.width).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """Name the probability in the printed model."""
        return f"drop_prob={self.drop_prob:g}"


class SampleDropPath(_SampleMask):
    """Stochastic depth: zero a residual branch for whole samples.

    Input and output: (samples, …) with at least two dimensions.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__(drop_prob, width=1)


class SampleDropout2d(_SampleMask):
    """Zero whole channels of single samples, as `nn.Dropout2d` does.

    Input and output: (samples, channels, height, width).
    """

    def __init__(self, drop_prob: float, channels: int) -> None:
        super().__init__(drop_prob, width=channels)


def set_randomness(
    model: nn.Module, *, seed: int, iteration: int, first_sample: int, samples: int, total: int
) -> None:
    """Fill the masks of all stochastic modules for one (micro-)batch.

    Args:
        model: any module; its `SampleDropPath` and `SampleDropout2d` that drop anything take their
            parts of a sample's numbers in the order of `model.modules()`.
        seed: seed of the run, not negative.
        iteration: iteration of the optimiser, from 0.
        first_sample: position of the first sample of this batch in the global batch.
        samples: number of samples in this batch.
        total: samples in the global batch.
    """
    if not 0 <= first_sample <= first_sample + samples <= total:
        raise ValueError(
            f"samples {first_sample}…{first_sample + samples} are outside the batch of {total}"
        )
    modules = [module for module in _masked_modules(model) if module.drop_prob > 0]
    if not modules:
        return
    device = next(model.parameters()).device
    masks = _masks.get(model)
    if masks is None or not masks.fit(modules, samples, device):
        masks = _masks[model] = _Masks(modules, samples, device)
    # All at once: a generator, and a transfer, for each module would cost the host a millisecond.
    stream = np.random.SeedSequence((_STREAM, seed, iteration))
    drawn = np.random.Generator(np.random.Philox(stream)).random(
        (total, len(masks.keep)), dtype=np.float32
    )
    masks.fill(drawn[first_sample : first_sample + samples] < masks.keep)


class _Masks:
    """The masks of a model: parts of one tensor, which keeps its place as long as it fits.

    So a captured CUDA graph reads those of each iteration.
    """

    def __init__(self, modules: list[_SampleMask], samples: int, device: torch.device) -> None:
        self._modules, self._rates = modules, [module.drop_prob for module in modules]
        widths = [module.width for module in modules]
        self.keep = np.repeat(np.float32([1 - rate for rate in self._rates]), widths)
        self._values = torch.empty(samples, len(self.keep), device=device)
        self._parts = self._values.split(widths, dim=1)
        for module, part in zip(modules, self._parts, strict=True):
            module.mask = part

    def fit(self, modules: list[_SampleMask], samples: int, device: torch.device) -> bool:
        """Tell whether they are the masks of these modules as they are now."""
        return (
            self._modules == modules
            and self._rates == [module.drop_prob for module in modules]
            and len(self._values) == samples
            and self._values.device == device
            and all(m.mask is part for m, part in zip(modules, self._parts, strict=True))
        )

    def fill(self, kept: np.ndarray) -> None:
        """Set the masks from what is kept, (samples, columns)."""
        values = torch.from_numpy(np.where(kept, 1 / self.keep, np.float32(0)))
        if self._values.device.type == "cuda" and torch.cuda.is_available():
            values = values.pin_memory()
        self._values.copy_(values, non_blocking=True)


_masks: WeakKeyDictionary[nn.Module, _Masks] = WeakKeyDictionary()
_masked: WeakKeyDictionary[nn.Module, list[_SampleMask]] = WeakKeyDictionary()


def _masked_modules(model: nn.Module) -> list[_SampleMask]:
    """Return the modules of a model that have masks, found once, as the walk costs time."""
    if model not in _masked:
        _masked[model] = [m for m in model.modules() if isinstance(m, _SampleMask)]
    return _masked[model]


def clear_randomness(model: nn.Module) -> None:
    """Forget the masks: modules in train mode draw from torch's generator again."""
    for module in model.modules():
        if isinstance(module, _SampleMask):
            module.mask = None
