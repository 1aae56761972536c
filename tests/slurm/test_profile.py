"""What the slurm profile asks the cluster for, with a stand-in for the dear commands."""

import os
import shutil
import time

import pytest
from disturbed_runs import wait_until
from slurm_site import ROOT, Site

ROWS = {
    "plain": {},
    "picky": {
        "gpus": 4,
        "resources": {
            "runtime": 90,
            "mem_mb": 9000,
            "slurm_partition": "requeue",
            "slurm_account": "teaching",
            "qos": "long",
            "gpu_model": "h100",
        },
    },
    "bound": {"resources": {"constraint": "second"}},
    "wide": {"gpus": 16, "nodes": 2},
}
FIELDS = ("JobName", "Account", "QOS", "Partition", "ReqTRES", "Timelimit", "NodeList", "State")
STUB = """\
#!/bin/sh
[ "$1" = train ] && sleep "${{STUB_SECONDS:-1}}"
exec {stub} "$@"
"""
COUNTING = """\
#!/bin/sh
echo >> "{count}"
exec {command} "$@"
"""


@pytest.fixture(scope="module")
def office(cluster, tmp_path_factory) -> Site:
    """A working folder in which training takes a second, and questions to SLURM are counted."""
    site = Site(tmp_path_factory.mktemp("office") / "checkout", cluster.environment())
    bin_ = site.path / "bin"
    bin_.mkdir()
    (bin_ / "cae-seg").write_text(STUB.format(stub=ROOT / "tests/workflow/stub_cae_seg.sh"))
    (bin_ / "cae-seg").chmod(0o755)
    for command in ("sacct", "squeue"):
        count = site.path / f"{command}.calls"
        count.touch()
        real = shutil.which(command, path=os.environ["PATH"])
        (bin_ / command).write_text(COUNTING.format(count=count, command=real))
        (bin_ / command).chmod(0o755)
    site.environment["PATH"] = f"{bin_}:{site.environment['PATH']}"
    yield site
    site.close()


def calls(site: Site, command: str) -> int:
    return len((site.path / f"{command}.calls").read_text().splitlines())


def jobs(site: Site, since: float) -> dict[str, dict[str, str]]:
    """Return the jobs that were submitted since then, by name without its mark."""
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    lines = site.ask("sacct", "-X", "-n", "-P", f"--starttime={start}",
                     f"--format={','.join(FIELDS)}").splitlines()  # fmt: skip
    rows = [dict(zip(FIELDS, line.split("|"), strict=True)) for line in lines]
    return {row["JobName"].rpartition(".")[0]: row for row in rows}


@pytest.fixture(scope="module")
def submitted(office):
    began = time.time()
    sheet = office.sheet("office", ROWS)
    process = office.snakemake(sheet, "--set-resources", "evaluate:runtime=7")
    assert process.wait(300) == 0, office.said(sheet)[-3000:]
    return jobs(office, began)


def test_only_training_and_evaluation_are_jobs_and_their_names_say_of_what(submitted):
    rules = ("fine_tune", "evaluate")
    assert set(submitted) == {f"{row}.seed0.{rule}" for row in ROWS for rule in rules}
    assert {job["State"] for job in submitted.values()} == {"COMPLETED"}


def test_a_row_decides_what_its_job_asks_for(submitted):
    job = submitted["picky.seed0.fine_tune"]
    assert (job["Account"], job["QOS"], job["Partition"]) == ("teaching", "long", "requeue")
    assert "gres/gpu:h100=4" in job["ReqTRES"]
    assert "mem=9000M" in job["ReqTRES"]
    assert job["Timelimit"] == "01:30:00"
    assert submitted["bound.seed0.fine_tune"]["NodeList"] == "n2"


def test_a_job_of_several_nodes_gets_them(submitted):
    job = submitted["wide.seed0.fine_tune"]
    assert "gres/gpu=16" in job["ReqTRES"]
    assert job["NodeList"] == "n[1-2]"


def test_the_command_line_overrides_the_profile(submitted):
    assert submitted["plain.seed0.evaluate"]["Timelimit"] == "00:07:00"
    assert submitted["plain.seed0.fine_tune"]["Timelimit"] == "2-00:00:00"


def test_nothing_is_needed_or_left_in_the_home_folder(submitted, office):
    left = [path.name for path in (office.path / "home").iterdir()]
    assert set(left) <= {".cache"}


def test_many_jobs_are_asked_about_together_and_ever_less_often(office):
    rows = {f"row{number}": {} for number in range(12)}
    sheet = office.sheet("many", rows)
    before = calls(office, "sacct") + calls(office, "squeue")
    began = time.time()
    process = office.snakemake(sheet, "--until", "fine_tune", "--jobs", "6")
    most = 0
    while process.poll() is None:
        queued = office.ask("squeue", "--noheader", "--format=%j").splitlines()
        most = max(most, sum("row" in name for name in queued))
        time.sleep(1)
    seconds = time.time() - began
    assert process.returncode == 0, office.said(sheet)[-3000:]
    assert most <= 6, "`jobs` throttles a sweep"
    # This test asks as well, once a second, through the counted command.
    asked = calls(office, "sacct") + calls(office, "squeue") - before - seconds
    assert asked < seconds / 2
    print(f"{len(rows)} jobs in {seconds:.0f} s, {asked:.0f} questions")


def test_a_cancelled_job_is_noticed_where_accounting_says_by_whom(office):
    """`CANCELLED by 0` is a word that the executor does not know."""
    sheet = office.sheet("slow", {"slow": {}})
    process = office.snakemake(sheet, "--until", "fine_tune", "--retries", "0", STUB_SECONDS="60")
    job = wait_until("slow runs", lambda: office.job("slow"))
    office.ask("scancel", job)
    assert process.wait(120) == 1
