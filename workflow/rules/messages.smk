# What a person reads when a start is refused, and when a workflow has failed.
import shlex

from cae_seg.results.status import unfinished


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
    explain_lock()


onerror:
    command = shlex.join(["snakemake", *sys.argv[1:]])
    print(*unfinished(SHEET, f"`{command}`"), sep="\n", file=sys.stderr)
