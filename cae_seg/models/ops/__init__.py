"""Exact faster operations, one a file."""
