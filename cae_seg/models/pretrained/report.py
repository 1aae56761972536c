"""What became of each tensor of a checkpoint."""

import collections
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """What became of a checkpoint. Names are the backbone's, but for `left` and `dropped`."""

    source: str
    layout: str
    loaded: tuple[str, ...]  # copied as they are
    resized: tuple[str, ...]  # brought to the backbone's grid
    initialised: tuple[str, ...]  # not in the checkpoint: start values kept
    left: tuple[str, ...]  # outside the backbone's prefix and on no list
    dropped: tuple[str, ...]  # of the pretraining task, on the list
    mean: tuple[float, ...] | None = None  # of the images in pretraining, grey levels; if known
    warnings: tuple[str, ...] = ()  # mismatches that do not prevent loading

    def as_dict(self) -> dict[str, Any]:
        """Return layout, counts and the names of all tensors that were not simply copied."""
        kinds = ("loaded", "resized", "initialised", "left", "dropped")
        counts = {kind: len(getattr(self, kind)) for kind in kinds}
        names = {kind: list(getattr(self, kind)) for kind in kinds[1:]}
        return {"layout": self.layout, **counts, "names": names, "warnings": list(self.warnings)}

    def summary(self) -> str:
        """Return a few lines for people."""
        lines = [
            f"checkpoint {self.source}",
            f"  layout: {self.layout}; {len(self.loaded)} tensors loaded",
        ]
        for kind in ("resized", "initialised", "dropped", "left"):
            names = getattr(self, kind)
            if names:
                lines.append(f"  {kind}: {len(names)} ({summarise_names(names)})")
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def summarise_names(names: Iterable[str]) -> str:
    """Join names, those of one kind as one: `blocks.*.gamma_1 ×12, fpn1.* ×8, mask_token`."""
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        repeated = re.sub(r"^(blocks|layers|stages)\.[\d.]+", r"\1.*.", name)
        kinds[repeated if repeated != name else name.split(".")[0] + ".*"].append(name)
    shown = [
        members[0] if len(members) == 1 else f"{kind} ×{len(members)}"
        for kind, members in kinds.items()
    ]
    return ", ".join(shown[:8]) + (f", … {len(shown) - 8} more" if len(shown) > 8 else "")
