"""Decode heads, one a file."""
