#!/usr/bin/env python3
"""Bring a whole SLURM cluster up and down on this one machine.

    tests/slurm/cluster.py up             install what is missing, start, wait until jobs can run
    eval "$(tests/slurm/cluster.py env)"  point this shell's sbatch, squeue, sacct, snakemake at it
    tests/slurm/cluster.py status         what runs, and sinfo
    tests/slurm/cluster.py down           stop everything and remove every file

Munge, MariaDB, slurmdbd, slurmctld and two slurmd run as the calling user, on loopback and on free
ports, with all their state below `$CAE_SEG_CLUSTER_DIR` (by default a folder of the user's in the
temporary folder). Nothing is started by systemd and no file outside that folder is touched, apart
from the Debian packages that `up` installs when it runs as root and they are missing.

Two nodes, `n1` with eight GPUs of type a100 and `n2` with eight of type h100: the GPUs are ordinary
files, the CPUs and the memory are more than there are. Partitions: `main` (the default), `requeue`
and `cancel`, whose jobs a job in `urgent` pre-empts in the way they are named after.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")
APT_WAIT = "-oDPkg::Lock::Timeout=900"  # seconds for another apt-get to end
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch")
# Started in this order, stopped in the reverse one.
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd-n1", "slurmd-n2")
GPUS = 8
NODES = {"n1": "a100", "n2": "h100"}

SLURM_CONF = """\
ClusterName=caeseg
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
AuthType=auth/munge
# A requeued job waits as long as its old credential could live (120 s by default), and a busy
# machine needs some seconds to start a job with a fresh one.
AuthInfo=socket={root}/munge.socket,cred_expire=20
MessageTimeout=100
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=1
KillWait={kill_wait}
MinJobAge=300
SlurmdTimeout=300
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStorageEnforce=associations,limits,qos
AccountingStoragePass={root}/munge.socket
AccountingStorageTRES=gres/gpu,gres/gpu:a100,gres/gpu:h100
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=32 RealMemory=200000 \
Gres=gpu:a100:8 Feature=first
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=32 RealMemory=200000 \
Gres=gpu:h100:8 Feature=second
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=OFF MaxTime=7-0 \
OverTimeLimit=0 DefaultTime=60
PartitionName=requeue Nodes=n1,n2 PriorityTier=1 PreemptMode=REQUEUE MaxTime=7-0
PartitionName=cancel Nodes=n1,n2 PriorityTier=1 PreemptMode=CANCEL MaxTime=7-0
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF MaxTime=7-0
"""

SLURMDBD_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
LogFile={root}/log/slurmdbd.log
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""

MARIADB_CONF = """\
[mariadbd]
datadir={root}/mariadb
socket={root}/mariadb.socket
pid-file={root}/mariadbd.pid
log-error={root}/log/mariadbd.log
bind-address=127.0.0.1
port={mariadbd}
user={user}
innodb_buffer_pool_size=64M
innodb_flush_log_at_trx_commit=0
innodb_flush_method=nosync
performance_schema=OFF
"""

# Debian's account of the database's administrator; ours may log in over loopback as well.
MARIADB_USER = """\
CREATE DATABASE slurm_acct_db;
CREATE USER 'slurm'@'localhost' IDENTIFIED BY 'slurm';
CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
"""

# Snakemake's worker takes SLURM_CONF out of the environment before it calls srun.
SRUN = """\
#!/bin/sh
SLURM_CONF={conf} exec {srun} "$@"
"""


class ClusterError(Exception):
    """A reason, for people, why there is no cluster."""


@dataclass(frozen=True)
class Cluster:
    """The place of one cluster on disk; whether it runs is asked of the processes each time."""

    root: Path

    def environment(self) -> dict[str, str]:
        """Return the variables that point SLURM's commands at this cluster."""
        path = [one for one in os.environ.get("PATH", "").split(":") if one != f"{self.root}/bin"]
        return {
            "SLURM_CONF": f"{self.root}/slurm.conf",
            "CAE_SEG_CLUSTER_DIR": str(self.root),
            "PATH": ":".join([f"{self.root}/bin", *path]),
        }

    def pid(self, daemon: str) -> int | None:
        """Return the process id of a daemon that lives, or None."""
        try:
            pid = int((self.root / f"{daemon}.pid").read_text())
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except (OSError, ValueError):
            return None
        return pid if name == daemon.split("-")[0] else None

    def run(self, *command: str, check: bool = True, text: str | None = None) -> str:
        """Run a command against this cluster and return what it printed.

        Raises:
            ClusterError: it failed; the message holds the command and what it printed.
        """
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment()},
            input=text,
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            raise ClusterError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout


def default_root() -> Path:
    """Return the cluster's folder: `$CAE_SEG_CLUSTER_DIR`, or one of the user's own."""
    fallback = Path(tempfile.gettempdir()) / f"cae-seg-cluster-{getpass.getuser()}"
    return Path(os.environ.get("CAE_SEG_CLUSTER_DIR") or fallback)


def search_path() -> None:
    """Add the administrator's folders, where the daemons lie, to a user's `PATH`."""
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def install() -> None:
    """Install the Debian packages that are missing.

    Raises:
        ClusterError: they are missing and this user or machine cannot install them.
    """
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if not missing:
        return
    remedy = f"install them with `apt-get install {' '.join(PACKAGES)}`"
    if not shutil.which("apt-get"):
        raise ClusterError(f"{', '.join(missing)} missing, and no apt-get here; {remedy} on Debian")
    if os.geteuid() != 0:
        raise ClusterError(f"{', '.join(missing)} missing, and only root may install; {remedy}")
    print(f"installing {' '.join(PACKAGES)}", file=sys.stderr)
    with no_services():
        for command in (
            ["apt-get", "update", APT_WAIT],
            ["apt-get", "install", "-y", "--no-install-recommends", APT_WAIT, *PACKAGES],
        ):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise ClusterError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")


@contextlib.contextmanager
def no_services():
    """Keep apt from starting the daemons it installs: ours run elsewhere."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            policy.unlink()


def free_ports(count: int) -> list[int]:
    """Return ports that nothing on loopback listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def write_configuration(cluster: Cluster, kill_wait: int) -> None:
    """Lay the folder out and write every daemon's configuration."""
    root = cluster.root
    for folder in ("state", "spool", "log", "gpus", "mariadb", "bin"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = ("mariadbd", "slurmdbd", "slurmctld", "n1", "n2")
    values = {
        **dict(zip(names, free_ports(len(names)), strict=True)),
        "root": root,
        "user": getpass.getuser(),
        "host": socket.gethostname().split(".")[0],
        "kill_wait": kill_wait,
    }
    gres = []
    for node, kind in NODES.items():
        for number in range(GPUS):
            (root / "gpus" / f"{node}-{number}").touch()
        files = f"{root}/gpus/{node}-[0-{GPUS - 1}]"
        gres.append(f"NodeName={node} Name=gpu Type={kind} File={files}\n")
    (root / "gres.conf").write_text("".join(gres))
    (root / "slurm.conf").write_text(SLURM_CONF.format(**values))
    (root / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(**values))
    (root / "slurmdbd.conf").chmod(0o600)
    (root / "mariadb.conf").write_text(MARIADB_CONF.format(**values))
    srun = root / "bin" / "srun"
    srun.write_text(SRUN.format(conf=root / "slurm.conf", srun=shutil.which("srun")))
    srun.chmod(0o755)
    key = root / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))


def wait_for(what: str, ready: Callable[[], object], seconds: float = 300) -> None:
    """Wait until `ready` returns something true.

    Raises:
        ClusterError: it did not within the time.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise ClusterError(f"{what} did not come up within {seconds:.0f} s")
        time.sleep(0.1)


def start(cluster: Cluster, daemon: str) -> None:
    """Start one daemon, unless it lives."""
    if cluster.pid(daemon):
        return
    root = cluster.root
    if daemon == "munged":
        names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        names |= {"log-file": "log/munged.log", "seed-file": "munge.seed"}
        cluster.run(
            "munged", "--force", *(f"--{key}={root / value}" for key, value in names.items())
        )
    elif daemon == "mariadbd":
        start_database(cluster)
    elif daemon.startswith("slurmd-"):
        cluster.run("slurmd", "-N", daemon.removeprefix("slurmd-"))
    else:
        cluster.run(daemon)
    wait_for(daemon, lambda: cluster.pid(daemon))


def start_database(cluster: Cluster) -> None:
    """Start MariaDB; the first time make its data folder and the account of slurmdbd."""
    root = cluster.root
    options = f"--defaults-file={root / 'mariadb.conf'}"
    fresh = not (root / "mariadb" / "mysql").exists()
    if fresh:
        cluster.run("mariadb-install-db", options, "--skip-test-db")
    with (root / "log" / "mariadbd.out").open("a") as out:
        subprocess.Popen(
            ["mariadbd", options], stdout=out, stderr=out, stdin=out, start_new_session=True
        )
    client = ["mariadb", "--no-defaults", f"--socket={root / 'mariadb.socket'}"]
    wait_for("mariadbd", lambda: cluster.run(*client, "-e", "SELECT 1", check=False))
    if fresh:
        cluster.run(*client, text=MARIADB_USER)


def register(cluster: Cluster) -> None:
    """Enter the cluster, two accounts and a second quality of service into the accounting."""
    wait_for("sacctmgr", lambda: cluster.run("sacctmgr", "-n", "show", "qos", check=False))
    if "caeseg" in cluster.run("sacctmgr", "-n", "-P", "show", "cluster", "format=cluster"):
        return
    user = getpass.getuser()
    for words in (
        "add cluster caeseg",
        "add qos long",
        "add account research",
        "add account teaching",
        f"add user {user} account=research,teaching defaultaccount=research",
        f"modify user {user} set qos=normal,long",
    ):
        cluster.run("sacctmgr", "-i", *words.split())


def up(cluster: Cluster, kill_wait: int = 120) -> None:
    """Bring the cluster up, or what of it is down, and wait until it can run jobs."""
    install()
    if not (cluster.root / "slurm.conf").exists():
        write_configuration(cluster, kill_wait)
    for daemon in DAEMONS:
        start(cluster, daemon)
        if daemon == "slurmdbd":
            register(cluster)
    wait_for("the nodes", lambda: idle_nodes(cluster) == len(NODES))


def idle_nodes(cluster: Cluster) -> int:
    """Return how many nodes can take a job."""
    states = cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%t", check=False).split()
    return sum(state in ("idle", "mix", "alloc") for state in states)


def stop(cluster: Cluster, daemon: str, number: int = signal.SIGTERM) -> None:
    """Stop one daemon and wait for its end; SIGKILL where it does not listen."""
    pid = cluster.pid(daemon)
    if pid is None:
        return
    os.kill(pid, number)
    with contextlib.suppress(ClusterError):
        wait_for(daemon, lambda: not cluster.pid(daemon), 20)
        return
    os.kill(pid, signal.SIGKILL)


def down(cluster: Cluster) -> None:
    """Cancel the jobs, stop every process of the cluster, remove its folder."""
    if cluster.pid("slurmctld"):
        cluster.run("scancel", "--user", getpass.getuser(), check=False)
    for daemon in reversed(DAEMONS):
        stop(cluster, daemon)
    for pid in leftovers(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(cluster.root, ignore_errors=True)


def leftovers(cluster: Cluster) -> list[int]:
    """Return the processes of jobs and job steps that outlived the daemons of this cluster."""
    ours = f"SLURM_CONF={cluster.root / 'slurm.conf'}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (process / "environ").read_bytes().split(b"\0")
            in_job = any(one.startswith((b"SLURM_JOB_ID=", b"SLURMD_")) for one in variables)
            daemon = re.match(r"slurm(stepd|d|ctld)", (process / "comm").read_text())
            if ours in variables and (in_job or daemon):
                found.append(int(process.name))
    return [pid for pid in found if pid != os.getpid()]


def status(cluster: Cluster) -> int:
    """Print what runs; return 0 if everything does."""
    for daemon in DAEMONS:
        print(f"{daemon:10} {cluster.pid(daemon) or 'down'}")
    if not all(map(cluster.pid, DAEMONS)):
        return 1
    print(cluster.run("sinfo", "-o", "%12P %.5a %.10l %.5D %.6t %.20G %N"), end="")
    return 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("up", "down", "status", "env"))
    parser.add_argument(
        "--kill-wait",
        type=int,
        default=120,
        help="seconds between SLURM's SIGTERM and SIGKILL (SLURM's own default is 30)",
    )
    arguments = parser.parse_args()
    search_path()
    cluster = Cluster(default_root())
    try:
        if arguments.command == "up":
            up(cluster, arguments.kill_wait)
            return status(cluster)
        if arguments.command == "down":
            down(cluster)
        if arguments.command == "status":
            return status(cluster)
        if arguments.command == "env":
            for name, value in cluster.environment().items():
                print(f"export {name}={value}")
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
