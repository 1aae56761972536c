"""Importing this module registers everything of ours with mmsegmentation.

The configs do so by `custom_imports = dict(imports=["cae_seg.registration"])`; `import cae_seg`
alone stays cheap, because the command line must answer `--help` without loading torch.
"""

import cae_seg.data.metric
import cae_seg.data.sampling
import cae_seg.data.transforms
import cae_seg.models.backbones.cae
import cae_seg.models.backbones.frozen
import cae_seg.models.backbones.mmseg
import cae_seg.models.backbones.timm
import cae_seg.models.heads.linear
import cae_seg.models.heads.setr
import cae_seg.models.heads.upernet
import cae_seg.models.layer_decay
import cae_seg.models.layers.batch_norm
import cae_seg.models.optimizer
import cae_seg.models.segmentor
import cae_seg.models.tta  # noqa: F401
