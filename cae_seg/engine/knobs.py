"""The three knobs of a run: each sets every place of a config that depends on it."""

from collections.abc import Callable, Iterator
from typing import Any

from mmengine.config import Config

from cae_seg.engine.job import Knobs
from cae_seg.errors import UserError

# Keys of a scheduler that count iterations from the start of the run, or over a part of it.
_SCHEDULE_KEYS = ("begin", "end", "T_max", "total_steps", "step_size", "milestones", "periods")
# Keys that hold the crop size, wherever they occur: crops and padding of the pipelines and the
# preprocessor, position grids of the backbone, windows of a sliding test.
_CROP_KEYS = ("crop_size", "size", "img_size")


def apply_knobs(config: Config, knobs: Knobs) -> None:
    """Set the places that depend on each knob, and note the knobs as `config.knobs`.

    The config is changed in place.

    Raises:
        UserError: the config has no such place.
    """
    if knobs.iterations is not None:
        _set_iterations(config, knobs.iterations)
    if knobs.batch_size is not None:
        config.total_batch_size = knobs.batch_size
    if knobs.crop_size is not None:
        _set_crop_size(config, knobs.crop_size)
    if changes := knobs.changes():
        config.knobs = changes


def _set_iterations(config: Config, iterations: int) -> None:
    """Set the length of the run: schedules and warm-up keep their shape, intervals are capped.

    The last value of a schedule may be reached at the last iteration or one after it: the distance
    between the end of the schedule and the end of the run stays.
    """
    loop = config.get("train_cfg") or {}
    before = loop.get("max_iters")
    if before is None:
        raise UserError(
            f"--iterations: {config.filename} has no train_cfg.max_iters; only runs that count "
            "iterations are supported"
        )

    def scaled(point: int) -> int:
        if point in (before, before + 1):
            return iterations + point - before
        return max(1, round(point * iterations / before)) if point > 0 else point

    loop.max_iters = iterations
    for scheduler in _schedulers(config):
        _replace(scheduler, _SCHEDULE_KEYS, scaled)
        if "end" in scheduler:  # a phase that is now shorter than an iteration
            scheduler.end = max(scheduler.end, scheduler.get("begin", 0) + 1)
    checkpoint = (config.get("default_hooks") or {}).get("checkpoint") or {}
    for node, key in ((loop, "val_interval"), (loop, "val_begin"), (checkpoint, "interval")):
        _replace(node, (key,), lambda interval: min(interval, iterations))


def _schedulers(config: Config) -> list[dict]:
    found = config.get("param_scheduler") or []
    return [found] if isinstance(found, dict) else found


def _replace(node: dict, keys: tuple[str, ...], function: Callable[[int], int]) -> None:
    for key in keys:
        if node.get(key) is not None:
            node[key] = _each(node[key], function)


def _each(value: Any, function: Callable[[int], int]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_each(entry, function) for entry in value)
    return function(value) if isinstance(value, int) else value


def _set_crop_size(config: Config, size: tuple[int, int]) -> None:
    """Replace the config's crop size wherever it occurs; strides of test windows keep their share.

    The scale that images are resized to stays: a smaller crop shows a smaller part of the image.
    """
    before = _crop_size(config)
    _check_patches(config, before, size)
    for node in _dicts(config):
        if _is_size(node.get("crop_size"), before) and "stride" in node:
            strides = zip(_pair(node["stride"]), before, size, strict=True)
            node["stride"] = tuple(max(1, stride * new // old) for stride, old, new in strides)
        for key in _CROP_KEYS:
            if _is_size(node.get(key), before):
                node[key] = _like(node[key], size)


def _crop_size(config: Config) -> tuple[int, int]:
    """Return the size that the training pipeline crops to, or else pads to."""
    loader = config.get("train_dataloader") or {}
    found = {_pair(node["crop_size"]) for node in _dicts(loader) if "crop_size" in node}
    if not found and (size := (config.model.get("data_preprocessor") or {}).get("size")):
        found = {_pair(size)}
    if len(found) != 1:
        sizes = " and ".join(f"{height} x {width}" for height, width in sorted(found))
        reason = f"crops to {sizes}" if found else "crops nothing"
        raise UserError(
            f"--crop-size: the training pipeline of {config.filename} {reason}; set the sizes by "
            "--options"
        )
    return found.pop()


def _check_patches(config: Config, before: tuple[int, int], size: tuple[int, int]) -> None:
    for node in _dicts(config.model):
        patch = node.get("patch_size")
        if not _is_size(node.get("img_size"), before) or not isinstance(patch, int):
            continue
        if any(length % patch for length in size):
            raise UserError(
                f"--crop-size {size[0]} {size[1]}: must be multiples of {patch}, the patch size "
                "of the backbone"
            )


def _dicts(node: Any) -> Iterator[dict]:
    """Yield all mappings of a config, the outermost first."""
    if isinstance(node, Config):
        node = node._cfg_dict
    if isinstance(node, dict):
        yield node
    for entry in node.values() if isinstance(node, dict) else node:
        if isinstance(entry, dict | list | tuple):
            yield from _dicts(entry)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _is_size(value: Any, size: tuple[int, int]) -> bool:
    return isinstance(value, int | list | tuple) and _pair(value) == size


def _like(value: Any, size: tuple[int, int]) -> Any:
    """Write a size as `value` is written: one number where that is possible, a tuple or a list."""
    if isinstance(value, int):
        return size[0] if size[0] == size[1] else size
    return type(value)(size)
