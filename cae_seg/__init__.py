"""Fine-tune pretrained backbones for semantic segmentation and compare the results."""

from cae_seg.api import load

__all__ = ["load"]
__version__ = "0.1.0"
