"""Fine-tune pretrained ViT checkpoints for ADE20K semantic segmentation and compare the results."""

__version__ = "0.1.0"
