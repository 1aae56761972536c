"""Random faults at random moments of a training; the results are those of an uninterrupted run.

A sequence of faults is drawn from the seed that is printed: CAE_SEG_CHAOS_SEED repeats one, though
not its moments. `make chaos` draws CAE_SEG_CHAOS of them, `make test` runs a short one.
"""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, start, stop
from interrupted_runs import ITERATIONS, MEASURES, Run, tracked_runs
from slurm_site import Site
from waiting import wait_until

SEQUENCES = int(os.environ.get("CAE_SEG_CHAOS", "0"))
SEED = os.environ.get("CAE_SEG_CHAOS_SEED")
SHORT = 815  # kill_snakemake, kill_rank, damage_checkpoint
ROW = {"resources": {"slurm_partition": "requeue"}}

pytestmark = pytest.mark.timeout(1800)


@dataclass
class Scene:
    """A run in training, and all that can be broken around it."""

    site: Site
    sheet: str
    store: str
    chance: random.Random
    snakemake: subprocess.Popen | None = None

    @property
    def run(self) -> Run:
        """The run."""
        return self.site.run(self.sheet, "chaos")

    def start(self) -> None:
        """Start Snakemake, as after a crash, unless it is running."""
        if self.snakemake is not None and self.snakemake.poll() is None:
            return
        if self.snakemake is not None:
            self.site.unlock()
        uri = f"sqlite:///{self.store}"
        self.snakemake = self.site.snakemake(self.sheet, MLFLOW_TRACKING_URI=uri)

    def trained(self) -> int:
        """Return the last iteration in the record."""
        return max((line["iteration"] for line in self.run.lines("train")), default=0)

    def tree(self) -> list[psutil.Process]:
        """Return launcher and ranks."""
        found = self.run.processes()
        for process in found[:]:
            try:
                found += process.children(recursive=True)
            except psutil.NoSuchProcess:
                continue
        return list(dict.fromkeys(found))


def send(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def kill_rank(scene: Scene) -> None:
    ranks = [p for p in scene.tree() if p not in scene.run.processes()]
    send(ranks and [scene.chance.choice(ranks)], signal.SIGKILL)


def kill_launcher(scene: Scene) -> None:
    send(scene.run.processes()[:1], signal.SIGKILL)


def ask_to_stop(scene: Scene) -> None:
    """Send one of the signals to launcher, ranks or all at once."""
    tree, launcher = scene.tree(), scene.run.processes()
    chosen = scene.chance.choice([launcher, [p for p in tree if p not in launcher], tree])
    send(chosen, scene.chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]))


def kill_batch_shell(scene: Scene) -> None:
    job = scene.site.job("chaos")
    spool = re.compile(rf"{scene.site.cluster}/.*/job{job.zfill(5)}/slurm_script")
    shells = [
        process
        for process in psutil.process_iter(["cmdline"])
        if spool.search(" ".join(process.info["cmdline"] or []))
    ]
    send(shells if job else [], signal.SIGKILL)


def kill_snakemake(scene: Scene) -> None:
    os.killpg(scene.snakemake.pid, signal.SIGKILL)
    scene.snakemake.wait()


def restart_controller(scene: Scene) -> None:
    cluster = Cluster(scene.site.cluster)
    stop(cluster, "slurmctld", signal.SIGKILL)
    time.sleep(scene.chance.uniform(1, 8))
    start(cluster, "slurmctld")


def requeue(scene: Scene) -> None:
    if job := scene.site.job("chaos"):
        scene.site.ask("scontrol", "requeue", job, check=False)


def pre_empt(scene: Scene) -> None:
    for node in ("n1", "n2"):
        scene.site.seize(node, seconds=3)


def lose_node(scene: Scene) -> None:
    job = scene.site.job("chaos")
    if not job:
        return
    node = scene.site.ask("squeue", "--noheader", "--format=%N", f"--jobs={job}")
    change = ("scontrol", "update", f"NodeName={node}")
    scene.site.ask(*change, "State=DOWN", "Reason=test")
    wait_until("the job is off its node", lambda: not scene.site.steps(job))
    scene.site.ask(*change, "State=RESUME")


def damage_checkpoint(scene: Scene) -> None:
    """Cut the newest checkpoint or flip a bit of it, under a run that is then killed."""
    kill_launcher(scene)
    found = sorted(scene.run.work.glob("checkpoints/iter_*.pth"), key=lambda p: p.stat().st_mtime)
    if not found:
        return
    data = bytearray(found[-1].read_bytes())
    if scene.chance.random() < 0.5:
        data[scene.chance.randrange(len(data))] ^= 1 << scene.chance.randrange(8)
    else:
        del data[scene.chance.randrange(len(data)) :]
    found[-1].write_bytes(data)


def tear_facts(scene: Scene) -> None:
    kill_launcher(scene)
    metadata = scene.run.work / "run_metadata.json"
    if metadata.exists():
        metadata.write_text(metadata.read_text()[: scene.chance.randrange(200)])


def fill_disk(scene: Scene) -> None:
    """Let no file of the run grow beyond a few bytes for a while."""
    tree = scene.tree()
    for size in (1000, psutil.RLIM_INFINITY):
        for process in tree:
            try:
                process.rlimit(psutil.RLIMIT_FSIZE, (size, psutil.RLIM_INFINITY))
            except psutil.NoSuchProcess:
                continue
        time.sleep(scene.chance.uniform(0.5, 3) if size == 1000 else 0)


def break_tracker(scene: Scene) -> None:
    """Take the tracker's database away for a while."""
    path = Path(scene.store)
    if path.exists():
        away = path.rename(path.with_suffix(".away"))
        path.mkdir()  # root may read any file, but no folder is a database
        time.sleep(scene.chance.uniform(0.5, 3))
        path.rmdir()
        away.rename(path)


FAULTS: list[Callable[[Scene], None]] = [
    kill_rank,
    kill_launcher,
    ask_to_stop,
    kill_batch_shell,
    kill_snakemake,
    restart_controller,
    requeue,
    pre_empt,
    lose_node,
    damage_checkpoint,
    tear_facts,
    fill_disk,
    break_tracker,
]


def seeds() -> Iterator[int]:
    """Yield the seeds of the sequences."""
    if SEED or not SEQUENCES:
        yield int(SEED or SHORT)  # processes of pytest-xdist must collect the same tests
    else:
        yield from (random.SystemRandom().randrange(10**9) for _ in range(SEQUENCES))


def draw(chance: random.Random) -> list[Callable[[Scene], None]]:
    """Return 3 to 8 faults."""
    return [chance.choice(FAULTS) for _ in range(chance.randint(3, 8))]


@pytest.mark.parametrize("seed", list(seeds()))
def test_random_faults_leave_the_results_of_an_uninterrupted_run(site, baseline, seed):
    chance = random.Random(seed)
    sheet = site.sheet(f"chaos{seed}", {"chaos": ROW})
    scene = Scene(site, sheet, f"{site.path}/chaos{seed}.db", chance)
    faults = draw(chance)
    print(f"CAE_SEG_CHAOS_SEED={seed}:", *(fault.__name__ for fault in faults))
    scene.start()
    done = 0
    for fault in faults:
        reached = scene.trained() + chance.randint(1, ITERATIONS // len(faults) // 2)
        wait_until(f"iteration {reached}", lambda n=reached: trains_or_ended(scene, n))
        if scene.run.events("finish"):
            break
        time.sleep(chance.uniform(0, 1))
        fault(scene)
        done += 1
        scene.start()
    status = scene.snakemake.wait(900)
    for _ in range(2):  # retries may have been used up
        if status:
            scene.start()
            status = scene.snakemake.wait(900)
    assert status == 0, site.output(sheet)[-3000:]
    attempts, repeated = scene.run.json("run.json")["attempts"], scene.run.repeated()
    print(f"{done} faults, {attempts} attempts, {repeated} iterations repeated")
    assert scene.run.weights() == baseline.weights()
    for key in MEASURES:
        assert scene.run.json("metrics.json")[key] == baseline.json("metrics.json")[key]
    assert tracked_runs(scene.store) == (1, [])


def trains_or_ended(scene: Scene, iteration: int) -> bool:
    """Whether the run has come to an iteration; Snakemake is started again if it has ended."""
    if scene.snakemake.poll() is not None and not scene.run.events("finish"):
        scene.start()
    return scene.trained() >= iteration or bool(scene.run.events("finish"))
