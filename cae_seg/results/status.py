"""What is still to be done in a sheet whose workflow has failed, for the person at the keyboard."""

from cae_seg.sheet.reading import Sheet
from cae_seg.run.paths import RunFolder


def unfinished(sheet: Sheet) -> list[str]:
    """Return a line for each run that was begun and is not over.

    It says experiment and seed, how far the run got, where its log is, and how to go on.
    """
    lines = []
    for row in sheet.experiments:
        for seed in row.seeds:
            run = RunFolder(sheet.run_folder(row.name, seed))
            if run.exists and not run.finished:
                lines.append(f"{row.name}, seed {seed}: {_state(run)}")
    if lines:
        lines.append("To go on, run the same command again: nothing that is finished is repeated.")
    return lines


def _state(run: RunFolder) -> str:
    """Say how far a run got and what it still has."""
    record = run.record()
    reached = max(
        [*record.train, *(event.get("iteration", 0) for event in record.events)], default=0
    )
    saved = max(
        (_iteration(path.stem) for path in run.work.glob("checkpoints/iter_*.pth")), default=0
    )
    total = run.facts()["iterations"]
    return (
        f"reached iteration {reached} of {total}, goes on from {saved}; "
        f"log {run.path / 'console.log'}"
    )


def _iteration(stem: str) -> int:
    number = stem.removeprefix("iter_")
    return int(number) if number.isdigit() else 0
