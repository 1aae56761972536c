"""Every command of the docs is run as it stands, after the demo, or is listed here with a reason.

What needs ADE20K or full-size models is run with the demo's of its kind (`SMALLER`).
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess

import pytest
import requests
from checkouts import ROOT, Checkout
from waiting import wait_until

PAGES = (
    "README.md",
    "config/README.md",
    "results/README.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
PROGRAMS = "bash|cae-seg|conda|make|mlflow|pip|pytest|python|snakemake|source|squeue|uv"
INLINE = re.compile(rf"`((?:{PROGRAMS})\s[^`]+)`")
# Names a command, and is none to type.
FORM = re.compile(r"…|\b(CONFIG|FAMILY|FOLDER)\b|^cae-seg (prepare )?\w+$")

# Where the command itself is run.
ELSEWHERE = {
    "make install && source .venv/bin/activate": "tests/test_make.py",
    "make install": "tests/test_make.py",
    "make install TORCH=cpu": "tests/test_make.py",
    "make install TORCH=cu126": "tests/test_make.py",
    "make docs": "tests/test_docs.py",
    "make ui PORT=5001": "tests/workflow/test_docs_commands.py",  # on a free port
    "snakemake --profile demo": "tests/conftest.py",
    "snakemake --profile demo --report report.html": "tests/workflow/test_demo_run.py",
    "snakemake --unlock": "tests/workflow/test_start.py",
    "cae-seg evaluate --aug-test": "tests/engine/test_evaluation_settings.py",
    # With a smaller crop and random weights.
    "cae-seg train mmseg::pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py --iterations 20000 "
    "--batch-size 8 --crop-size 256 256 --work-dir work_dirs/pspnet --options "
    "model.pretrained=open-mmlab://resnet18_v1c model.backbone.depth=18 "
    "model.decode_head.in_channels=512 "
    "model.auxiliary_head.in_channels=256": "tests/engine/test_zoo_training.py",
    "cae-seg train CONFIG --work-dir runs/low --learning-rate 1e-4 --next CONFIG "
    "--work-dir runs/high --learning-rate 1e-3": "tests/engine/test_together.py",
    # On the test cluster, with small sheets.
    "snakemake --profile slurm results/table.md": "tests/slurm/test_survival.py",
    "snakemake --profile slurm --config sheet=config/sweep.yaml": "tests/slurm/test_survival.py",
    "snakemake --profile slurm --config sheet=config/demo.yaml": "tests/slurm/test_survival.py",
    "snakemake results/sweep/table.md --profile slurm --config "
    "sheet=config/sweep.yaml": "tests/slurm/test_survival.py",
    "snakemake results/backbones/table.md --profile slurm --config "
    "sheet=config/backbones.yaml": "tests/slurm/test_survival.py",
    "tests/slurm/cluster.py up": "tests/slurm/conftest.py",
    'eval "$(tests/slurm/cluster.py env)"': "tests/slurm/conftest.py",
    "tests/slurm/cluster.py down": "tests/slurm/conftest.py",
    # The worked examples of own_backbone.md, own_head.md and own_data.md.
    "PYTHONPATH=. snakemake results/stripes/table.md --profile local --config "
    "sheet=config/stripes.yaml": "tests/test_own_parts_pages.py",
    "PYTHONPATH=. snakemake results/onelayer/table.md --profile local --config "
    "sheet=config/onelayer.yaml": "tests/test_own_parts_pages.py",
    "cae-seg prepare data --type folder --source leaves --root data/leaves --manifest "
    "data/leaves/manifest.json": "tests/test_own_data_page.py",
    "snakemake results/leaves/table.md --profile local --config "
    "sheet=config/leaves.yaml": "tests/test_own_data_page.py",
    "cae-seg predict results/leaves/leaves_tiny/seed_0/work/weights.pth leaves/images/val "
    "--out predictions": "tests/test_own_data_page.py",
    # The shared server of tracking.md.
    "mlflow server --host 0.0.0.0 --port 5000 --allowed-hosts tracker.example.org:5000 "
    "--backend-store-uri sqlite:///mlflow.db --artifacts-destination "
    "mlartifacts": "tests/tracking/test_tracking_page.py",
    "export "
    "MLFLOW_TRACKING_URI=http://tracker.example.org:5000": "tests/tracking/test_tracking_page.py",
}
# What no test runs, and why.
NOT_RUN = {
    "make test": "runs this test",
    "make chaos": "takes hours; make test runs one of its sequences",
    "make fuzz": "takes hours; make test draws fewer inputs",
    "make bench": "takes hours; tests/benchmarks runs its cases on small sizes",
    "make zoo": "takes ten minutes; tests/benchmarks/test_zoo.py checks some of the configs",
    "conda env create -f environment.yml": "installs gigabytes from the network",
    "uv sync": "installs gigabytes from the network",
    "pip install onnx onnxscript onnxruntime": "installs from the network",
    "snakemake --profile ./my_site": "stands for a profile that a site writes",
    'squeue --me --format="%i %T %M %j"': "is SLURM's own",
    'CAE_SEG_FIDELITY=fidelity.jsonl pytest tests/models tests/data -m "not gpu"': "is the tests",
    "python tests/fidelity.py fidelity.jsonl": "needs the numbers of all those tests",
    "pytest -m gpu": "needs a GPU",
    "cae-seg prepare data --source "
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip --expected "
    "training=20210 validation=2000": "downloads ADE20K",
    "bash tools/dist_test.sh configs_local/cae/upernet/"
    "upernet_cae_base_12_512_slide_160k_ade20k_pt_1e-4.py <FINE_TUNED>.pth 8 --eval "
    "mIoU": "needs published weights",
}
IN_ORDER = ("docs/tutorial.md", "docs/api.md")  # each command needs what those before it wrote
DIST = "bash tools/dist_"
NEVER_ENDS = ("make ui", "--watch")
BASE = "upernet_cae_base_12_512_slide_160k_ade20k_pt_1e-4"
SMALLER = {
    rf"{BASE}\.py": "upernet_cae_tiny_demo.py",
    BASE: "upernet_swin_demo",
    r"config/(published|sweep)\.yaml": "config/demo.yaml",
    r"results/(table\.md|vit_b_1600/)": r"results/demo/\1",
    "/vit_b_1600/": "/tiny_1600_lr3e-3/",
    r"checkpoints/cae_base_1600ep|<PRETRAINED>": "data/demo/checkpoints/cae_tiny_1600e",
    r"^cae-seg prepare data --verify": "cae-seg prepare data --verify --root data/demo/ade20k "
    "--source data/demo/ADEChallengeData2016.zip --manifest data/demo/ade20k/manifest.json",
    "iterations: 100": "iterations: 10",
    r"\.py 8 --work-dir": ".py 2 --device cpu --data data/demo/ade20k/manifest.json --iterations 2 "
    "--work-dir",
    r"\.pth 8 --eval": ".pth 2 --device cpu --data data/demo/ade20k/manifest.json --eval",
}

# What a command with these words must make again.
MADE = {
    "metrics.json": "results/demo/tiny_1600_lr3e-3/metrics.json",
    "upernet_swin_demo": "results/demo/swin_lr1e-3/metrics.json",
}


def lines(block: str) -> list[str]:
    """Return the commands of a block, without comments."""
    return [re.sub(r"\s+# .*", "", line) for line in block.splitlines() if line.strip()]


def typed(page: str) -> list[str]:
    """Return the commands in the blocks of a page."""
    found = FENCE.findall((ROOT / page).read_text())
    return [line for _, language, block in found if language == "bash" for line in lines(block)]


def mentioned(page: str) -> list[str]:
    """Return the commands in the sentences of a page."""
    found = INLINE.findall(FENCE.sub("", (ROOT / page).read_text()))
    return [line for line in (" ".join(text.split()) for text in found) if not FORM.search(line)]


def commands() -> set[str]:
    return {line for page in PAGES for line in typed(page) + mentioned(page)}


def listed() -> set[str]:
    return {*ELSEWHERE, *NOT_RUN}


def others() -> list[str]:
    """Return the commands that can be run each for itself, on the demo's data and models."""
    in_order = {line for page in IN_ORDER for line in typed(page)}
    found = commands() - in_order - listed()
    return sorted({on_demo(line) for line in found if not line.startswith(DIST)})


def smaller(text: str) -> str:
    """Return a command or sheet on the demo's data and models."""
    for large, small in SMALLER.items():
        text = re.sub(large, small, text)
    return text


def on_demo(command: str) -> str:
    """Return a command on the demo's data, models and sheet; a plan stays as it is."""
    if "--dry-run" in command:
        return command
    command = smaller(command)
    words = shlex.split(command)
    takes_sheet = words[:2] in (["cae-seg", "table"], ["cae-seg", "status"])
    if takes_sheet and "--sheet" not in words:  # the published sheet by default
        command += " --sheet config/demo.yaml"
    if words[0] == "snakemake" and "--config" not in words:
        command += " --config sheet=config/demo.yaml"
    return command


def test_every_listed_command_is_in_the_docs_and_its_test_exists():
    assert listed() - commands() == set()
    assert [test for test in ELSEWHERE.values() if not (ROOT / test).is_file()] == []


def test_no_command_of_the_docs_hides_in_a_block_of_another_language():
    hidden = rf"^(?:\w+=\S+ )?(?:{PROGRAMS}|tests/\S+) "
    for page in PAGES:
        for _, language, block in FENCE.findall((ROOT / page).read_text()):
            if language in ("", "text"):
                assert re.findall(hidden, block, re.MULTILINE) == [], page


def test_every_command_that_the_docs_name_exists():
    named = {
        name
        for page in PAGES
        for name in re.findall(r"`cae-seg (\w[\w-]*)", (ROOT / page).read_text())
    }
    answer = subprocess.run(["cae-seg", "--help"], capture_output=True, text=True, check=True)
    assert named
    assert [
        name for name in named if not re.search(rf"^ +{name}\b", answer.stdout, re.MULTILINE)
    ] == []


@pytest.fixture(scope="module")
def after_demo(demo_run, tmp_path_factory) -> Checkout:
    """A copy of the finished demo to work in, with the downloaded checkpoints as empty files."""
    copy = Checkout.__new__(Checkout)
    copy.path = tmp_path_factory.mktemp("after") / "demo"
    shutil.copytree(demo_run.path, copy.path, symlinks=True)
    for name in re.findall(
        r"checkpoints/[\w.-]+\.pth", (ROOT / "config/published.yaml").read_text()
    ):
        (copy.path / name).parent.mkdir(exist_ok=True)
        (copy.path / name).touch()
    return copy


def run(copy: Checkout, command: str) -> str:
    """Run one command or block in a copy; return its output."""
    if any(word in command for word in NEVER_ENDS):
        return look_at(copy, command)
    # The doctor tells by its status what this machine lacks, such as a SLURM that answers.
    return copy.shell(command, good=(0, 1) if "doctor" in command else (0,))


def look_at(copy: Checkout, command: str) -> str:
    """Start what runs until Ctrl-C, wait until it has answered, and end it so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serves = command.startswith("make ui")
    output = copy.path / "shown.txt"
    with output.open("w") as stream:
        process = subprocess.Popen(
            shlex.split(f"make ui PORT={port}" if serves else command),
            cwd=copy.path,
            env=copy.environment(),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        shown = r"http://\S+\n" if serves else "\n"
        wait_until(
            f"{command} prints {shown!r}",
            lambda: re.search(shown, output.read_text()),
            during=process,
        )
        if serves:
            address = re.search(r"http://\S+", output.read_text())[0]
            assert f":{port}/" in address
            wait_until("the UI answers", lambda: answers(address), during=process)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    return output.read_text()


def answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_tutorial_runs_as_it_is_written(after_demo):
    page = (ROOT / "docs/tutorial.md").read_text()
    shown = {}
    for _, language, block in FENCE.findall(page):
        if language == "yaml":
            (after_demo.path / "config/mine.yaml").write_text(smaller(block))
        elif language == "bash":
            shown[block] = run(after_demo, "\n".join(lines(block)))
    plan = next(text for block, text in shown.items() if "--dry-run" in block)
    (promised,) = re.findall(r"^inspect_checkpoint.*?^total +\d+$", page, re.MULTILINE | re.DOTALL)
    counts = re.findall(r"^(\w+) +(\d+)$", promised, re.MULTILINE)
    assert set(counts) <= set(re.findall(r"^(\w+) +(\d+)$", plan, re.MULTILINE))
    table = (after_demo.path / "results/mine/table.md").read_text()
    assert re.search(r"\| ViT-tiny +\| 300 .*\| mine ", table)
    assert len(list((after_demo.path / "predictions").iterdir())) == 48
    assert "mine_seed0.html" in (after_demo.path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_page_of_the_python_interface_runs_as_it_is_written(after_demo):
    images = after_demo.path.glob("data/demo/ade20k/ADEChallengeData2016/images/validation/*.jpg")
    for name, source in zip(("image.jpg", "a.jpg", "b.jpg"), images, strict=False):
        shutil.copy2(source, after_demo.path / name)
    for _, language, block in FENCE.findall((ROOT / "docs/api.md").read_text()):
        if language == "python":
            (after_demo.path / "shown.py").write_text(block)
            run(after_demo, "python shown.py")
        elif language == "bash":
            run(after_demo, block)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_published_command_lines_of_the_readme_work(after_demo):
    train, evaluate = (line for line in typed("README.md") if line.startswith(DIST))
    trained = run(after_demo, smaller(train))
    extra = "--out scores.pkl --show-dir shown"
    evaluated = run(after_demo, f"{smaller(evaluate)} {extra}")
    (score,) = set(re.findall(r"mIoU \d+\.\d\d", evaluated))
    assert score in trained
    assert (after_demo.path / "scores.pkl").exists()
    assert len(list((after_demo.path / "shown").iterdir())) == 24


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", others(), ids=lambda command: command[:90])
def test_a_command_of_the_docs_works_after_the_demo(command, after_demo):
    made = [file for word, file in MADE.items() if word in command]
    for file in made:
        (after_demo.path / file).unlink()
    run(after_demo, command)
    assert [file for file in made if not (after_demo.path / file).exists()] == []
