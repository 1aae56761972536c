"""The last lines of a failed workflow: each run without a result, its error and what to do."""

from fake_runs import event_line, make_row, make_run, make_sheet, start_run, write_lines

from cae_seg.results.status import failure_summary


def test_every_run_without_a_result_is_named_with_its_error_and_log(tmp_path):
    rows = [make_row("done"), make_row("broke", seeds=(0, 1)), make_row("refused")]
    rows += [make_row("waiting"), make_row("torn"), make_row("unreadable")]
    sheet = make_sheet(tmp_path, rows)
    make_run(tmp_path / "done/seed_0", "done")
    make_run(tmp_path / "unreadable/seed_0", "unreadable")
    (tmp_path / "unreadable/seed_0/run.json").write_text("{")
    logs = tmp_path / "logs/fine_tune"
    logs.mkdir(parents=True)
    for seed in (0, 1):
        run = start_run(tmp_path / f"broke/seed_{seed}", "broke")
        write_lines(run / "work/metrics.jsonl", [event_line("start", 0)])
        log = logs / f"broke_seed{seed}.log"
        log.write_text("training\nRuntimeError: CUDA error: lost\nretrying\n")
    (tmp_path / "refused/seed_0").mkdir(parents=True)
    (tmp_path / "refused/seed_0/error_fine_tune.txt").write_text("config: wrong key\n")
    torn = start_run(tmp_path / "torn/seed_0", "torn")
    (torn / "work/run_metadata.json").write_text("{")
    lines = failure_summary(sheet, "`snakemake --profile slurm`")
    assert {line.split(" seed ")[0] for line in lines[:-1] if " seed " in line} == {
        "broke",
        "refused",
        "waiting",
        "torn",
        "unreadable",
    }
    assert "broke seed 0 failed: RuntimeError: CUDA error: lost" in lines
    assert "broke seed 1 failed: RuntimeError: CUDA error: lost" in lines
    assert "refused seed 0 failed: config: wrong key" in lines
    assert "waiting seed 0 not started" in lines
    assert f"  log: {logs / 'broke_seed0.log'} (iteration 0 of 200)" in lines
    assert any(
        line.startswith("unreadable seed 0 failed: ") and "run.json" in line for line in lines
    )
    assert lines[-1].startswith("Run `snakemake --profile slurm` again to resume")


def test_a_run_that_waits_for_its_data_names_the_error_of_the_data(tmp_path):
    sheet = make_sheet(tmp_path, [make_row("waiting")])
    log = tmp_path / "logs/prepare_data/data/ade20k.log"
    log.parent.mkdir(parents=True)
    log.write_text("cae-seg: error: ADE.zip: hashes to 12, expected 34; download it again\n")
    (line, _) = failure_summary(sheet)
    assert line == (
        "waiting seed 0 not started: cae-seg: error: ADE.zip: hashes to 12, expected 34; "
        f"download it again; log {log}"
    )


def test_a_finished_sheet_has_nothing_to_report(tmp_path):
    sheet = make_sheet(tmp_path, [make_row("done")])
    make_run(tmp_path / "done/seed_0", "done")
    assert failure_summary(sheet) == []
