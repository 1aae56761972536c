"""Fill a whole segmentor from fine-tuned weights."""

from pathlib import Path
from typing import Any

from torch import nn

from cae_seg.errors import UserError
from cae_seg.models.pretrained.reading import load_checkpoint_file
from cae_seg.models.pretrained.values import check_values


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill the whole segmentor from a fine-tuned checkpoint, ours or a published one.

    Raises:
        UserError: it cannot be read, or is of another architecture.
    """
    contents = load_checkpoint_file(path)
    state = contents.get("state_dict", contents)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    check_values(state, model.state_dict(), path)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: does not fit the config's model ({_misfit(state, model)}); "
            "take the config these weights were trained with"
        ) from error


def _misfit(state: dict[str, Any], model: nn.Module) -> str:
    """Say in a few words what of a state dict does not fit."""
    own = model.state_dict()
    for name, value in own.items():
        if name not in state:
            return f"{name} is missing"
        if getattr(state[name], "shape", None) != value.shape:
            return f"{name} is {tuple(getattr(state[name], 'shape', ()))}, not {tuple(value.shape)}"
    return f"{next((name for name in state if name not in own), 'something')} has no place"
