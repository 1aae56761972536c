"""The console script `cae-seg`: parse, call one function, print.

Heavy imports stay inside the functions that need them, so that `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cae_seg import __version__
from cae_seg.errors import UserError

DATA = Path("data/ade20k/manifest.json")
SHEET = Path("config/published.yaml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done. 2: a mistake of the user's, said in one line. 75: stopped in good order before the
    end (time budget, signal); the same command goes on from there.
    """
    options = build_parser().parse_args(arguments)
    try:
        if getattr(options, "error_file", None):
            return _run_once(options) or 0
        return options.run(options) or 0
    except UserError as error:
        print(f"cae-seg: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`cae-seg table | head`): nothing left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run_once(options: argparse.Namespace) -> int | None:
    from cae_seg.launch.retry import final_errors

    with final_errors(options.error_file, options.attempt):
        return options.run(options)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="cae-seg",
        description="Fine-tune pretrained ViT checkpoints on ADE20K and compare the results.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (
        _add_prepare,
        _add_train,
        _add_evaluate,
        _add_predict,
        _add_summarise,
        _add_track,
        _add_table,
        _add_figures,
        _add_ui,
        _add_doctor,
    ):
        add(commands)
    return parser


def _add(commands: Any, name: str, run: Any, help_: str) -> argparse.ArgumentParser:
    """Add a command whose parsed options are handed to `run`."""
    parser = commands.add_parser(name, help=help_, description=help_)
    parser.set_defaults(run=run)
    return parser


def _add_prepare(commands: Any) -> None:
    help_ = "make ready what training needs: the data set, a checkpoint, the demo"
    parser = commands.add_parser("prepare", help=help_, description=help_)
    kinds = parser.add_subparsers(required=True, metavar="what")

    data = _add(kinds, "data", _prepare_data, "download, extract and verify ADE20K")
    data.add_argument("--source", required=True, help="URL, zip archive or extracted folder")
    data.add_argument("--root", type=Path, default=DATA.parent, help="where to extract to")
    data.add_argument("--manifest", type=Path, default=DATA, help="the result of the verification")
    data.add_argument("--sha256", help="what the archive must hash to")
    data.add_argument(
        "--expected",
        nargs="*",
        metavar="SPLIT=IMAGES",
        default=[],
        help="numbers of images that must be there, e.g. training=20210 validation=2000",
    )

    checkpoint = _add(kinds, "checkpoint", _prepare_checkpoint, "inspect a pretrained checkpoint")
    checkpoint.add_argument("source", help="path or URL")
    checkpoint.add_argument("--config", type=Path, required=True, help="the model it must fit")
    checkpoint.add_argument("--out", type=Path, required=True, help="report, as JSON")
    checkpoint.add_argument("--sha256", help="what the file must hash to")
    _add_config_options(checkpoint)

    demo = _add(kinds, "demo", _prepare_demo, "generate a small data set and checkpoints")
    demo.add_argument("--archive", type=Path, required=True, help="zip in the ADE20K layout")
    demo.add_argument("--checkpoints", type=Path, required=True, help="folder to write to")
    demo.add_argument("--seed", type=int, default=0)


def _prepare_data(options: argparse.Namespace) -> None:
    from cae_seg.data.prepare.prepare import prepare

    manifest = prepare(
        options.source,
        options.root,
        options.manifest,
        sha256=options.sha256,
        expected=_counts(options.expected),
    )
    counts = ", ".join(f"{number} {split}" for split, number in manifest.counts.items())
    print(f"{options.manifest}: {counts} images, fingerprint {manifest.fingerprint[:12]}")


def _counts(items: Sequence[str]) -> dict[str, int] | None:
    try:
        return {split: int(number) for split, number in (item.split("=") for item in items)} or None
    except ValueError as error:
        raise UserError(f"--expected {' '.join(items)}: write SPLIT=IMAGES") from error


def _prepare_checkpoint(options: argparse.Namespace) -> None:
    from cae_seg.engine.checkpoint_report import inspect_checkpoint

    report = inspect_checkpoint(
        options.source,
        options.config,
        options.out,
        sha256=options.sha256,
        cfg_options=_config_options(options),
    )
    print(report["summary"])


def _prepare_demo(options: argparse.Namespace) -> None:
    from cae_seg.data.demo import make_demo
    from cae_seg.run.logs import quiet_imports

    with quiet_imports():
        make_demo(options.archive, options.checkpoints, seed=options.seed)


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cfg-options",
        "--options",
        dest="cfg_options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings that replace those of the config, e.g. model.pretrained=FILE",
    )


def _config_options(options: argparse.Namespace) -> dict[str, Any]:
    """Read KEY=VALUE pairs as mmengine's own command lines do."""
    for item in options.cfg_options:
        if "=" not in item:
            raise UserError(f"--cfg-options {item}: write KEY=VALUE")
    if not options.cfg_options:
        return {}
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", nargs="+", action=DictAction)
    return parser.parse_args(["--pairs", *options.cfg_options]).pairs


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=int, help="number of GPUs (default: 1 if there is any)")
    parser.add_argument("--nodes", type=int, default=1, help="machines, found through SLURM")
    parser.add_argument(
        "--device",
        choices=["auto", "cuda", "cpu"],
        default="auto",
        help="cpu with --gpus N: N processes on the CPU",
    )
    parser.add_argument("--workers", type=int, help="loader processes a rank")
    parser.add_argument("--data", type=Path, help=f"manifest (default: {DATA})")
    parser.add_argument("--name", help="experiment, as the sheet names it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attempt", type=int, default=1, help="of the workflow, from 1")
    parser.add_argument(
        "--error-file", type=Path, help="keeps a mistake of the user's, which no retry can help"
    )


def _add_train(commands: Any) -> None:
    parser = _add(commands, "train", _train, "fine-tune one config from one checkpoint")
    parser.add_argument("config", type=Path)
    parser.add_argument("--work-dir", type=Path, required=True, help="resumable state of the run")
    parser.add_argument("--out", type=Path, help="record of the finished run (run.json)")
    _add_device_options(parser)
    parser.add_argument("--pretrained", type=Path, help="checkpoint of the backbone")
    parser.add_argument("--learning-rate", help="replaces the config's")
    parser.add_argument(
        "--precision", choices=["auto", "fp16", "bf16", "fp32", "apex"], default="auto"
    )
    parser.add_argument("--deterministic", action="store_true", help="same numbers on CUDA too")
    parser.add_argument("--images-per-gpu", type=int, help="images that fit at once (accumulates)")
    parser.add_argument("--time-budget", type=float, metavar="MIN", help="stop in time, resumable")
    parser.add_argument("--sheet", type=Path, help="labels for live tracking")
    parser.add_argument(
        "--lock-wait",
        type=float,
        metavar="SECONDS",
        help="patience with another process that still writes to the work dir: without end,"
        " 30 in a SLURM job",
    )
    _add_config_options(parser)


def _train(options: argparse.Namespace) -> int:
    from cae_seg.engine.job import TrainJob
    from cae_seg.launch.launcher import launch_train

    job = TrainJob(
        config=options.config,
        work_dir=options.work_dir,
        out=options.out,
        name=options.name,
        seed=options.seed,
        gpus=options.gpus,
        nodes=options.nodes,
        device=options.device,
        precision=options.precision,
        learning_rate=options.learning_rate,
        pretrained=options.pretrained,
        data=options.data,
        deterministic=options.deterministic,
        cfg_options=_config_options(options),
        workers=options.workers,
        images_per_gpu=options.images_per_gpu,
        time_budget=options.time_budget,
        lock_wait=options.lock_wait,
    )
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return launch_train(job)
    from cae_seg.tracking import following

    with following(options.work_dir, sheet=options.sheet):
        return launch_train(job)


def _add_evaluate(commands: Any) -> None:
    parser = _add(commands, "evaluate", _evaluate, "measure mIoU of fine-tuned weights")
    parser.add_argument("config", type=Path)
    parser.add_argument("weights", type=Path)
    _add_device_options(parser)
    parser.add_argument("--eval", choices=["mIoU"], default="mIoU", help="the published spelling")
    parser.add_argument("--aug-test", action="store_true", help="flips and several scales")
    parser.add_argument("--out", type=Path, help="metrics (.json) or label maps (.pkl)")
    parser.add_argument("--show-dir", type=Path, help="paint every prediction into this folder")
    _add_config_options(parser)


def _evaluate(options: argparse.Namespace) -> int:
    from cae_seg.engine.job import EvaluateJob
    from cae_seg.launch.launcher import launch_evaluate

    job = EvaluateJob(
        config=options.config,
        weights=options.weights,
        data=options.data,
        gpus=options.gpus,
        device=options.device,
        out=options.out,
        show_dir=options.show_dir,
        aug_test=options.aug_test,
        cfg_options=_config_options(options),
        name=options.name,
        seed=options.seed,
        workers=options.workers,
    )
    return launch_evaluate(job)


def _add_predict(commands: Any) -> None:
    parser = _add(commands, "predict", _predict, "paint the segmentation of images")
    parser.add_argument("weights", type=Path, help="weights.pth of a finished run")
    parser.add_argument("inputs", type=Path, help="image or folder of images")
    folder = Path("predictions")
    parser.add_argument("--out", type=Path, default=folder, help=f"folder (default: {folder})")
    parser.add_argument("--config", type=Path, help="default: the one saved in the weights")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")


def _predict(options: argparse.Namespace) -> None:
    from cae_seg.engine.predict import predict

    maps = predict(
        options.weights, options.inputs, options.out, config=options.config, device=options.device
    )
    print(f"{len(maps)} label map(s) and painted image(s) in {options.out}")


def _add_summarise(commands: Any) -> None:
    parser = _add(commands, "summarise", _summarise, "join the seeds of one combination")
    parser.add_argument("metrics", type=Path, nargs="+", help="metrics.json of each seed")
    parser.add_argument("--out", type=Path, required=True)


def _summarise(options: argparse.Namespace) -> None:
    from cae_seg.results.aggregate_seeds import summarise

    summarise(options.metrics, options.out)


def _add_track(commands: Any) -> None:
    parser = _add(commands, "track", _track, "deliver runs to MLflow, each exactly once")
    parser.add_argument("run_dir", type=Path, help="a seed's folder, or a folder of many runs")
    parser.add_argument("--sheet", type=Path, help="where backbone and epochs are written")
    parser.add_argument("--out", type=Path, help="what was delivered, as JSON")
    parser.add_argument("--follow", action="store_true", help="stream a run while it trains")


def _track(options: argparse.Namespace) -> None:
    from cae_seg import tracking

    if options.follow:
        tracking.follow(options.run_dir, sheet=options.sheet)
    else:
        answer = tracking.track(options.run_dir, sheet=options.sheet, out=options.out)
        for run in answer.get("runs", [answer]):
            if run["delivered"]:
                name = f"{run['experiment'] or options.run_dir}, seed {run['seed']}"
                print(f"{name}: in {run['uri']}; {run['points_sent']} points were new to it")


def _add_table(commands: Any) -> None:
    parser = _add(commands, "table", _table, "gather the results of a sheet")
    _add_sheet_option(parser)
    parser.add_argument("--format", choices=["md", "csv", "latex", "json"], default="md")
    parser.add_argument("--partial", action="store_true", help="whatever is finished by now")
    parser.add_argument("--out", type=Path, help="file (default: the terminal)")
    parser.add_argument("--csv", type=Path, help="the same, unrounded")
    _add_pages_option(parser)


def _add_pages_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pages", type=Path, help="folder for the pages that the report shows")


def _add_sheet_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sheet", type=Path, default=SHEET, help=f"default: {SHEET}")


def _table(options: argparse.Namespace) -> None:
    from cae_seg.results.table import write_table
    from cae_seg.run.provenance import code_fingerprint

    text = write_table(
        options.sheet,
        out=options.out,
        csv=options.csv,
        partial=options.partial,
        format=options.format,
        code_fingerprint=code_fingerprint(),
    )
    if options.pages:
        from cae_seg.results.report_pages import write_page, write_run_pages

        write_page("Results", text, options.pages / "table.html")
        write_run_pages(options.sheet, options.pages / "runs")
    if options.out is None:
        print(text)


def _add_figures(commands: Any) -> None:
    parser = _add(commands, "figures", _figures, "draw the results of a sheet, test the claim")
    _add_sheet_option(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--claim", type=Path, help="the published claim, checked (Markdown)")
    _add_pages_option(parser)


def _figures(options: argparse.Namespace) -> None:
    from cae_seg.results.claim_page import write_claim
    from cae_seg.results.figures import write_figures

    write_figures(options.sheet, options.out)
    if options.claim:
        write_claim(options.sheet, options.claim)
    if options.claim and options.pages:
        from cae_seg.results.report_pages import write_page

        write_page("The claim", options.claim.read_text(), options.pages / "claim.html")


def _add_ui(commands: Any) -> None:
    parser = _add(commands, "ui", _ui, "open the MLflow UI on this machine only")
    parser.add_argument("--port", type=int, default=5000)


def _ui(options: argparse.Namespace) -> None:
    from cae_seg.tracking import ui_address, ui_command

    command = ui_command(port=options.port)
    print(f"MLflow UI (Ctrl-C ends it): {ui_address(port=options.port)}", flush=True)
    os.execvp(command[0], command)


def _add_doctor(commands: Any) -> None:
    _add(commands, "doctor", _doctor, "say what this machine has and what is missing")


def _doctor(options: argparse.Namespace) -> int:
    from cae_seg.doctor import report

    text, healthy = report()
    print(text)
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
