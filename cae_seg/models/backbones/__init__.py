"""Backbones, one architecture a file."""
