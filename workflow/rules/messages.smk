# What a person reads when a start is refused, and when a workflow has failed.
import shlex

from snakemake.logging import logger

from cae_seg.results.live import failure_line, live_lines
from cae_seg.results.status import failure_summary


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


# Empty unless the logger `cae-live` draws on a terminal; jobs then write to their logs alone.
LIVE = [
    handler
    for handler in workflow.logger_manager.get_log_handlers()
    if getattr(handler, "live", False)
]
for handler in LIVE:
    handler.watch(lambda jobs: live_lines(SHEET, jobs), failure_line)
if LIVE:
    shell.prefix("set -euo pipefail; exec > /dev/null; ")


def end_live_lines() -> None:
    """Leave the last state of the lines on the terminal, with what comes below them."""
    for handler in LIVE:
        handler.finish()


onerror:
    end_live_lines()
    forget_failed_reports()
    command = shlex.join(["snakemake", *sys.argv[1:]])
    logger.error("\n".join(failure_summary(SHEET, f"`{command}`")))
