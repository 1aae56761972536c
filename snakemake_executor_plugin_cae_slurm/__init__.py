"""Snakemake executor `cae-slurm`: SLURM jobs on clusters as they are.

Extends the public `snakemake-executor-plugin-slurm`, which composes the `sbatch` command and runs
the job on its node. Naming, submitting, refusals, job states and cancelling are judged here, by
job number. Nothing in this package depends on `cae_seg`.

- Job names hold the wildcards and the rule. Jobs of one name run one at a time; a pending one of
  an earlier Snakemake is replaced, a running one is waited for in the queue.
- A submission refused for a passing reason is repeated with growing pauses; one refused for good
  fails at once, in one line, without retries.
- A pre-empted job or one of a lost node returns to the queue and does not count as a failure.
- `sacct` is optional: without accounting `squeue` alone is asked.
- The resource `no_retry_file` names a file that a job writes when a retry cannot help; its first
  line is the reported reason.
- Jobs find `SNAKEMAKE_SLURM_REQUEUE` in their environment: they may call `scontrol requeue` for
  themselves, and remain the same job for Snakemake.
"""

from snakemake_executor_plugin_slurm import common_settings

from .executor import Executor, ExecutorSettings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]
