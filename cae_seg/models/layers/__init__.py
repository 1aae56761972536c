"""Layers that are shared by models."""
