"""What the commands in `bin/` share: the real commands behind them, and the jobs of a run.

Snakemake's SLURM executor gives all jobs of one Snakemake the same name, a random one, and asks for
them by that name. `bin/sbatch` gives each a name that people can read and notes here which jobs
belong to which run; `bin/sacct` and `bin/squeue` look them up.
"""

import os
import re
import shutil
import sys
from pathlib import Path

NOTES = Path(".snakemake/slurm_jobs")


def real(command: str) -> str:
    """Return the path of SLURM's own command, which lies behind ours on the `PATH`."""
    here = Path(sys.argv[0]).absolute().parent
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    others = [folder for folder in folders if Path(folder).absolute() != here]
    found = shutil.which(command, path=os.pathsep.join(others))
    if not found:
        sys.exit(f"{command}: not found behind {here}")
    return found


def note(run: str, job: str) -> None:
    """Note that a job belongs to a run."""
    NOTES.mkdir(parents=True, exist_ok=True)
    with (NOTES / run).open("a") as file:
        file.write(f"{job}\n")


def jobs(run: str) -> list[str]:
    """Return the jobs of a run; none if `bin/sbatch` did not submit it."""
    try:
        return (NOTES / run).read_text().split()
    except OSError:
        return []


def option(arguments: list[str], name: str) -> int:
    """Return where the value of `name VALUE` stands among arguments; 0 if nowhere."""
    return arguments.index(name) + 1 if name in arguments[:-1] else 0


def readable_name(run: str, comment: str, folder: str) -> str:
    """Return the name of a job: experiment, seed, rule, and a mark of the working folder.

    The mark keeps two checkouts of one user apart.

    Args:
        run: the executor's name of the run: the user's prefix and a UUID.
        comment: the executor's description, `rule_RULE_wildcards_EXPERIMENT_SEED`.
        folder: the working folder.
    """
    import zlib

    prefix = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}$", "", run)
    found = re.fullmatch(r"rule_(.+?)_wildcards_(.+)_(\d+)", comment)
    name = "{1}.seed{2}.{0}".format(*found.groups()) if found else comment
    return f"{prefix}{name}.{zlib.crc32(os.fsencode(folder)) & 0xFFFF:04x}"
