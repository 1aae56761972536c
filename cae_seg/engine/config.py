"""Read a config file and merge options into it."""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from cae_seg.engine.validate import check_config
from cae_seg.errors import UserError
from cae_seg.run.logs import quiet_imports

with quiet_imports():
    import cae_seg.registration  # noqa: F401  (registers our parts, and mmsegmentation's)


def load_config(path: Path, options: dict[str, Any]) -> Config:
    """Read a config file and merge options into it, published spellings included.

    Raises:
        UserError: missing, not readable, or an option that does not fit.
    """
    check_config(path)
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is a program: it may raise anything
        raise UserError(f"{path}: cannot be read ({_one_line(error)})") from error
    try:
        config.merge_from_dict(options)
    except (KeyError, TypeError, AssertionError, AttributeError) as error:
        raise UserError(f"{path}: an option does not fit ({_one_line(error)})") from error
    if "model" not in config:
        raise UserError(f"{path}: has no model; name one of the configs in configs_local")
    init_default_scope(config.get("default_scope", "mmseg"))
    _move_pretrained(config)
    _set_iterations(config, options)
    return config


def _move_pretrained(config: Config) -> None:
    """Turn the published `model.pretrained=FILE` into what the backbone understands."""
    pretrained = config.model.pop("pretrained", None)
    if pretrained is not None:
        config.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(pretrained)}


def _set_iterations(config: Config, options: dict[str, Any]) -> None:
    """Let one option shorten a run: iterations are written in three places of a config."""
    asked = options.get("max_iterations", options.get("train_cfg.max_iters"))
    if asked is None or "train_cfg" not in config:
        return
    if not isinstance(asked, int) or asked < 1:
        raise UserError(f"max_iterations={asked}: must be a positive whole number")
    config.max_iterations = config.train_cfg.max_iters = asked
    for scheduler in config.param_scheduler:
        if scheduler.type == "PolyLR":
            scheduler.end = asked + 1


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
