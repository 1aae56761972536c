"""The demo, for real: from an archive to the table by the installed `cae-seg`."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import open_browser, require_browser
from mmengine.config import Config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

RUNS = [
    ("tiny_300_lr1e-3", 0),
    ("tiny_300_lr3e-3", 0),
    ("tiny_1600_lr1e-3", 0),
    ("tiny_1600_lr1e-3", 1),
    ("tiny_1600_lr3e-3", 0),
    ("swin_lr1e-3", 0),
    ("vit_frozen_lr1e-2", 0),
]
README = Path(__file__).parents[2] / "README.md"
COLUMNS = ["Backbone", "#Pretrained Epoch", "mIoU", "Config"]


def read(demo_run, file):
    return json.loads((demo_run.path / "results/demo" / file).read_text())


def untrained_miou(demo_run, folder: Path) -> float:
    """Return the mIoU (percent) of the demo's model before its first step."""
    import torch
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    import cae_seg.registration  # noqa: F401

    config = demo_run.path / "results/demo/tiny_1600_lr1e-3/seed_0/config.py"
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    torch.save({"state_dict": model.state_dict()}, folder / "untrained.pth")
    subprocess.run(
        [Path(sys.executable).parent / "cae-seg", "evaluate", config, folder / "untrained.pth",
         "--device", "cpu", "--data", "data/demo/ade20k/manifest.json",
         "--out", folder / "untrained.json"],
        cwd=demo_run.path, check=True, env=os.environ | {"PYTHONPATH": str(demo_run.path)},
    )  # fmt: skip
    return json.loads((folder / "untrained.json").read_text())["mIoU"]


def test_every_run_is_far_better_than_the_untrained_model(demo_run, tmp_path):
    untrained = untrained_miou(demo_run, tmp_path)
    assert untrained < 5
    for name, seed in RUNS:
        assert read(demo_run, f"{name}/seed_{seed}/metrics.json")["mIoU"] > untrained + 25


def test_the_table_holds_every_row_with_the_numbers_of_its_files(demo_run):
    table = (demo_run.path / "results/demo/table.md").read_text()
    header = next(line for line in table.splitlines() if line.startswith("|"))
    shown = [cell.strip() for cell in header.strip("|").split("|")]
    assert shown[:4] == COLUMNS
    assert {"Method", "Head"} < set(shown)
    with (demo_run.path / "results/demo/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {(row["Backbone"], row["head"]) for row in rows} == {
        ("ViT-tiny", "UperNet"), ("Swin-demo", "UperNet"), ("ViT-Ti/16", "linear")}  # fmt: skip
    written = sorted(float(row["mIoU"]) for row in rows)
    measured = sorted(read(demo_run, f"{name}/metrics.json")["mIoU"] for name in dict(RUNS))
    assert written == pytest.approx(measured)


def test_two_seeds_make_one_row_with_a_spread(demo_run):
    joined = read(demo_run, "tiny_1600_lr1e-3/metrics.json")
    assert joined["n"] == 2
    assert joined["mIoU_std"] > 0


def test_every_run_was_tracked(demo_run):
    for name, seed in RUNS:
        assert read(demo_run, f"{name}/seed_{seed}/tracked.json")["delivered"] is True


def test_the_metadata_of_a_run_is_written(demo_run):
    metadata = read(demo_run, "tiny_300_lr3e-3/seed_0/run.json")
    assert metadata["learning_rate"] == 3e-3
    assert metadata["checkpoint"]["resized"] > 0
    assert metadata["data"]["images"] == {"training": 64, "validation": 24}
    config = Config.fromfile(demo_run.path / "results/demo/tiny_300_lr3e-3/seed_0/config.py")
    assert config.optim_wrapper.optimizer.lr == 3e-3


def test_a_person_watching_sees_progress_and_no_chatter(demo_run):
    assert re.search(
        r"train tiny_\S+ seed 0: \d+/\d+ iterations .* left, loss \d.*, lr \d", demo_run.output
    )
    assert re.search(r"mIoU \d+\.\d+", demo_run.output)
    assert re.search(r"\d+ of \d+ steps \(\d+%\) done", demo_run.output)
    assert "Warning" not in demo_run.output
    assert "OneDL" not in demo_run.output


def test_a_second_start_has_nothing_to_do(demo_run):
    assert not demo_run.plan("--profile", "demo").jobs


@pytest.fixture(scope="module")
def report(demo_run) -> Path:
    """The demo's report, by the README's command."""
    command = "snakemake --profile demo --report report.html"
    assert f"`{command}`" in README.read_text().replace("\n", " ")
    demo_run.run(*command.split()[1:])
    return demo_run.path / "report.html"


def test_the_report_holds_table_pictures_and_every_run(report):
    text = report.read_text()
    for name in ("table.html", "claim.html", "miou_by_learning_rate", "One row for each"):
        assert name in text
    for name, seed in RUNS:
        assert f"{name}_seed{seed}.html" in text


BEST = "Best: Method CAE, Head UperNet, Backbone ViT-tiny"


def test_the_report_shows_table_and_runs_in_a_browser_by_itself(report):
    require_browser()
    with open_browser() as browser:
        for category, entry in (("Results", "Table"), ("Runs", "tiny_300_lr3e-3")):
            browser.open("about:blank")
            browser.open(report.as_uri())
            browser.wait_for_text("Statistics", category, BEST)
            browser.click(f"//a[normalize-space(.)='{category}']")
            browser.wait_for_text(entry)
            browser.click(f"//tr[contains(., '{entry}')]//a[1]")
            shown = browser.run("return document.querySelector('iframe').src")
            assert shown.startswith("data:text/html")
        browser.open("about:blank")
        browser.open(report.as_uri())
        browser.wait_for_text(BEST)
        browser.click("(//a[normalize-space(.)='seed 1'])[1]")
        browser.click("//tbody//a[1]")
        shown = browser.run("return atob(document.querySelector('iframe').src.split(',')[1])")
        assert "tiny_1600_lr1e-3, seed 1" in shown
        loaded = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
        assert not [name for name in loaded if not name.startswith(("data:", "blob:"))]
