"""Clusters as sites run them: refusals, limits, closed partitions, no accounting, banners.

Training is a stand-in of a second; Snakemake, the executor and SLURM are real.
"""

import contextlib
import getpass
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, register, start, stop
from slurm_site import Site, stub_training
from waiting import wait_until

BANNER = """\
#!/bin/sh
echo "Welcome to cluster 5, in service since 2021."
{sbatch} "$@" || exit
echo "Your project has used 33% of 2000 hours."
"""
OWN_SETTINGS = {
    "SLURM_TIME_FORMAT": "relative",
    "SQUEUE_FORMAT": "%j",
    "SQUEUE_STATES": "SUSPENDED",
    "SACCT_FORMAT": "jobname",
}
REFUSED = {
    "no_partition": ({"slurm_partition": "nowhere"}, "slurm_partition: nowhere"),
    "no_account": ({"slurm_account": "nobodys"}, "slurm_account: nobodys"),
    "no_qos": ({"qos": "platinum"}, "qos: platinum"),
    "no_memory": ({"mem_mb": 900000}, "mem_mb: 900000"),
    "no_gpu": ({"gpu_model": "b200"}, "gpu_model: b200"),
}


@pytest.fixture(scope="module")
def site(cluster, tmp_path_factory) -> Iterator[Site]:
    """A working folder on a site with a banner, of a person with settings of their own."""
    site = Site(tmp_path_factory.mktemp("troubles") / "checkout", cluster.environment())
    folder = stub_training(site)
    sbatch = folder / "sbatch"
    sbatch.write_text(BANNER.format(sbatch=shutil.which("sbatch", path=os.environ["PATH"])))
    sbatch.chmod(0o755)
    yield site
    site.close()


@contextlib.contextmanager
def partition_down(site: Site, name: str) -> Iterator[None]:
    site.ask("scontrol", "update", f"PartitionName={name}", "State=DOWN")
    try:
        yield
    finally:
        site.ask("scontrol", "update", f"PartitionName={name}", "State=UP")


def test_a_refusal_for_good_is_one_line_and_is_not_repeated(site):
    rows = {name: {"resources": resources} for name, (resources, _) in REFUSED.items()}
    sheet = site.sheet("refused", rows | {"good": {}, "same": rows["no_partition"]})
    process = site.snakemake(sheet, "--until", "fine_tune", "--retries", "3", **OWN_SETTINGS)
    assert process.wait(300) == 1, site.output(sheet)[-3000:]
    lines = site.output(sheet).splitlines()
    for name, (_, setting) in REFUSED.items():
        told = [line for line in lines if line.startswith(f"{name}.seed0.fine_tune: SLURM ref")]
        assert len(told) == 1, lines
        assert f"change {setting}" in told[0]
    assert sum("nowhere" in line and line.startswith("same.seed0.fine_tune") for line in lines) == 1
    assert not any("Trying to restart" in line for line in lines)
    assert site.run(sheet, "good").json("run.json") == {}
    last = [line for line in lines if " seed 0 failed: SLURM refuses the job for good: " in line]
    assert len(last) == len(REFUSED) + 1
    assert any(
        line.startswith("Run `snakemake --profile slurm") and "again to resume" in line
        for line in lines
    )


def test_a_limit_on_submissions_is_waited_for_without_a_retry(site):
    user = f"user={getpass.getuser()}"
    site.ask("sacctmgr", "-i", "modify", "user", getpass.getuser(), "set", "MaxSubmitJobs=1")
    try:
        sheet = site.sheet("limited_number", {f"row{number}": {} for number in range(3)})
        process = site.snakemake(sheet, "--until", "fine_tune", **OWN_SETTINGS)
        assert process.wait(400) == 0, (user, site.output(sheet)[-3000:])
    finally:
        site.ask("sacctmgr", "-i", "modify", "user", getpass.getuser(), "set", "MaxSubmitJobs=-1")
    assert site.output(sheet).count("SLURM takes no jobs at the moment") == 1
    assert "Trying to restart" not in site.output(sheet)


def test_a_pending_job_says_each_reason_and_is_replaced_by_the_next_start(site):
    row = {"resources": {"slurm_partition": "cancel"}}
    sheet = site.sheet("closed", {"closed": row})
    with partition_down(site, "cancel"):
        first = site.snakemake(sheet, "--until", "fine_tune", **OWN_SETTINGS)
        wait_until("the reason", lambda: "does not start: PartitionDown" in site.output(sheet))
        job = site.job("closed", "PENDING")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        site.unlock()
        second = site.snakemake(sheet, "--until", "fine_tune", "--retries", "0", **OWN_SETTINGS)
        wait_until("the new job", lambda: site.job("closed", "PENDING") not in ("", job))
        assert f"replaces the pending SLURM job {job}" in site.output(sheet)
        held = site.job("closed", "PENDING")
        site.ask("scontrol", "hold", held)
    wait_until("the other reason", lambda: "does not start: JobHeldAdmin" in site.output(sheet))
    site.ask("scontrol", "release", held)
    assert second.wait(300) == 0, site.output(sheet)[-3000:]


def test_a_site_without_accounting_is_served_by_squeue(site):
    """slurmdbd is down, so that `sacct` fails as it does where there is none."""
    cluster = Cluster(Path(site.cluster))
    stop(cluster, "slurmdbd")
    try:
        sheet = site.sheet("unaccounted", {"unaccounted": {}, "stopped": {}})
        process = site.snakemake(
            sheet, "--until", "fine_tune", "--retries", "0", STUB_SECONDS="20", **OWN_SETTINGS
        )
        site_job = wait_until("the job runs", lambda: site.job("stopped"))
        site.ask("scancel", site_job)
        assert process.wait(300) == 1, site.output(sheet)[-3000:]
    finally:
        start(cluster, "slurmdbd")
        register(cluster)
    output = site.output(sheet)
    assert output.count("sacct does not answer") == 1
    assert "ended as CANCELLED" in output
    assert site.run(sheet, "unaccounted").json("run.json") == {}


def test_the_doctor_tries_the_jobs_of_a_sheet_and_names_what_slurm_refuses(site):
    rows = {"good": {"gpus": 8}, "wide": {"gpus": 16}, "lost": {"resources": {"qos": "platinum"}}}
    sheet = site.sheet("checked", rows)
    checked = site.ask(sys.executable, "-m", "cae_seg.cli", "doctor", "--sheet", sheet, check=False)
    lines = [line for line in checked.splitlines() if "SLURM" in line or "locks" in line]
    assert any(line.startswith("ok") and "takes trainings such as good" in line for line in lines)
    for name in ("wide", "lost"):
        assert any(line.startswith("MISSING") and f"training of {name}:" in line for line in lines)
    assert any(line.startswith("ok") and "keeps accounts" in line for line in lines)
    assert any("flock works" in line for line in lines)
