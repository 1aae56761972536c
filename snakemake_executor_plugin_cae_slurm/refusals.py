"""What `sbatch` says when it takes no job: whether that passes, and which resource to change."""

import re
from dataclasses import dataclass

PASSING = re.compile(
    r"\w*MaxSubmit\w*|\w*GrpSubmit\w*|Socket timed out|Unable to contact slurm controller"
    r"|Zero Bytes were transmitted|temporarily un\w+|Connection (refused|reset|timed out)"
    r"|Communication connection failure|Transport endpoint is not connected|standby mode"
    r"|database timeout|Required partition not available|Too many (jobs|open files)",
    re.IGNORECASE,
)
# Said of limits on the number of jobs, which pass, and of limits on the size of one, which do not.
POLICY = re.compile(r"(; )?Job violates accounting/QOS policy \(.*?\)", re.IGNORECASE)
SIZE_LIMIT = re.compile(r"\b(QOS|Assoc)?(Max|Min)(?!Submit)\w+")
FOR_GOOD = (
    (re.compile(r"invalid account", re.IGNORECASE), ("slurm_account", "slurm_partition")),
    (re.compile(r"\bpartition\b", re.IGNORECASE), ("slurm_partition",)),
    (re.compile(r"\bqos specification", re.IGNORECASE), ("qos",)),
    (re.compile(r"time limit|Wall", re.IGNORECASE), ("runtime",)),
    (re.compile(r"memory|MemPer", re.IGNORECASE), ("mem_mb", "mem_mb_per_cpu")),
    (re.compile(r"feature", re.IGNORECASE), ("constraint",)),
    (re.compile(r"generic resource|\bGRES\b|TRES", re.IGNORECASE), ("gpu_model", "gpu", "gres")),
    (
        re.compile(r"node (configuration|count)|nodes requested|CPU count|Cpus", re.IGNORECASE),
        ("gpu_model", "gpu", "gres", "nodes", "constraint", "mem_mb"),
    ),
    (re.compile(r"reservation", re.IGNORECASE), ("reservation",)),
)
LIMITED = ("qos", "runtime", "gpu", "nodes", "mem_mb")


@dataclass(frozen=True)
class Refusal:
    """Why `sbatch` failed.

    Attributes:
        message: SLURM's reason in one line.
        transient: whether the same submission may succeed later.
        resources: what to change in one that is refused for good; empty if SLURM's words are not
            known, so that a retry is worthwhile.
    """

    message: str
    transient: bool = False
    resources: tuple[str, ...] = ()


def classify(errors: str, *, others_queued: bool) -> Refusal:
    """Judge what `sbatch` wrote to standard error.

    Args:
        errors: its words.
        others_queued: whether the user has jobs in the queue: only then can an unnamed limit of
            the accounting be one on their number.
    """
    message = _one_line(errors)
    if PASSING.search(message):
        return Refusal(message, transient=True)
    if POLICY.search(message) and others_queued and not SIZE_LIMIT.search(message):
        return Refusal(message, transient=True)
    named = POLICY.sub("", message)  # its words are the same for every limit
    for words, resources in FOR_GOOD:
        if words.search(named):
            return Refusal(message, resources=resources)
    return Refusal(message, resources=LIMITED if named != message else ())


def _one_line(errors: str) -> str:
    lines = (line.removeprefix("sbatch: ").removeprefix("error: ") for line in errors.splitlines())
    kept = [line.strip().removeprefix("Batch job submission failed: ") for line in lines]
    return "; ".join(dict.fromkeys(line for line in kept if line)) or "no reason given"
