"""Warnings for checkpoints that load but do not match: layer scale, grid, normalisation."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

MOST_RESIZED = 4.0
"""Grids whose sides differ by more are far from published fine-tuning (BEiT at 640 pixels: 2.9)."""
_LAYER_SCALE = ("gamma_1", "gamma_2", "ls1.gamma", "ls2.gamma")


def tensor_warnings(
    tensors: Mapping[str, Tensor], model: nn.Module, initialised: Iterable[str]
) -> tuple[str, ...]:
    """Return a warning for each mismatch between a checkpoint's tensors and the backbone.

    Args:
        tensors: of the file, under the backbone's prefix.
        model: the backbone.
        initialised: the backbone's names that keep their start values.
    """
    target = model.state_dict()
    warnings = []
    scales = [target[name] for name in initialised if name.endswith(_LAYER_SCALE)]
    start = min((float(scale.abs().min()) for scale in scales), default=1.0)
    if start < 1.0:
        warnings.append(
            f"layer scale starts at {start:g} and the checkpoint has none: every residual branch "
            f"is multiplied by {start:g}; set init_values=1.0, or None for no layer scale"
        )
    for name in ("pos_embed", "absolute_pos_embed"):
        if name in tensors and name in target:
            ratio = (target[name].shape[1] / tensors[name].shape[1]) ** 0.5
            if max(ratio, 1 / ratio) > MOST_RESIZED:
                warnings.append(
                    f"the position embedding is resized {ratio:.1f}-fold a side: images or patches "
                    "were of another size in pretraining; compare img_size and patch_size"
                )
    return tuple(warnings)


def normalisation_warnings(
    expected: Sequence[float] | None, found: Sequence[float] | None
) -> tuple[str, ...]:
    """Return a warning if the config's image normalisation differs from the pretraining's.

    Args:
        expected: mean per channel in the pretraining, in grey levels; None where unknown.
        found: mean per channel of the config's `data_preprocessor`; None where it has none.
    """
    if expected is None or found is None or len(expected) != len(found):
        return ()
    if all(abs(a - b) < 1.0 for a, b in zip(expected, found, strict=True)):
        return ()
    return (
        f"images are normalised with the mean {_numbers(found)}, in the pretraining with "
        f"{_numbers(expected)}; set mean and std of data_preprocessor to those of the pretraining",
    )


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.1f}" for value in values) + ")"
