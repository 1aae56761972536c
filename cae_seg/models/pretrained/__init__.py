"""Checkpoints of any known pretraining, mapped to a backbone."""
