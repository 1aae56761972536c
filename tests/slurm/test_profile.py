"""What the slurm profile asks the cluster for, with a stand-in for the expensive commands."""

import os
import re
import shutil
import subprocess
import time

import pytest
from slurm_site import ROOT, Site
from waiting import WAIT_SECONDS, wait_until

ROWS = {
    "plain": {},
    "demanding": {
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
while [ "$1" = train ] && [ -e hold ]; do sleep 0.2; done
exec {stub} "$@"
"""
NOTING = """\
#!/bin/sh
echo "$(date +%s.%N) $*" >> "{calls}"
exec {command} "$@"
"""


@pytest.fixture(scope="module")
def site(cluster, tmp_path_factory) -> Site:
    """A working folder where training ends once there is no file `hold`.

    What Snakemake asks SLURM is noted in `squeue.calls`.
    """
    site = Site(tmp_path_factory.mktemp("site") / "checkout", cluster.environment())
    bin_ = site.path / "bin"
    bin_.mkdir()
    (bin_ / "cae-seg").write_text(STUB.format(stub=ROOT / "tests/workflow/stub_cae_seg.sh"))
    (bin_ / "cae-seg").chmod(0o755)
    real = shutil.which("squeue", path=os.environ["PATH"])
    (bin_ / "squeue").write_text(NOTING.format(calls=site.path / "squeue.calls", command=real))
    (bin_ / "squeue").chmod(0o755)
    yield site
    site.close()


def start(site: Site, sheet: str, *arguments: str) -> subprocess.Popen:
    """Start Snakemake with the commands of the working folder."""
    path = f"{site.path / 'bin'}:{site.environment['PATH']}"
    return site.snakemake(sheet, *arguments, PATH=path)


def jobs(site: Site, since: float) -> dict[str, dict[str, str]]:
    """Return the jobs that were submitted since then, by name without its mark."""
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    lines = site.ask("sacct", "-X", "-n", "-P", f"--starttime={start}",
                     f"--format={','.join(FIELDS)}").splitlines()  # fmt: skip
    rows = [dict(zip(FIELDS, line.split("|"), strict=True)) for line in lines]
    return {row["JobName"].rpartition(".")[0]: row for row in rows}


@pytest.fixture(scope="module")
def submitted(site):
    began = time.time()
    sheet = site.sheet("site", ROWS)
    process = start(site, sheet, "--set-resources", "evaluate:runtime=7")
    assert process.wait(WAIT_SECONDS) == 0, site.output(sheet)[-3000:]
    return jobs(site, began)


def test_only_training_and_evaluation_are_jobs_and_their_names_say_of_what(submitted):
    rules = ("fine_tune", "evaluate")
    assert set(submitted) == {f"{row}.seed0.{rule}" for row in ROWS for rule in rules}
    assert {job["State"] for job in submitted.values()} == {"COMPLETED"}


def test_a_row_decides_what_its_job_asks_for(submitted):
    job = submitted["demanding.seed0.fine_tune"]
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


def test_nothing_is_needed_or_left_in_the_home_folder(submitted, site):
    left = [path.name for path in (site.path / "home").iterdir()]
    assert set(left) <= {".cache"}


def test_one_question_asks_about_all_jobs_and_questions_become_rarer(site):
    sheet = site.sheet("many", {f"row{number}": {} for number in range(12)})
    calls = site.path / "squeue.calls"
    calls.unlink(missing_ok=True)
    (site.path / "hold").touch()
    process = start(site, sheet, "--until", "fine_tune", "--jobs", "6")
    wait_until("six jobs run", lambda: len(running(site)) == 6, during=process)
    first = len(questions(site))
    wait_until("three more questions", lambda: len(questions(site)) >= first + 3, during=process)
    asked = questions(site)[first:]
    assert running(site) == set(asked[-1][1]), "`jobs` throttles a sweep"
    # Pauses of 3, 13 and 23 s between questions while no job ends; a slow machine only adds.
    assert asked[2][0] - asked[1][0] > 20
    (site.path / "hold").unlink()
    assert process.wait(WAIT_SECONDS) == 0, site.output(sheet)[-3000:]


def running(site: Site) -> set[str]:
    """Return the numbers of the jobs that are in the queue."""
    return set(site.ask("squeue", "--noheader", "--format=%i").split())


def questions(site: Site) -> list[tuple[float, list[str]]]:
    """Return when Snakemake asked for the states of jobs, and of which."""
    try:
        lines = (site.path / "squeue.calls").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = [re.match(r"(\S+) .*--jobs=(\S+)", line) for line in lines]
    return [(float(match[1]), match[2].split(",")) for match in found if match]


def test_a_cancelled_job_is_noticed_where_accounting_names_the_user(site):
    """`CANCELLED by 0` is a state that the executor does not know."""
    sheet = site.sheet("slow", {"slow": {}})
    (site.path / "hold").touch()
    process = start(site, sheet, "--until", "fine_tune", "--retries", "0")
    job = wait_until("the job runs", lambda: site.job("slow"), during=process)
    site.ask("scancel", job)
    assert process.wait(WAIT_SECONDS) == 1
