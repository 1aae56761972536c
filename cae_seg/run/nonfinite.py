"""Stop a run that has diverged, with its last good checkpoint in place."""

import math
from collections.abc import Mapping

from torch import Tensor

from cae_seg.errors import UserError
from cae_seg.models.pretrained.values import is_finite

REMEDY = "the last good checkpoint is kept; lower the learning rate"


class LossGuard:
    """Counts losses that are not finite; mixed precision skips single ones, a run does not recover
    from many.

    Args:
        patience: losses in a row, of those that are logged.
    """

    def __init__(self, patience: int = 3) -> None:
        self._patience, self._count = patience, 0

    def check(self, iteration: int, loss: float) -> bool:
        """Take note of a logged loss and return whether it is finite.

        Raises:
            UserError: it is the last that patience allows.
        """
        self._count = 0 if math.isfinite(loss) else self._count + 1
        if self._count >= self._patience:
            raise UserError(
                f"iteration {iteration}: the loss was NaN or infinite {self._count} times in a "
                f"row; {REMEDY}"
            )
        return self._count == 0


def check_finite(weights: Mapping[str, Tensor], iteration: int) -> None:
    """Check weights that are about to be saved.

    Raises:
        UserError: one of them holds NaN or Inf.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not is_finite(value):
            raise UserError(f"iteration {iteration}: {name} holds NaN or Inf; {REMEDY}")
