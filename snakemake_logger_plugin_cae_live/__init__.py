"""Snakemake logger `cae-live`: on a terminal, a line for each running job, updated in place.

Errors and warnings appear above the lines; Snakemake's other messages go only to its log. Where
standard error is not a terminal, or more output was asked for (`--verbose`), Snakemake writes as it
does without this logger. Nothing in this package depends on `cae_seg`: the workflow sets with
`watch` what the lines show.
"""

from .handler import Job, LogHandler

__all__ = ["Job", "LogHandler"]
