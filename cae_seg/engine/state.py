"""State of the message hub and of hooks as plain values, so that `weights_only` loading works.

mmengine pickles the hub's `HistoryBuffer` objects and saves no hook but EMAHook: EarlyStoppingHook
would forget its patience, CheckpointHook its best score.
"""

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook, IterTimerHook, LoggerHook, RuntimeInfoHook
from mmengine.logging import HistoryBuffer, MessageHub
from torch import Tensor

logger = logging.getLogger(__name__)

HISTORY = 1_000
"""Values of one scalar that are kept; mmengine keeps a million, which costs time and space."""
_MISSING = object()
_SELF_RESTORING = "__state__"
_WITHOUT_STATE = (IterTimerHook, LoggerHook, RuntimeInfoHook)  # clocks, and what the hub keeps
_KNOWN_PACKAGES = ("mmengine", "mmseg", "mmcv", "cae_seg")


def is_plain(value: Any) -> bool:
    """Tell whether `torch.load(weights_only=True)` returns the value unchanged."""
    if isinstance(value, dict):
        return all(isinstance(k, str | int) and is_plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(is_plain(entry) for entry in value)
    return value is None or type(value) in (str, int, float, bool) or type(value) is Tensor


def to_plain(value: Any) -> Any:
    """Copy a value; NumPy scalars, arrays, deques and subclasses of dict become plain ones.

    What has no plain form is returned as it is; `is_plain` then tells.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, deque):
        return [to_plain(entry) for entry in value]
    if type(value) in (list, tuple):
        return type(value)(to_plain(entry) for entry in value)
    return value


def hub_state(hub: MessageHub) -> dict[str, Any]:
    """Return scalar histories and information of a message hub as plain values."""
    scalars = {}
    for key, buffer in hub.log_scalars.items():
        values, counts = buffer.data
        scalars[key] = {
            "values": torch.from_numpy(np.array(values[-HISTORY:], dtype=np.float64)),
            "counts": torch.from_numpy(np.array(counts[-HISTORY:], dtype=np.int64)),
        }
    info = {key: to_plain(value) for key, value in hub.runtime_info.items() if key != "cfg"}
    return {
        "scalars": scalars,
        "info": {key: value for key, value in info.items() if is_plain(value)},
        "resumed": dict(hub.state_dict()["resumed_keys"]),
    }


def restore_hub(hub: MessageHub, state: dict[str, Any]) -> None:
    """Put what `hub_state` returned back into a hub."""
    scalars = {
        key: HistoryBuffer(held["values"].tolist(), held["counts"].tolist(), HISTORY)
        for key, held in state["scalars"].items()
    }
    info = {**hub.runtime_info, **state["info"]}
    hub.load_state_dict(
        {"log_scalars": scalars, "runtime_info": info, "resumed_keys": state["resumed"]}
    )


class HookStates:
    """The attributes that hooks have changed since training began.

    Args:
        hooks: after their `before_train` has run. A hook with `state_dict` and `load_state_dict` is
            asked; of another one, the attributes with plain values are compared and kept.
    """

    def __init__(self, hooks: Iterable[Hook]) -> None:
        numbered = {f"{i}:{type(hook).__name__}": hook for i, hook in enumerate(hooks)}
        self._hooks = {k: hook for k, hook in numbered.items() if not _is_stateless(hook)}
        self._before = {name: self._attributes(hook) for name, hook in self._hooks.items()}
        self._warned: set[str] = set()
        for name, hook in self._hooks.items():
            self._warn_of_objects(name, hook)

    def state(self) -> dict[str, Any]:
        """Return the changed attributes by hook; warn once of each that cannot be saved."""
        found = {name: self._changed(name, hook) for name, hook in self._hooks.items()}
        return {name: changed for name, changed in found.items() if changed}

    def differ(self, state: dict[str, Any]) -> bool:
        """Tell whether hooks have changed since `state` was returned."""
        return not _equal(self.state(), state)

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned; a deque stays a deque of its length."""
        for name, changed in state.items():
            hook = self._hooks.get(name)
            if hook is None:
                logger.warning("hook %s: no longer in the config; its saved state is unused", name)
                continue
            for key, value in changed.items():
                _restore_attribute(hook, key, value)

    def _changed(self, name: str, hook: Hook) -> dict[str, Any]:
        before = self._before[name]
        changed = {}
        for key, value in self._attributes(hook).items():
            if _equal(value, before.get(key, _MISSING)):
                continue
            if is_plain(value):
                changed[key] = value
            else:
                self._warn(name, key)
        return changed

    def _warn_of_objects(self, name: str, hook: Hook) -> None:
        """Warn of a user's hook that keeps objects, whose changes cannot be seen from outside."""
        if type(hook).__module__.split(".")[0] in _KNOWN_PACKAGES:
            return
        for key, value in self._before[name].items():
            if not (is_plain(value) or callable(value)):
                self._warn(name, key)

    def _warn(self, name: str, key: str) -> None:
        if f"{name}.{key}" in self._warned:
            return
        self._warned.add(f"{name}.{key}")
        logger.warning(
            "hook %s: its attribute %s cannot be saved, so a resumed run may differ; "
            "give the hook state_dict() and load_state_dict()",
            name.split(":")[1],
            key,
        )

    @staticmethod
    def _attributes(hook: Hook) -> dict[str, Any]:
        if hasattr(hook, "state_dict") and hasattr(hook, "load_state_dict"):
            return {_SELF_RESTORING: to_plain(hook.state_dict())}
        return {key: to_plain(value) for key, value in vars(hook).items()}


def _is_stateless(hook: Hook) -> bool:
    return isinstance(hook, _WITHOUT_STATE) or getattr(hook, "stateless", False)


def _restore_attribute(hook: Hook, key: str, value: Any) -> None:
    if key == _SELF_RESTORING:
        hook.load_state_dict(value)
        return
    now = getattr(hook, key, None)
    setattr(hook, key, deque(value, now.maxlen) if isinstance(now, deque) else value)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one is other or one == other or (one != one and other != other)
