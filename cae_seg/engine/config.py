"""Read a config: from its file, through the checks of its options, to one that can be run."""

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from cae_seg.config_files import ZOO_PREFIX, find_config, named_batch_size, shipped_configs
from cae_seg.engine.job import Knobs
from cae_seg.engine.knobs import apply_knobs
from cae_seg.engine.option_values import check_values
from cae_seg.engine.options import check_options, merge_options, unread_keys
from cae_seg.engine.readers import OF_OLD_VERSIONS, similar_types, unknown_types
from cae_seg.errors import UserError
from cae_seg.run.logs import suppress_import_output

logger = logging.getLogger(__name__)

# Packages that configs of the zoo import or name types of, and what provides them.
PROVIDED_BY = {
    "mmpretrain": "onedl-mmpretrain (pip install 'cae-seg[zoo]')",
    "mmdet": "mmdetection with compiled mmcv ops, which are not supported here",
}


def load_config(
    name: str | Path, options: dict[str, Any] | None = None, knobs: Knobs | None = None
) -> Config:
    """Read a config and apply knobs and options to it.

    Knobs come first, so that an option for one of the places that a knob sets takes precedence.
    The modules of `custom_imports` are imported. `model.pretrained` (the published spelling) is
    moved to the backbone's `init_cfg`, `model.timm`, `model.head` and `model.frozen` are replaced
    by the backbone and heads that they name, and `total_batch_size` is filled in. Keys that nothing
    reads are logged as warnings.

    Args:
        name: a path, the stem of a shipped config, or `mmseg::FAMILY/NAME.py`.
        options: dotted keys and their values.
        knobs: length, batch size and crop size of the run, where they differ from the config.

    Raises:
        UserError: the file cannot be found or read, or an option or a knob does not fit it.
    """
    config = read_config(find_config(name))
    applied = apply_options(config, options or {}, knobs or Knobs())
    for key in unread_keys(applied):
        logger.warning("%s: %s: nothing reads this key; it has no effect", config.filename, key)
    return applied


def apply_options(config: Config, options: dict[str, Any], knobs: Knobs) -> Config:
    """Return a copy of a config that was read, checked and changed as `load_config` does.

    Raises:
        UserError: as `load_config`.
    """
    config, options = config.copy(), dict(options)
    move_pretrained(config)
    compose(config, options)
    merged = merge_options(config, options)
    import_custom_modules(merged)
    check_types(merged)
    check_options(config, options)
    check_values(config, options)
    config.total_batch_size = global_batch_size(config)
    apply_knobs(config, knobs)
    config = merge_options(config, options)
    move_pretrained(config, none_clears="model.pretrained" in options)
    return config


def read_config(path: Path) -> Config:
    """Read a config file as it is, without importing the modules that it names.

    Raises:
        UserError: it cannot be read, has no model, or is written for mmsegmentation 0.x.
    """
    try:
        config = Config.fromfile(path, import_custom_modules=False)
    except BaseException as error:  # a config is a program: it may raise anything, SystemExit too
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    if "model" not in config:
        raise UserError(f"{path}: has no model; name one of the configs in configs_local")
    for key, kinds in (("model", dict), ("default_hooks", dict), ("param_scheduler", dict | list)):
        if not isinstance(config.get(key, {}) or {}, kinds) or config.model is None:
            raise UserError(f"{path}: {key}: is of another kind; see a shipped config")
    if "train_dataloader" not in config and (old := sorted(OF_OLD_VERSIONS & set(config))):
        raise UserError(
            f"{path}: {', '.join(old)}: keys of mmsegmentation 0.x; write the config for 1.x"
        )
    return config


def import_custom_modules(config: Config) -> None:
    """Import the modules of `custom_imports` and select the config's default scope.

    Raises:
        UserError: a module cannot be imported; the message says which package provides it.
    """
    wanted = config.get("custom_imports") or {}
    modules = wanted.get("imports") or []
    for module in [modules] if isinstance(modules, str) else modules:
        try:
            with suppress_import_output():
                import_module(module)
        except ImportError as error:
            if not wanted.get("allow_failed_imports", False):
                raise UserError(_cannot_import(config, module, error)) from error
        except BaseException as error:  # a module may raise anything when it is imported
            reason = f"{module} cannot be imported ({one_line(error)})"
            raise UserError(f"{config.filename}: custom_imports: {reason}") from error
    with suppress_import_output():
        import mmseg.datasets
        import mmseg.engine
        import mmseg.models  # noqa: F401  (all three register what configs name)

        import cae_seg.registration  # noqa: F401
    init_default_scope(config.get("default_scope", "mmseg"))


def check_types(config: Config) -> None:
    """Check that all types of a config are registered.

    Raises:
        UserError: naming the first that is not, and what provides it or what was probably meant.
    """
    for key, kind in unknown_types(config):
        package = kind.split(".")[0]
        if package in PROVIDED_BY:
            raise UserError(f"{config.filename}: {key}: {kind} needs {PROVIDED_BY[package]}")
        near = ", ".join(similar_types(kind, config.get("default_scope", "mmseg")))
        hint = f"; nearest: {near}" if near else "; import its module by custom_imports"
        raise UserError(f"{config.filename}: {key}: nothing is registered as {kind}{hint}")


def move_pretrained(config: Config, *, none_clears: bool = False) -> None:
    """Move `model.pretrained=FILE` to the `init_cfg` of the backbone.

    Segmentors hand the key on to their backbone; not every backbone takes it, all have `init_cfg`.

    Args:
        config: changed in place.
        none_clears: whether `model.pretrained=None` removes the backbone's checkpoint. In a file it
            only says that the checkpoint is named elsewhere.
    """
    backbone = config.model.get("backbone")
    if not isinstance(backbone, dict) or "pretrained" not in config.model:
        return
    checkpoint = config.model.pop("pretrained")
    if checkpoint is not None:
        backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(checkpoint)}
    elif none_clears:
        backbone.init_cfg = None


def compose(config: Config, options: dict[str, Any]) -> None:
    """Replace backbone and heads as `model.timm`, `model.head` and `model.frozen` say.

    Args:
        config: changed in place.
        options: the three keys are removed from it; they take precedence over the file's.

    Raises:
        UserError: no such model or head, or a head that the backbone cannot feed.
    """
    from cae_seg.models.compose import HEADS, compose_model, take_choice

    choice = take_choice(config.model) | take_choice(options, "model.")
    head = choice.get("head")
    if isinstance(head, str) and head not in HEADS and _is_config(head):
        choice["head"] = read_config(find_config(head)).model.to_dict()
    if choice:
        import_custom_modules(config)
        config.model = ConfigDict(compose_model(config.model.to_dict(), **choice))


def _is_config(name: str) -> bool:
    """Tell whether a name is that of a config; mistyped heads are not looked for as files."""
    return name.endswith(".py") or name.startswith(ZOO_PREFIX) or name in shipped_configs()


def global_batch_size(config: Config) -> int:
    """Return the images of one iteration over all GPUs.

    The config says it as `total_batch_size` or `auto_scale_lr.base_batch_size`; the zoo's names say
    it as GPUs × images (`_8xb2-`). Without any of these it is the batch of one GPU.
    """
    scaling = config.get("auto_scale_lr") or {}
    if total := config.get("total_batch_size") or scaling.get("base_batch_size"):
        return total
    if total := named_batch_size(Path(config.filename or "").stem):
        return total
    return (config.get("train_dataloader") or {}).get("batch_size", 1)


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line, or its type where it has none."""
    message, kind = " ".join(str(error).split())[:200], type(error).__name__
    if not message or isinstance(error, Exception):
        return message or kind
    return f"{kind}: {message}"  # sys.exit(0) says "0" only


def _cannot_import(config: Config, module: str, error: ImportError) -> str:
    missing = (error.name or module).split(".")[0]
    remedy = PROVIDED_BY.get(missing, "install it, or add its folder to PYTHONPATH")
    return f"{config.filename}: custom_imports: {module} cannot be imported; needs {remedy}"
