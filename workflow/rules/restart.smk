# What a person reads when a start is refused, and when a workflow has failed.
import os
import shutil

from cae_seg.results.status import unfinished


def speak_plainly_with_slurm() -> None:
    """Let the SLURM executor find our `sbatch`, `sacct` and `squeue` before SLURM's own."""
    commands = str(Path(workflow.basedir) / "workflow/slurm/bin")
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if shutil.which("sbatch") and commands not in folders:
        os.environ.update(PATH=os.pathsep.join([commands, *folders]))
    os.environ.update(CAE_SEG_REQUEUE="1")


def explain_lock() -> None:
    """Print what to do about Snakemake's lock of this folder, if there is one.

    Only Snakemake's user can know whether the other Snakemake, perhaps on another login node, is
    still running; nothing is removed here.
    """
    lock_matters = not {"--unlock", "--nolock"} & set(sys.argv)
    if lock_matters and any(Path(".snakemake/locks").glob("*")):
        print(
            "note: another Snakemake is running in this folder, or was killed; if none is running,"
            " run `snakemake --unlock`, then the same command again",
            file=sys.stderr,
        )


if workflow.is_main_process:
    speak_plainly_with_slurm()
    explain_lock()


onerror:
    print(*unfinished(SHEET), sep="\n", file=sys.stderr)
