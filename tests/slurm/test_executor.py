"""The executor plugin: what it relies on in its parent, and its judgement of SLURM's words."""

import inspect
from importlib.metadata import requires, version

import pytest
import snakemake_executor_plugin_slurm as parent
from packaging.requirements import Requirement
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import get_job_wildcards, set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra
from snakemake_interface_common.plugin_registry import PluginRegistryBase
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from snakemake_executor_plugin_cae_slurm import Executor
from snakemake_executor_plugin_cae_slurm.slurm import judge_refusal


class FakeJob:
    """A job with resources, as the parent's functions read it."""

    threads = 4

    class resources(dict):
        """A mapping whose keys are attributes as well, as Snakemake's is."""

        __getattr__ = dict.get

    def __init__(self, **resources: object) -> None:
        self.resources = self.resources(resources)


def test_the_installed_parent_is_the_pinned_one():
    pins = [Requirement(text) for text in requires("cae-seg") or []]
    pin = next(pin for pin in pins if pin.name == "snakemake-executor-plugin-slurm")
    assert pin.specifier.contains(version("snakemake-executor-plugin-slurm"))


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (get_submit_command, ["job", "params", "settings", "failed_nodes"]),
        (set_gres_string, ["job"]),
        (get_job_wildcards, ["job"]),
        (validate_slurm_extra, ["job"]),
        (parent.Executor.run_job, ["self", "job"]),
        (parent.Executor.get_partition_arg, ["self", "job"]),
        (parent.Executor.get_account_arg, ["self", "job"]),
        (parent.Executor.additional_general_args, ["self"]),
        (parent.Executor.check_active_jobs, ["self", "active_jobs"]),
        (parent.Executor.cancel_jobs, ["self", "active_jobs"]),
        (parent.Executor.__post_init__, ["self", "test_mode"]),
        (parent.Executor.print_job_error, ["self", "job_info", "msg"]),
        (parent.Executor._report_job_error_threadsafe, ["self", "job_info", "msg"]),
        (parent.Executor._report_job_submission_threadsafe, ["self", "job_info"]),
    ],
)
def test_the_parent_has_what_the_executor_calls_and_replaces(function, parameters):
    assert list(inspect.signature(function).parameters)[: len(parameters)] == parameters


def test_the_parent_runs_jobs_through_run_job():
    assert "self.run_job" in inspect.getsource(parent.Executor._submit_job)


def test_the_parents_command_takes_name_and_options_as_given():
    params = {
        "run_uuid": "some.name",
        "slurm_logfile": "x.log",
        "comment_str": "comment",
        "account": "--account=mine --dependency=singleton",
        "partition": "",
        "workdir": "/here",
    }
    job = FakeJob(slurm_extra="--dependency=afterok:3", gpu=2)
    command = get_submit_command(job, params, None, set()).split()
    assert command[command.index("--job-name") + 1] == "some.name"
    assert command.index("--dependency=singleton") < command.index("--dependency=afterok:3")
    assert "--parsable" in command


def test_snakemake_finds_the_plugin():
    assert isinstance(ExecutorPluginRegistry(), PluginRegistryBase)
    plugin = ExecutorPluginRegistry().get_plugin("cae-slurm")
    assert plugin.executor is Executor
    assert plugin.common_settings is parent.common_settings


PREFIX = "sbatch: error: Batch job submission failed: "
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    "errors",
    [
        f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{PREFIX}{POLICY}",
        f"sbatch: error: AssocMaxSubmitJobLimit\n{PREFIX}{POLICY}",
        f"{PREFIX}Socket timed out on send/recv operation",
        f"{PREFIX}Unable to contact slurm controller (connect failure)",
        f"{PREFIX}Slurm temporarily unable to accept job, sleeping and retrying",
        f"{PREFIX}Resource temporarily unavailable",
        f"{PREFIX}Required partition not available (inactive or drain)",
        f"{PREFIX}{POLICY}",
    ],
)
def test_a_limit_on_the_number_of_jobs_or_a_silent_controller_passes(errors):
    assert judge_refusal(errors, others_queued=True).transient


@pytest.mark.parametrize(
    ("reason", "setting"),
    [
        ("invalid partition specified: nowhere\n" + PREFIX + "Invalid partition name specified",
         "slurm_partition"),
        ("Invalid account or account/partition combination specified", "slurm_account"),
        ("Invalid qos specification", "qos"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "runtime"),
        ("Memory specification can not be satisfied", "mem_mb"),
        ("Invalid generic resource (gres) specification", "gpu_model"),
        ("Invalid feature specification", "constraint"),
        ("Requested node configuration is not available", "gpu_model"),
        ("QOSMaxWallDurationPerJobLimit\n" + PREFIX + POLICY, "runtime"),
        ("QOSMaxMemoryPerJob\n" + PREFIX + POLICY, "mem_mb"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_for_good_and_named(reason, setting):
    refusal = judge_refusal(f"sbatch: error: {reason}", others_queued=True)
    assert not refusal.transient
    assert setting in refusal.settings
    assert "\n" not in refusal.message


def test_an_unnamed_limit_does_not_pass_while_no_other_job_counts_towards_it():
    refusal = judge_refusal(PREFIX + POLICY, others_queued=False)
    assert not refusal.transient
    assert refusal.settings


def test_words_that_are_not_known_are_left_to_snakemakes_retries():
    refusal = judge_refusal("sbatch: error: something new", others_queued=True)
    assert not refusal.transient
    assert not refusal.settings
