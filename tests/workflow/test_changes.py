"""A change runs again what depends on it, and nothing else."""

import os

import pytest

SHEET = "config/demo.yaml"
DEMO = ("--profile", "demo")


def touch(checkout, file):
    path = checkout.path / file
    assert path.exists()
    os.utime(path)


def test_a_finished_workflow_has_nothing_to_do(finished):
    assert not finished.plan(*DEMO).jobs


def test_a_new_seed_trains_that_seed(finished):
    finished.edit(SHEET, "seeds: [0, 1]", "seeds: [0, 1, 2]")
    plan = finished.plan(*DEMO)
    assert plan.trained == {"tiny_1600_lr1e-3/2"}
    assert plan.jobs["prepare_data"] == plan.jobs["inspect_checkpoint"] == 0
    assert plan.jobs["evaluate"] == plan.jobs["aggregate_seeds"] == plan.jobs["write_table"] == 1


def test_a_changed_learning_rate_trains_that_row(finished):
    finished.edit(
        SHEET,
        "cae_tiny_300e.pth, learning_rate: 3e-3",
        "cae_tiny_300e.pth, learning_rate: 2e-3",
    )
    plan = finished.plan(*DEMO)
    assert plan.trained == {"tiny_300_lr3e-3/0"}
    assert plan.jobs["inspect_checkpoint"] == 0


@pytest.mark.parametrize("key", ["iterations: 7", "options: {optim_wrapper.clip_grad.max_norm: 1}"])
def test_a_changed_recipe_trains_that_row(finished, key):
    finished.edit(SHEET, "tiny_300_lr1e-3, ", f"tiny_300_lr1e-3, {key}, ")
    assert finished.plan(*DEMO).trained == {"tiny_300_lr1e-3/0"}


def test_a_new_row_trains_that_row(finished):
    with (finished.path / SHEET).open("a") as sheet:
        sheet.write(
            "  - {name: more, backbone: ViT-tiny, pretraining_epochs: 300, learning_rate: 5e-3, "
            "checkpoint: data/demo/checkpoints/cae_tiny_300e.pth}\n"
        )
    assert finished.plan(*DEMO).trained == {"more/0"}


def test_what_decides_no_number_trains_nothing(finished):
    for file in ("config/README.md", "workflow/report/table.rst", "Snakefile", "environment.yml"):
        touch(finished, file)
    for code in ("configs_local", "cae_seg"):
        for file in (finished.path / code).rglob("*.py"):
            os.utime(file)
    assert not finished.plan(*DEMO).jobs


def test_changed_code_of_the_table_runs_nothing(finished):
    for file in ("cae_seg/cli.py", "cae_seg/results/__init__.py", "cae_seg/sheet/sheet.py"):
        with (finished.path / file).open("a") as code:
            code.write("\n# another comment\n")
    assert not finished.plan(*DEMO).jobs


def test_changed_code_of_the_model_writes_the_table_again_and_trains_nothing(finished):
    with (finished.path / "cae_seg/models/backbones/cae.py").open("a") as code:
        code.write("\n# another comment\n")
    assert set(finished.plan(*DEMO).jobs) == {"all", "write_table"}


def test_other_hardware_trains_nothing(finished):
    finished.edit(SHEET, "gpus: 0", "gpus: 4")
    finished.edit(SHEET, "device: cpu", "device: auto\n  images_per_gpu: 2")
    plan = finished.plan(*DEMO)
    assert not plan.trained
    assert set(plan.jobs) <= {"all", "write_table", "draw_figures"}


def test_a_published_value_writes_the_table_again(finished):
    finished.edit(SHEET, "name: tiny_300_lr1e-3,", "name: tiny_300_lr1e-3, published_miou: 40,")
    plan = finished.plan(*DEMO)
    assert set(plan.jobs) == {"all", "write_table", "draw_figures"}


def test_a_lost_figure_draws_figures_only(finished):
    (finished.path / "results/demo/claim.md").unlink()
    assert set(finished.plan(*DEMO).jobs) == {"all", "draw_figures"}
    assert "The table: results/demo/table.md" in finished.run(*DEMO)


def test_a_changed_archive_is_noticed(finished):
    (finished.path / "data/demo/ADEChallengeData2016.zip").write_text("another")
    assert finished.plan(*DEMO).jobs["prepare_data"] == 1


def test_a_changed_checkpoint_is_noticed(finished):
    (finished.path / "data/demo/checkpoints/cae_tiny_300e.pth").write_text("another")
    plan = finished.plan(*DEMO)
    assert plan.jobs["inspect_checkpoint"] == 1
    assert plan.trained == {"tiny_300_lr1e-3/0", "tiny_300_lr3e-3/0"}


def test_another_sheet_of_the_same_rows_trains_nothing(finished):
    (finished.path / "config/mine.yaml").write_text((finished.path / SHEET).read_text())
    plan = finished.plan("--profile", "local", "--config", "sheet=config/mine.yaml")
    assert not plan.trained
    assert plan.jobs["evaluate"] == 0


def test_a_run_that_the_tracker_did_not_take_is_offered_again(finished):
    folder = finished.path / "results/demo/tiny_300_lr1e-3/seed_0"
    (folder / "tracked.json").write_text('{"delivered": false}')
    plan = finished.plan(*DEMO)
    assert plan.jobs["track"] == 1
    assert not plan.trained


def test_a_finished_row_needs_its_checkpoint_no_more(finished):
    (finished.path / "data/demo/checkpoints/cae_tiny_300e.pth").rename(finished.path / "moved.pth")
    finished.edit("workflow/rules/prepare.smk", "data/demo/checkpoints/cae_tiny_300e.pth", "x.pth")
    assert not finished.plan(*DEMO).trained
