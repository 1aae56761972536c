"""The workflow's own manners: format, lint, and one line for a mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_snakefiles_are_formatted():
    done = subprocess.run(
        [Path(sys.executable).parent / "snakefmt", "--check", "Snakefile", "workflow"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sheet", ["published", "sweep", "demo"])
def test_lint_has_nothing_to_say(checkout, sheet):
    checkout.run("--lint", "--config", f"sheet=config/{sheet}.yaml")


def test_a_plan_begins_without_remarks_about_rules_that_the_sheet_does_not_need(checkout):
    output = checkout.run("--dry-run", "--cores", "2")
    assert "rules that are not present" not in output


def test_rules_stay_short():
    for file in (ROOT / "workflow/rules").glob("*.smk"):
        rules = file.read_text().split("\nrule ")[1:]
        for rule in rules:
            body = rule.split("\n\n\n")[0]
            assert len(body.splitlines()) <= 40, f"{file.name}: {body.splitlines()[0]}"


def test_a_mistake_in_the_sheet_stops_everything_with_one_line(checkout):
    checkout.edit("config/demo.yaml", "device: cpu", "device: gpu")
    done = checkout.snakemake("--profile", "demo")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1
    assert "config/demo.yaml:" in errors[0]
    assert "'gpu' is not allowed; choose from auto, cuda, cpu" in errors[0]
    assert "Traceback" not in done.stderr
    assert not (checkout.path / "results").exists()


def test_an_option_without_effect_stops_a_dry_run_with_one_line(checkout):
    options = "precision: fp32\n  options: {model.backbone.depht: 3}"
    checkout.edit("config/demo.yaml", "precision: fp32", options)
    done = checkout.snakemake("--profile", "demo", "--dry-run")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1
    assert "config/demo.yaml: experiment 'tiny_300_lr1e-3': options: model.backbone.d" in errors[0]
    assert "Traceback" not in done.stderr


def test_an_unknown_sheet_is_named_with_the_nearest(checkout):
    done = checkout.snakemake("--profile", "local", "--config", "sheet=config/publishd.yaml")
    assert done.returncode != 0
    assert "no such sheet; did you mean config/published.yaml" in done.stderr


def test_an_unknown_experiment_is_named_with_the_nearest(checkout):
    done = checkout.snakemake("--profile", "local", "results/vit_b_80/metrics.json")
    assert done.returncode != 0
    assert "no experiment is named 'vit_b_80'; did you mean vit_b_800" in done.stderr


def test_a_missing_checkpoint_is_reported_in_one_line_before_anything_runs(checkout):
    (checkout.path / "checkpoints/cae_base_300ep.pth").unlink()
    done = checkout.snakemake("--profile", "local", "results/table.md")
    assert done.returncode != 0
    assert "error: checkpoints/cae_base_300ep.pth: no such file; download it" in done.stderr
    assert "'vit_b_300' in config/published.yaml" in done.stderr
    assert not (checkout.path / "results").exists()


def test_a_missing_archive_is_reported_in_one_line(checkout):
    checkout.edit("config/published.yaml", "source: http://data", "source: data")
    done = checkout.snakemake("--profile", "local", "results/table.md")
    assert done.returncode != 0
    assert "ADEChallengeData2016.zip: no such file; correct `source`" in done.stderr


def test_one_failed_experiment_does_not_stop_the_others(checkout):
    stub = checkout.path / "bin/cae-seg"
    stub.write_text(
        stub.read_text().replace(
            "write()", '[[ $* == "train "*"--name=tiny_300_lr1e-3 "* ]] && exit 3\nwrite()', 1
        )
    )
    done = checkout.snakemake("--profile", "demo")
    assert done.returncode != 0
    metrics = {path.parent.name for path in checkout.path.glob("results/demo/*/metrics.json")}
    rows = {"tiny_300_lr3e-3", "tiny_1600_lr1e-3", "tiny_1600_lr3e-3"}
    assert metrics == rows | {"swin_lr1e-3", "vit_frozen_lr1e-2"}
