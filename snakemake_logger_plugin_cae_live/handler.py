"""The log handler: which jobs run, and what of Snakemake's messages a person sees meanwhile."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.text import Text
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

REFRESHES_PER_SECOND = 1
# What the lines show is read from files: a slow file system is read less often.
REST = 10
# Says on each round of scheduling what the lines show anyway.
SCHEDULING = "Select jobs to execute..."


@dataclass(frozen=True)
class Job:
    """A running job.

    Attributes:
        rule: its name.
        message: what it does, a sentence; the rule's name where it has no message.
        wildcards: their values by name.
        logs: its log files.
        started: Unix time.
    """

    rule: str
    message: str
    wildcards: Mapping[str, str]
    logs: Sequence[str]
    started: float


class LogHandler(LogHandlerBase):
    """Draws a line for each running job below what Snakemake reports."""

    def __post_init__(self) -> None:
        settings = self.common_settings
        self._console = Console(stderr=True, no_color=settings.nocolor or None, highlight=False)
        quiet = {choice.name for choice in settings.quiet or ()}
        asked_otherwise = settings.dryrun or settings.verbose or settings.debug_dag
        self.live = (
            self._console.is_terminal
            and not self._console.is_dumb_terminal
            and not asked_otherwise
            and not quiet & {"ALL", "RULES", "PROGRESS"}
        )
        self._jobs: dict[int, Job] = {}
        self._describe: Callable[[Sequence[Job]], Sequence[str]] = _messages
        self._explain: Callable[[Job], str] = _failure
        self._lines: Sequence[str] = ()
        self._read_again = 0.0
        self._display: Live | None = None
        self._finished = False

    @property
    def writes_to_stream(self) -> bool:
        """Whether Snakemake's own output is replaced."""
        return self.live

    @property
    def writes_to_file(self) -> bool:
        """Snakemake writes its log file."""
        return False

    @property
    def has_filter(self) -> bool:
        """Snakemake's filter obeys its options."""
        return False

    @property
    def has_formatter(self) -> bool:
        """Messages are formatted as Snakemake does."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """Nothing is drawn of it."""
        return False

    def watch(
        self,
        describe: Callable[[Sequence[Job]], Sequence[str]],
        explain: Callable[[Job], str],
    ) -> None:
        """Set what is drawn.

        Args:
            describe: returns the lines for the running jobs; called about once a second in another
                thread.
            explain: returns the line for a job that failed.
        """
        self._describe, self._explain = describe, explain

    def finish(self) -> None:
        """Leave the last state of the lines on the terminal and draw no more."""
        with self.lock:
            self._finished = True
            self._jobs.clear()
            self._read_again = 0.0
            display, self._display = self._display, None
        if display is not None:
            display.stop()

    def close(self) -> None:
        """End the display with the logging."""
        self.finish()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a job that starts or ends; show what a person has to read."""
        if not self.live:
            return
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_INFO:
            self._start(record)
        elif event == LogEvent.JOB_FINISHED:
            self._jobs.pop(record.job_id, None)
        elif event == LogEvent.JOB_ERROR:
            job = self._jobs.pop(record.jobid, None)
            self._show(self._explain(job) if job else self.format(record), "red")
        elif getattr(record, "exception", None) == "RuleException":
            pass  # that a job's command failed; the job itself follows
        elif record.levelno >= logging.WARNING:
            self._show(self.format(record), "red" if record.levelno >= logging.ERROR else "yellow")
        elif event in (None, LogEvent.RUN_INFO, LogEvent.WORKFLOW_STARTED) and (
            record.getMessage() != SCHEDULING
        ):
            self._show(self.format(record))

    def _start(self, record: logging.LogRecord) -> None:
        self._jobs[record.jobid] = Job(
            rule=record.rule_name,
            message=record.rule_msg or record.rule_name,
            wildcards=dict(record.wildcards or {}),
            logs=tuple(map(str, record.log)),
            started=record.created,
        )
        if self._display is None and not self._finished:
            self._console.print("Snakemake's messages: .snakemake/log/", style="dim")
            self._display = Live(
                console=self._console,
                get_renderable=self._draw,
                refresh_per_second=REFRESHES_PER_SECOND,
            )
            self._display.start()

    def _show(self, text: str, style: str = "") -> None:
        if text:
            self._console.print(Text(text, style), soft_wrap=True)

    def _draw(self) -> Text:
        now = time.monotonic()
        if now >= self._read_again:
            jobs = list(self._jobs.values())
            try:
                self._lines = self._describe(jobs)
            except Exception as error:  # what runs write meanwhile must not end the display
                self._lines = [*_messages(jobs), f"cannot tell how far they are: {error}"]
            done = time.monotonic()
            self._read_again = done + min(REST * (done - now), 60.0)
        *jobs, last = self._lines or [""]
        room = max(1, self._console.height - 3)
        if len(jobs) > room:
            jobs = [*jobs[: room - 1], f"and {len(jobs) - room + 1} more"]
        return Text("\n".join([*jobs, last]), no_wrap=True, overflow="ellipsis")


def _messages(jobs: Sequence[Job]) -> list[str]:
    return [*(job.message for job in jobs), f"{len(jobs)} jobs running"]


def _failure(job: Job) -> str:
    return f"{job.message}: failed; log {', '.join(job.logs)}"
