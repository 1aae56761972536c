"""A backbone that is not trained, and what several models over the same one share."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from cae_seg.models.pretrained.report import Report


@MODELS.register_module()
class Frozen(BaseModule):
    """Any backbone in eval mode, without gradients: neck and heads alone are trained.

    Args:
        backbone: config of the backbone.
        init_cfg: of the backbone, where its own config has none.

    Attributes:
        maps: the maps that are shared with other models; None where nothing is.
    """

    def __init__(self, backbone: Mapping[str, Any], init_cfg: dict | None = None) -> None:
        super().__init__()
        self._config = {"init_cfg": init_cfg, **backbone} if init_cfg else {**backbone}
        self.body = MODELS.build({**self._config})
        self.body.requires_grad_(False)
        self.maps: SharedMaps | None = None

    @property
    def pretrained_report(self) -> Report | None:
        """What the backbone took from its checkpoint."""
        return getattr(self.body, "pretrained_report", None)

    def train(self, mode: bool = True) -> "Frozen":
        """Set the mode of everything but the backbone, which stays in eval mode."""
        super().train(mode)
        self.body.eval()
        return self

    @property
    def taps(self) -> tuple[int, ...] | None:
        """Which of its features the maps are; None where the backbone gives no others.

        Taps that count from the end or stand in no order are like that too.
        """
        taps = tuple(self.body.out_indices) if hasattr(self.body, "forward_taps") else ()
        return taps if taps and taps[0] >= 0 and list(taps) == sorted(taps) else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the backbone's maps, detached."""
        return self.compute(x) if self.maps is None else self.maps.of(x, self)

    def compute(self, x: Tensor, taps: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Return the backbone's own maps, or those of `taps`, in one pass and detached."""
        with torch.no_grad():
            return tuple(self.body(x) if taps is None else self.body.forward_taps(x, taps))

    def share(self, other: "Frozen") -> bool:
        """Use another one's weights, and the maps that either has computed.

        The two may have different taps, where the backbone gives any.

        Args:
            other: on the same device.

        Returns:
            Whether it is the same backbone, to the bit; nothing is shared otherwise.
        """
        mine, theirs = (frozen.body.state_dict() for frozen in (self, other))
        if self._but_for_taps() != other._but_for_taps() or mine.keys() != theirs.keys():
            return False
        if not all(torch.equal(mine[name], theirs[name]) for name in mine):
            return False
        pairs = zip(_tensors(self.body), _tensors(other.body), strict=True)
        for own, shared in pairs:
            own.data = shared.data
        self.maps = other.maps = other.maps or SharedMaps()
        self.maps.taps.update(self.taps or (), other.taps or ())
        return True

    def _but_for_taps(self) -> dict[str, Any]:
        drop = () if self.taps is None else ("out_indices",)
        return {key: value for key, value in self._config.items() if key not in drop}


class SharedMaps:
    """The maps of a backbone's latest inputs, for several models over the same one.

    An input is recognised by its values, and each model gets a copy of the maps, which its head
    may change in place: every model has what it would have computed alone.

    Attributes:
        taps: those of all models; empty where the backbone always gives the same maps.
    """

    def __init__(self) -> None:
        self.taps: set[int] = set()
        self._kept: list[tuple[Tensor, Any, dict[int, Tensor]]] = []
        self._next = 0

    def forget(self) -> None:
        """Drop everything: other inputs follow."""
        self._kept, self._next = [], 0

    def of(self, x: Tensor, backbone: Frozen) -> tuple[Tensor, ...]:
        """Return a model's maps of `x`, computed by its backbone unless they are kept."""
        mode, count = _mode(x), len(self._kept)
        wanted = backbone.taps or ()
        for number in range(count):
            place = (self._next + number) % count  # models ask in one order
            known, its_mode, maps = self._kept[place]
            if mode == its_mode and maps.keys() >= set(wanted) and torch.equal(x, known):
                self._next = place + 1
                break
        else:
            taps = sorted(self.taps)
            found = backbone.compute(x, taps or None)
            maps = dict(zip(taps or range(len(found)), found, strict=True))
            self._kept.append((x, mode, maps))
            self._next = 0
        return tuple(maps[tap].clone() for tap in wanted or maps)


def _mode(x: Tensor) -> Any:
    """Return what else the maps depend on: the arithmetic, and the layout in memory."""
    kind = x.device.type
    casts = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    return x.dtype, x.shape, x.stride(), casts, torch.is_inference_mode_enabled()


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
