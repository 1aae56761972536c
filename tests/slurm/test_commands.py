"""The commands that stand between Snakemake's executor and SLURM, with stand-ins for SLURM's."""

import os
import subprocess
from pathlib import Path

import pytest
from slurm_site import ROOT

COMMANDS = ROOT / "workflow/slurm/bin"
RUN = "6b4c0f2e-0d4c-4f7e-8a53-1d2f3a4b5c6d"
ASK = ("sacct", "-X", "--parsable2", "--noheader", "--format=JobIdRaw,State", "--name", RUN)
SUBMIT = ("sbatch", "--parsable", "--job-name", RUN, "--output", "x.log", "--comment")
COMMENT = "rule_fine_tune_wildcards_base_800_2e-4_3"


class Fakes:
    """SLURM's commands as scripts, and ours in front of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bin = path / "bin"
        self.bin.mkdir()

    def put(self, command: str, script: str) -> None:
        """Let a command do what a line of shell says, and note how it was called."""
        file = self.bin / command
        file.write_text(f'#!/bin/sh\necho "$@" >> {self.path}/{command}.calls\n{script}\n')
        file.chmod(0o755)

    def calls(self, command: str) -> str:
        """Return how a command was called."""
        file = self.path / f"{command}.calls"
        return file.read_text() if file.exists() else ""

    def run(self, *command: str) -> subprocess.CompletedProcess:
        """Run one of our commands."""
        path = f"{COMMANDS}:{self.bin}:{os.environ['PATH']}"
        return subprocess.run(
            command, cwd=self.path, env={"PATH": path}, capture_output=True, text=True
        )


@pytest.fixture
def fakes(tmp_path):
    fakes = Fakes(tmp_path)
    fakes.put("sbatch", "echo 17")
    fakes.put("scontrol", "exit 0")
    fakes.put("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    return fakes


def submitted(fakes: Fakes, comment: str = COMMENT, *more: str) -> str:
    done = fakes.run(*SUBMIT, comment, *more, "--wrap=true")
    assert (done.returncode, done.stdout) == (0, "17\n")
    return fakes.calls("sbatch")


def answer(fakes: Fakes, state: str) -> str:
    submitted(fakes)
    fakes.put("sacct", f"echo '17|{state}'")
    done = fakes.run(*ASK)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().removeprefix("17|")


def test_a_job_is_named_after_experiment_seed_and_rule(fakes):
    assert "--job-name base_800_2e-4.seed3.fine_tune." in submitted(fakes)


def test_jobs_of_one_name_wait_for_each_other_unless_the_user_says_otherwise(fakes):
    assert submitted(fakes).startswith("--dependency=singleton")
    assert submitted(fakes, COMMENT, "--dependency=afterok:3").rindex("afterok") > 0


def test_two_folders_give_two_names(fakes, tmp_path):
    name = submitted(fakes).split("--job-name ")[1].split()[0]
    (tmp_path / "other").mkdir()
    other = Fakes(tmp_path / "other")
    other.put("sbatch", "echo 17")
    assert name not in submitted(other)


def test_an_array_of_jobs_is_left_alone(fakes):
    assert RUN in submitted(fakes, COMMENT, "--array=1-3")


def test_a_submission_that_fails_says_why(fakes):
    fakes.put("sbatch", "echo 'invalid partition' >&2; exit 1")
    done = fakes.run(*SUBMIT, COMMENT, "--wrap=true")
    assert done.returncode == 1
    assert "invalid partition" in done.stderr


def test_the_jobs_of_a_run_are_asked_for_by_number(fakes):
    assert answer(fakes, "RUNNING") == "RUNNING"
    assert "--jobs=17" in fakes.calls("sacct")
    assert RUN not in fakes.calls("sacct")


def test_a_question_of_somebody_else_goes_through_unchanged(fakes):
    fakes.put("sacct", "echo '9|CANCELLED by 0'")
    assert fakes.run(*ASK).stdout == "9|CANCELLED by 0\n"


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "TIMEOUT", "PENDING", "OUT_OF_MEMORY"])
def test_plain_words_stay(fakes, state):
    assert answer(fakes, state) == state


def test_a_cancellation_is_one_whoever_did_it(fakes):
    assert answer(fakes, "CANCELLED by 1000") == "CANCELLED"


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
def test_a_job_that_was_taken_away_for_good_is_put_back(fakes, state):
    assert answer(fakes, state) == "PENDING"
    assert fakes.calls("scontrol") == "requeue 17\n"


def test_a_job_that_slurm_has_put_back_is_left_alone(fakes):
    fakes.put("squeue", "echo PENDING")
    assert answer(fakes, "PREEMPTED") == "PENDING"
    assert not fakes.calls("scontrol")


def test_a_job_that_cannot_be_put_back_has_failed(fakes):
    fakes.put("scontrol", "exit 1")
    assert answer(fakes, "PREEMPTED") == "FAILED"


def test_a_job_that_slurm_holds_after_a_failed_launch_is_let_go(fakes):
    held = "16|name|launch failed requeued held"
    fakes.put("squeue", f"echo '{held}'; echo '17|name|Dependency'; echo '9|x|{held[8:]}'")
    assert answer(fakes, "PENDING") == "PENDING"
    assert fakes.calls("scontrol") == "release 16\n"


def test_an_unknown_job_is_no_success(fakes):
    assert answer(fakes, "UNKNOWN") == "FAILED"
    assert not fakes.calls("scontrol")


def test_a_silent_controller_means_to_ask_again(fakes):
    fakes.put("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert answer(fakes, "PREEMPTED") == "PENDING"
    assert not fakes.calls("scontrol")
