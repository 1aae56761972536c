"""The model: backbone, heads, segmentor, optimisation groups."""
