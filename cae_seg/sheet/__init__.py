"""Experiment sheets: what to run."""
