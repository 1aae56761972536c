"""The layouts of pretraining checkpoints: where in a file the backbone is.

Tables only, and the two functions that read them. A layout is recognised by the prefix under which
the patch embedding is found, never by the order of keys.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cae_seg.errors import UserError

Tensors = dict[str, Tensor]

# Where a file keeps its tensors, the likeliest first. The teacher is what DINO and iBOT evaluate.
CONTAINERS = ("state_dict", "model", "module", "teacher", "student")
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
# First convolution of a backbone: ViT and Swin, XCiT, and the same under mmsegmentation's names.
ANCHORS = (
    "patch_embed.proj.weight",
    "patch_embed.proj.0.0.weight",
    "patch_embed.projection.weight",
)


# As torchvision's models, and the published pretraining scripts of the layouts that name it.
IMAGENET_MEAN = (123.675, 116.28, 103.53)


@dataclass(frozen=True)
class Layout:
    """A kind of checkpoint: the backbone's prefix, and what else the file holds."""

    name: str
    prefix: str
    ignored_prefixes: tuple[str, ...] = ()
    required_prefixes: tuple[str, ...] = ()  # at least one key must begin with one of these
    mean: tuple[float, ...] | None = None  # of the images in pretraining, grey levels; if known

    def fits(self, names: Iterable[str], anchors: Iterable[str]) -> bool:
        """Tell whether tensors of these names are of this layout."""
        names = list(names)
        required = self.required_prefixes
        marked = not required or any(name.startswith(required) for name in names)
        return marked and any(self.prefix + anchor in names for anchor in anchors)


# The first that fits.
LAYOUTS = (
    Layout(
        "fine-tuned mmsegmentation",
        "backbone.",
        ignored_prefixes=("decode_head.", "auxiliary_head.", "neck."),
        required_prefixes=("decode_head.",),
    ),
    Layout(
        "MoBY",
        "encoder.",
        ignored_prefixes=("encoder_k.", "projector.", "projector_k.", "predictor.", "queue"),
        required_prefixes=("encoder_k.",),
        mean=IMAGENET_MEAN,
    ),
    Layout(
        "CAE",
        "encoder.",
        ignored_prefixes=(
            "mask_token",
            "pretext_neck.",
            "encoder_to_decoder.",
            "encoder_to_decoder_norm.",
            "decoder.",
            "teacher.",
            "alignment_encoder.",
            "lm_head.",
        ),
        mean=IMAGENET_MEAN,
    ),
    Layout(
        "MoCo v3",
        "base_encoder.",
        ignored_prefixes=("momentum_encoder.", "predictor.", "queue"),
        mean=IMAGENET_MEAN,
    ),
    Layout(
        "iBOT or DINO",
        "backbone.",
        ignored_prefixes=("head.", "head2.", "dino_head.", "ibot_head."),
        mean=IMAGENET_MEAN,
    ),
    Layout(
        "MAE",
        "",
        required_prefixes=("decoder_pred.", "decoder_embed.", "decoder_blocks."),
        mean=IMAGENET_MEAN,
    ),
    Layout("BEiT with a shared table", "", required_prefixes=("rel_pos_bias.",)),
    Layout("plain", ""),
)


def find_tensors(state: Mapping[str, Any]) -> Tensors:
    """Return the tensors of the innermost container, without the names of wrappers."""
    for container in CONTAINERS:
        if isinstance(state.get(container), Mapping):
            return find_tensors(state[container])
    tensors = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            while str(name).startswith(WRAPPERS):
                name = name.split(".", 1)[1]
            tensors[str(name)] = value
    return tensors


def recognise_layout(tensors: Tensors, anchors: Iterable[str], source: str) -> Layout:
    """Return the first layout that fits.

    Raises:
        UserError: none fits.
    """
    for layout in LAYOUTS:
        if layout.fits(tensors, anchors):
            return layout
    prefixes = ", ".join(sorted({layout.prefix or "(none)" for layout in LAYOUTS}))
    found = ", ".join(list(tensors)[:3]) or "no tensors"
    raise UserError(
        f"{source}: contains no backbone under a known prefix ({prefixes}); "
        f"found {found}; see docs/checkpoints.md for the layouts"
    )
