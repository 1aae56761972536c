"""Checkpoints of any known pretraining → the backbone's state dict, and a report of what happened.

`convert` is a pure function that maps names and sizes. A layout is told by the prefix under which
the patch embedding lies, never by the order of keys. What a checkpoint holds beyond the backbone
stands on a list here; a key inside the backbone's prefix that is on no list is an error, and so is
a backbone left unfilled.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor
from torch.nn import functional as F

from cae_seg.errors import UserError
from cae_seg.models.pretrained.reading import load_checkpoint_file

if TYPE_CHECKING:
    from cae_seg.models.backbones.cae import CAE

Tensors = dict[str, Tensor]

# Where a file keeps its tensors, the likeliest first. The teacher is what DINO and iBOT evaluate.
CONTAINERS = ("state_dict", "model", "module", "teacher", "student")
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
LANDMARK = "patch_embed.proj.weight"

# Tensors of the pretraining task inside the backbone's own prefix, dropped by design.
DROPPED_INSIDE = re.compile(
    r"(norm|fc_norm)\.(weight|bias)"  # final norms: the taps have none
    r"|(head|lm_head|head_drop|pre_logits)\..*"  # classifiers
    r"|mask_token|masked_embed"
    r"|(decoder|decoder_\w+|teacher|pretext_neck|encoder_to_decoder\w*)(\..*)?"  # MAE, CAE
    r"|(.*\.)?relative_position_index"  # follows from the grid
    r"|blocks\.\d+\.attn\.k_bias"  # soft-max cancels it
)
# Tensors that the backbone may draw itself; each kind is missing as a whole or not at all.
MAY_START_FRESH = {
    "pyramid": re.compile(r"fpn\d\..*"),
    "relative position tables": re.compile(r".*relative_position_bias_table"),
    "layer scale": re.compile(r"blocks\.\d+\.gamma_[12]"),
    "final norm": re.compile(r"norm\.(weight|bias)"),
}
RENAMED = ((re.compile(r"\.ls([12])\.gamma$"), r".gamma_\1"),)  # timm's layer scale


@dataclass(frozen=True)
class Layout:
    """A kind of checkpoint: where its backbone lies and what lies beside it."""

    name: str
    prefix: str
    beside: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # at least one key must begin with one of these

    def fits(self, names: Iterable[str]) -> bool:
        """Tell whether tensors of these names are of this layout."""
        names = list(names)
        marked = not self.needs or any(name.startswith(self.needs) for name in names)
        return marked and self.prefix + LANDMARK in names


# The first that fits. Keys that begin with one of `beside` are dropped.
LAYOUTS = (
    Layout(
        "fine-tuned mmsegmentation",
        "backbone.",
        beside=("decode_head.", "auxiliary_head."),
        needs=("decode_head.",),
    ),
    Layout(
        "CAE",
        "encoder.",
        beside=(
            "mask_token",
            "pretext_neck.",
            "encoder_to_decoder.",
            "encoder_to_decoder_norm.",
            "decoder.",
            "teacher.",
            "alignment_encoder.",
            "lm_head.",
        ),
    ),
    Layout(
        "MoCo v3",
        "base_encoder.",
        beside=("momentum_encoder.", "predictor.", "queue"),
    ),
    Layout("iBOT or DINO", "backbone.", beside=("head.", "head2.", "dino_head.", "ibot_head.")),
    Layout("MAE", "", needs=("decoder_pred.", "decoder_embed.", "decoder_blocks.")),
    Layout("BEiT with a shared table", "", needs=("rel_pos_bias.",)),
    Layout("plain ViT", ""),
)


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

    def as_dict(self) -> dict[str, Any]:
        """Return layout, counts and the names of all tensors that were not simply copied."""
        kinds = ("loaded", "resized", "initialised", "left", "dropped")
        counts = {kind: len(getattr(self, kind)) for kind in kinds}
        names = {kind: list(getattr(self, kind)) for kind in kinds[1:]}
        return {"layout": self.layout, **counts, "names": names}

    def summary(self) -> str:
        """Return a few lines for people."""
        lines = [
            f"checkpoint {self.source}",
            f"  layout: {self.layout}; {len(self.loaded)} tensors loaded",
        ]
        for kind in ("resized", "initialised", "dropped", "left"):
            names = getattr(self, kind)
            if names:
                lines.append(f"  {kind}: {len(names)} ({_in_short(names)})")
        return "\n".join(lines)


def _in_short(names: Iterable[str]) -> str:
    """Join names, those of one kind as one: `blocks.*.gamma_1 ×12, fpn1.* ×8, mask_token`."""
    kinds = collections.defaultdict(list)
    for name in names:
        in_block = name.startswith("blocks.")
        kinds[re.sub(r"^blocks\.\d+", "blocks.*", name) if in_block else name.split(".")[0]].append(
            name
        )
    shown = [
        members[0]
        if len(members) == 1
        else f"{kind if '.' in kind else kind + '.*'} ×{len(members)}"
        for kind, members in kinds.items()
    ]
    return ", ".join(shown[:8]) + (f", … {len(shown) - 8} more" if len(shown) > 8 else "")


@dataclass
class _Journal:
    """Names collected on the way to a report."""

    resized: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def load_pretrained(model: "CAE", path: str | Path) -> Report:
    """Fill the backbone from a checkpoint file of any known layout.

    Raises:
        UserError: the file cannot be read safely, is of another architecture, or does not fill
            the backbone; the model is then unchanged.
    """
    state, report = convert(load_checkpoint_file(path), model, source=str(path))
    model.load_state_dict(state, strict=False)
    return report


def convert(
    state: Mapping[str, Any], model: "CAE", *, source: str = "checkpoint"
) -> tuple[Tensors, Report]:
    """Map the contents of a checkpoint to the names and sizes of the backbone.

    Args:
        state: what `load_checkpoint_file` returns.
        model: the backbone to be filled; it is only looked at.
        source: name of the file for messages.

    Returns:
        The tensors to load, a subset of `model.state_dict()`'s names, and the report.

    Raises:
        UserError: unknown layout, a key that has no place, another width, depth or number of
            heads, or tensors of the backbone missing.
    """
    tensors = _find_tensors(state)
    layout = _recognise(tensors, source)
    journal = _Journal()
    inside = _take_inside(tensors, layout, journal)
    target = model.state_dict()
    inside = _adapt_names(inside, target, journal)
    inside = _adapt_sizes(inside, target, model, journal, source)
    _check_places(inside, target, source)
    fresh = _missing(inside, target, source)
    report = Report(
        source=source,
        layout=layout.name,
        loaded=tuple(name for name in inside if name not in journal.resized),
        resized=tuple(journal.resized),
        initialised=tuple(fresh),
        left=tuple(journal.left),
        dropped=tuple(journal.dropped),
    )
    return inside, report


def _find_tensors(state: Mapping[str, Any]) -> Tensors:
    """Return the tensors of the innermost container, without the names of wrappers."""
    for container in CONTAINERS:
        if isinstance(state.get(container), Mapping):
            return _find_tensors(state[container])
    tensors = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            while str(name).startswith(WRAPPERS):
                name = name.split(".", 1)[1]
            tensors[str(name)] = value
    return tensors


def _recognise(tensors: Tensors, source: str) -> Layout:
    for layout in LAYOUTS:
        if layout.fits(tensors):
            return layout
    prefixes = ", ".join(sorted({layout.prefix or "(none)" for layout in LAYOUTS}))
    found = ", ".join(list(tensors)[:3]) or "no tensors"
    raise UserError(
        f"{source}: holds no vision transformer under a known prefix ({prefixes}); "
        f"found {found}; see docs/checkpoints.md for the layouts"
    )


def _take_inside(tensors: Tensors, layout: Layout, journal: _Journal) -> Tensors:
    """Return the tensors under the layout's prefix; note the others."""
    inside = {}
    for name, value in tensors.items():
        if layout.beside and name.startswith(layout.beside):
            journal.dropped.append(name)
        elif name.startswith(layout.prefix):
            inside[name.removeprefix(layout.prefix)] = value
        else:
            journal.left.append(name)
    return inside


def _adapt_names(inside: Tensors, target: Tensors, journal: _Journal) -> Tensors:
    """Rename, split fused biases, hand a shared table to each block, drop what is listed."""
    adapted = {}
    for name, value in inside.items():
        for pattern, replacement in RENAMED:
            name = pattern.sub(replacement, name)
        block_tables = [key for key in target if re.fullmatch(r"blocks\..*_bias_table", key)]
        if name.endswith("attn.qkv.bias") and name.replace("qkv.bias", "q_bias") in target:
            attention = name.removesuffix("qkv.bias")
            third = len(value) // 3
            adapted[attention + "q_bias"] = value[:third]
            adapted[attention + "v_bias"] = value[2 * third :]
            journal.dropped.append(f"{name}[key]")
        elif name == "rel_pos_bias.relative_position_bias_table" and name not in target:
            adapted.update(dict.fromkeys(block_tables or [name], value))
        elif DROPPED_INSIDE.fullmatch(name) and (name not in target or name.endswith("_index")):
            journal.dropped.append(name)
        else:
            adapted[name] = value
    return adapted


def _adapt_sizes(
    inside: Tensors, target: Tensors, model: "CAE", journal: _Journal, source: str
) -> Tensors:
    """Bring the position embedding and the tables to the backbone's grid."""
    adapted = {}
    for name, value in inside.items():
        wanted = target.get(name)
        if wanted is not None and value.shape != wanted.shape:
            resized = _resize(name, value, model.grid_size)
            if resized is None or resized.shape != wanted.shape:
                raise UserError(
                    f"{source}: {name} is {tuple(value.shape)}, the backbone's is "
                    f"{tuple(wanted.shape)}; {_shape_hint(name)}"
                )
            journal.resized.append(name)
            value = resized
        adapted[name] = value
    return adapted


def _resize(name: str, value: Tensor, grid: tuple[int, int]) -> Tensor | None:
    """Return a tensor that depends on the grid at `grid`'s size; None for any other."""
    if name == "pos_embed" and value.dim() == 3:
        return resize_position_embedding(value, grid)
    if name.endswith("relative_position_bias_table") and value.dim() == 2:
        return resize_table(value, grid)
    return None


def _shape_hint(name: str) -> str:
    if name.endswith("relative_position_bias_table"):
        return "take the config of this checkpoint's number of heads (num_heads) and image size"
    return "take the config of this checkpoint's architecture (embed_dim, patch_size)"


def _check_places(inside: Tensors, target: Tensors, source: str) -> None:
    strangers = [name for name in inside if name not in target]
    if strangers:
        raise UserError(
            f"{source}: {_in_short(strangers)} {'has' if len(strangers) == 1 else 'have'} no "
            "place in the backbone; take the config of this checkpoint's architecture (depth, "
            "qkv_bias, use_rel_pos_bias, use_sincos_pos_embed), or see docs/checkpoints.md"
        )


def _missing(inside: Tensors, target: Tensors, source: str) -> list[str]:
    """Return the names that keep their start values; raise where the backbone is not filled."""
    absent = [
        name
        for name in target
        if name not in inside and not name.endswith(("_index", "num_batches_tracked"))
    ]
    unfilled, fresh = [], []
    for name in absent:
        (fresh if _may_start_fresh(name, inside) else unfilled).append(name)
    if unfilled:
        raise UserError(
            f"{source}: does not fill the backbone: {_in_short(unfilled)} missing; take the "
            "config of this checkpoint's architecture, or the whole checkpoint"
        )
    return fresh


def _may_start_fresh(name: str, inside: Tensors) -> bool:
    if name == "pos_embed":
        return True  # fixed sine-cosine, or trained from scratch as BEiT's
    for pattern in MAY_START_FRESH.values():
        if pattern.fullmatch(name):
            return not any(pattern.fullmatch(other) for other in inside)
    return False


def resize_position_embedding(embedding: Tensor, grid: tuple[int, int]) -> Tensor | None:
    """Resize (1, 1 + s·s, C) to (1, 1 + h·w, C), bicubically; the class token's row is kept.

    An embedding without a row for the class token, (1, s·s, C), gets one of zeros. None where the
    source is no square.
    """
    patches = embedding.float()
    tokens = patches.shape[1]
    cls = patches.new_zeros(1, 1, patches.shape[2])
    if math.isqrt(tokens) ** 2 != tokens:
        cls, patches = patches[:, :1], patches[:, 1:]
    side = math.isqrt(patches.shape[1])
    if side**2 != patches.shape[1]:
        return None
    patches = patches.transpose(1, 2).unflatten(2, (side, side))
    if grid != (side, side):
        patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1)


def resize_table(table: Tensor, grid: tuple[int, int]) -> Tensor | None:
    """Resize a relative position table of a square grid to another grid.

    Offsets of the source are spread over those of the target in geometric steps, dense near zero,
    and a cubic spline is read at the target's whole offsets. The last three rows (class token)
    stay. BEiT's rule, per axis, so that the target may be no square.

    Args:
        table: ((2s−1)² + 3, heads).
        grid: patches down and across in the target.

    Returns:
        ((2h−1)(2w−1) + 3, heads), or None where the source is no square.
    """
    side = math.isqrt(table.shape[0] - 3)
    if side**2 != table.shape[0] - 3 or side % 2 == 0:
        return None
    sources = [geometric_offsets(side, 2 * n - 1) for n in grid]
    targets = [np.arange(-(n - 1), n, dtype=np.float64) for n in grid]
    degree = min(3, side - 1)
    columns = []
    for head in table[:-3].float().numpy().T.reshape(-1, side, side):
        if side == 1:
            columns.append(np.full(tuple(map(len, targets)), head[0, 0]).ravel())
            continue
        spline = RectBivariateSpline(*sources, head, kx=degree, ky=degree, s=0)
        columns.append(spline(*targets).ravel())
    offsets = torch.from_numpy(np.stack(columns, axis=1)).float()
    return torch.cat([offsets, table[-3:].float()])


def geometric_offsets(source: int, target: int) -> np.ndarray:
    """Return `source` coordinates, symmetric about 0, in geometric steps out to ±(target // 2).

    The ratio is the last midpoint of a bisection of [1.01, 1.5] to 1e-6, as in the published code
    (13 → 31: 1.365491314; 27 → 63: 1.134917812); the outermost coordinate misses by a little.
    """
    steps, reach = source // 2, target // 2
    low, high = 1.01, 1.5
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**steps) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    outward = np.cumsum(ratio ** np.arange(steps, dtype=np.float64))
    return np.concatenate([-outward[::-1], [0.0], outward])
