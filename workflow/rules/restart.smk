# What makes a start after a crash, and a failure, simple for the person at the keyboard.
import atexit
import contextlib
import fcntl
import os
import shutil
import socket

from cae_seg.results.status import unfinished


def speak_plainly_with_slurm() -> None:
    """Let the SLURM executor find our `sbatch`, `sacct` and `squeue` before SLURM's own."""
    commands = str(Path(workflow.basedir) / "workflow/slurm/bin")
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if shutil.which("sbatch") and commands not in folders:
        os.environ.update(PATH=os.pathsep.join([commands, *folders]))
    os.environ.update(CAE_SEG_REQUEUE="1")


def remove_stale_lock():
    """Remove the lock of a Snakemake that was killed, so that the same command goes on.

    Every Snakemake that lives in this folder shares a file lock, which its end releases, however
    it ends. Where another host has left its mark nothing is removed: not all file systems share
    locks between hosts, and `snakemake --unlock` remains.

    Returns:
        The open file; the lock lasts as long as it.
    """
    folder = Path(".snakemake/alive")
    folder.mkdir(parents=True, exist_ok=True)
    mark = (folder / socket.gethostname()).open("w")
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass  # another one lives here
    else:
        if len(list(folder.iterdir())) == 1:
            shutil.rmtree(".snakemake/locks", ignore_errors=True)
            Path(".snakemake/locks").mkdir()
    fcntl.flock(mark, fcntl.LOCK_SH)
    return mark


def leave(mark) -> None:
    """Take the mark of this host away, unless another Snakemake lives here."""
    with contextlib.suppress(OSError):
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(mark.name)


if workflow.is_main_process:
    speak_plainly_with_slurm()
    atexit.register(leave, remove_stale_lock())


onerror:
    print(*unfinished(SHEET), sep="\n", file=sys.stderr)
