"""The console script `cae-seg`: parse, call one function, print.

Heavy imports stay inside the functions that need them, so that `--help` answers at once.
"""

import argparse
import contextlib
import errno
import itertools
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cae_seg
from cae_seg import __version__
from cae_seg.arguments import (
    PICTURES,
    SEED,
    choices,
    config_options,
    number,
    output_file,
    output_folder,
    whole_number,
)
from cae_seg.crash import report_crash
from cae_seg.engine.job import EvaluateJob, JointJob, TrainJob, add_options, job_of
from cae_seg.errors import UserError, nearest
from cae_seg.files import full_disk_is_one_line
from cae_seg.redaction import redact

if TYPE_CHECKING:
    from cae_seg.data.prepare.describe import Description

NEXT = "--next"
DATA = Path("data/ade20k/manifest.json")
SHEET = Path("config/published.yaml")


# Errors of the file system that a path given by the user causes.
_OF_PATHS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done. 1: crashed; the traceback is in a file. 2: a mistake of the user's, reported in one
    line. 75: stopped cleanly before the end (time budget, signal); the same command resumes.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller (`>&-`)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    try:
        code = _run(arguments)
    except UserError as error:
        _print_error(str(error))
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 0
    return _flush(code)


def _print_error(message: str) -> None:
    print(f"cae-seg: error: {redact(message)}", file=sys.stderr)


def _flush(code: int) -> int:
    """Write out what was printed; return the exit status, which is 2 where that fails."""
    try:
        sys.stdout.flush()
        return code
    except OSError as error:
        # Python would try again, and complain, when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # The reader of our output went away (`cae-seg table | head`): nothing left to print.
        if code or isinstance(error, BrokenPipeError):
            return code
        _print_error(f"standard output: cannot be written ({error.strerror}); make room for it")
        return 2


def _run_once(options: argparse.Namespace) -> int | None:
    """Run a command of the workflow; a user's mistake fails its retries at once."""
    from cae_seg.launch.retry import final_errors

    with final_errors(options.error_file, options.attempt):
        return options.run(options)


def _run(arguments: Sequence[str] | None) -> int:
    """Run one command; the one place that catches unforeseen errors."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        run = _run_once if getattr(options, "error_file", None) else options.run
        with full_disk_is_one_line():
            return run(options) or 0
    except (UserError, BrokenPipeError):
        raise
    except OSError as error:
        if error.errno not in _OF_PATHS or error.filename is None:
            return _crash(error)
        raise UserError(
            f"{error.filename}: {error.strerror}; check path and permissions"
        ) from error
    except (Exception, SystemExit) as error:  # a config is a program and may call sys.exit
        return _crash(error)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command, and as `others` those of the further runs of `train`."""
    first, *others = _split(arguments)
    options = _parse_one(first)
    if others and options.run is not _train:
        raise UserError(f"{NEXT}: only `cae-seg train` takes several runs")
    options.others = [_parse_one(["train", *other]) for other in others]
    for other in options.others:
        for name in ("sheet", "error_file", "keep_going", "report"):
            if getattr(other, name):
                option = name.replace("_", "-")
                raise UserError(f"--{option}: is for all runs; give it before the first {NEXT}")
    return options


def _split(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yield what is between the separators of runs."""
    ends = [place for place, word in enumerate(arguments) if word == NEXT]
    for begin, end in itertools.pairwise([-1, *ends, len(arguments)]):
        yield list(arguments[begin + 1 : end])


def _parse_one(arguments: Sequence[str]) -> argparse.Namespace:
    options, unknown = build_parser().parse_known_args(arguments)
    if unknown:
        raise UserError(f"unrecognised {unknown[0]!r}{_nearest_option(unknown[0], options.parser)}")
    return options


def _crash(error: BaseException) -> int:
    print(f"cae-seg: error: {report_crash(error)}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    """A parser that reports a mistake as the one line of a `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raise the error; `--help` shows the usage."""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += nearest(found[1], re.findall(r"[\w-]+", found[2]))
        raise UserError(f"{message} (see `{self.prog} --help`)")


def _nearest_option(word: str, parser: argparse.ArgumentParser) -> str:
    known = [option for action in parser._actions for option in action.option_strings]
    return nearest(word.partition("=")[0], known) + f" (see `{parser.prog} --help`)"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(prog="cae-seg", description=cae_seg.__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (
        _add_prepare,
        _add_train,
        _add_evaluate,
        _add_predict,
        _add_check_sheet,
        _add_export,
        _add_collect_run,
        _add_aggregate_seeds,
        _add_track,
        _add_table,
        _add_figures,
        _add_status,
        _add_ui,
        _add_doctor,
        _add_clean,
        _add_init,
        _add_completion,
    ):
        add(commands)
    return parser


def _add(commands: Any, name: str, run: Any, help_: str) -> argparse.ArgumentParser:
    """Add a command whose parsed options are handed to `run`."""
    parser = commands.add_parser(name, help=help_, description=help_)
    parser.set_defaults(run=run, parser=parser)
    return parser


def _load_engine() -> None:
    """Import what registers models and data, without what libraries print meanwhile."""
    from cae_seg.loading import loading_libraries
    from cae_seg.run.logs import suppress_import_output

    with loading_libraries(), suppress_import_output():
        import cae_seg.registration  # noqa: F401


def _add_prepare(commands: Any) -> None:
    help_ = "make ready what training needs: the data set, a checkpoint, the demo"
    parser = commands.add_parser("prepare", help=help_, description=help_)
    kinds = parser.add_subparsers(required=True, metavar="what")

    data = _add(kinds, "data", _prepare_data, "make a data set ready: ADE20K, or one of your own")
    help_ = "URL, zip archive or extracted folder; ADE20K's own archive unless given"
    data.add_argument("--source", help=help_)
    data.add_argument(
        "--type",
        default="ade20k",
        help="ade20k, folder (images/{train,val}, annotations/{train,val}), or a data set type of"
        " mmsegmentation such as CityscapesDataset",
    )
    data.add_argument("--classes", type=Path, help="names of a folder's classes (.txt, .json)")
    data.add_argument(
        "--reduce-zero-label",
        choices=["true", "false"],
        help="whether 0 is ignored in annotations and classes count from 1",
    )
    data.add_argument(
        "--ignore-index", type=whole_number(0, 255), help="label of pixels that do not count (255)"
    )
    data.add_argument("--root", type=output_folder, default=DATA.parent, help="where to extract to")
    data.add_argument(
        "--manifest", type=output_file, default=DATA, help="the result of the verification"
    )
    data.add_argument("--sha256", help="what the archive must hash to")
    data.add_argument(
        "--expected",
        nargs="*",
        metavar="SPLIT=IMAGES",
        default=[],
        help="numbers of images that must be there, e.g. training=20210 validation=2000",
    )

    data.add_argument(
        "--verify", action="store_true", help="hash every file of the prepared data set again"
    )

    checkpoint = _add(kinds, "checkpoint", _prepare_checkpoint, "inspect a pretrained checkpoint")
    checkpoint.add_argument("source", help="path or URL")
    checkpoint.add_argument("--config", type=Path, required=True, help="the model it must fit")
    checkpoint.add_argument("--out", type=output_file, required=True, help="report, as JSON")
    checkpoint.add_argument("--sha256", help="what the file must hash to")
    _add_config_options(checkpoint)

    demo = _add(kinds, "demo", _prepare_demo, "generate a small data set and checkpoints")
    demo.add_argument("--archive", type=output_file, required=True, help="zip in the ADE20K layout")
    demo.add_argument("--checkpoints", type=output_folder, required=True, help="folder to write to")
    demo.add_argument("--seed", type=SEED, default=0)


def _prepare_data(options: argparse.Namespace) -> None:
    from cae_seg.data.prepare.prepare import describe, prepare, verify_prepared
    from cae_seg.sheet.schema import ADE20K

    if options.verify:
        print(f"{options.manifest}: {verify_prepared(options.manifest)} files are unchanged")
        return
    if options.type != "ade20k" and options.source is None:
        raise UserError(f"--type {options.type}: needs --source, the folder of the data set")
    manifest = prepare(
        options.source or ADE20K,
        options.root,
        options.manifest,
        sha256=options.sha256,
        expected=_counts(options.expected),
        description=_description(options),
    )
    for line in describe(manifest):
        print(line)
    counts = ", ".join(f"{number} {split}" for split, number in manifest.counts.items())
    print(f"{options.manifest}: {counts} images, fingerprint {manifest.fingerprint[:12]}")


def _description(options: argparse.Namespace) -> "Description | None":
    from cae_seg.data.prepare.describe import Description

    given = (options.classes, options.reduce_zero_label, options.ignore_index)
    if options.type == "ade20k":
        if given != (None, None, None):
            raise UserError("--type ade20k: has its own classes and labels; leave the others out")
        return None
    reduce = options.reduce_zero_label
    return Description(
        options.type,
        options.classes,
        None if reduce is None else reduce == "true",
        options.ignore_index,
    )


def _counts(items: Sequence[str]) -> dict[str, int] | None:
    try:
        return {split: int(number) for split, number in (item.split("=") for item in items)} or None
    except ValueError as error:
        raise UserError(f"--expected {' '.join(items)}: write SPLIT=IMAGES") from error


def _prepare_checkpoint(options: argparse.Namespace) -> None:
    _load_engine()
    from cae_seg.engine.checkpoint_report import inspect_checkpoint

    report = inspect_checkpoint(
        options.source,
        options.config,
        options.out,
        sha256=options.sha256,
        cfg_options=config_options(options.cfg_options),
    )
    print(report["summary"])


def _prepare_demo(options: argparse.Namespace) -> None:
    from cae_seg.data.demo import make_demo
    from cae_seg.loading import loading_libraries
    from cae_seg.run.logs import suppress_import_output

    with loading_libraries(), suppress_import_output():
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


def _add_retry_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--attempt", type=whole_number(1, 10**6), default=1, help="of the workflow, from 1"
    )
    parser.add_argument(
        "--error-file", type=Path, help="keeps a mistake of the user's, which no retry can help"
    )


def _add_train(commands: Any) -> None:
    parser = _add(commands, "train", _train, "fine-tune one config from one checkpoint")
    add_options(parser, TrainJob)
    parser.add_argument("--sheet", type=Path, help="labels for live tracking")
    _add_retry_options(parser)
    together = parser.add_argument_group(
        "several runs over one frozen backbone",
        "they share its passes, and each ends as it would alone",
    )
    together.add_argument(
        NEXT,
        action="store_true",
        help="begins the options of a further run: config, --work-dir and so on",
    )
    together.add_argument(
        "--keep-going",
        action="store_true",
        help="do not fail for runs that fail by mistakes of their own, unless all do",
    )
    together.add_argument("--report", type=output_file, help="how each run has ended, as JSON")


def _train(options: argparse.Namespace) -> int:
    from cae_seg.launch.launcher import launch_together, launch_train

    jobs = [job_of(TrainJob, run) for run in (options, *options.others)]
    with contextlib.ExitStack() as followers:
        if os.environ.get("MLFLOW_TRACKING_URI"):
            from cae_seg.tracking import following

            for job in jobs:
                followers.enter_context(following(job.work_dir, sheet=options.sheet))
        if len(jobs) > 1 or options.report or options.keep_going:
            return launch_together(JointJob(tuple(jobs), options.keep_going, options.report))
        return launch_train(jobs[0])


def _add_evaluate(commands: Any) -> None:
    parser = _add(commands, "evaluate", _evaluate, "measure mIoU of fine-tuned weights")
    add_options(parser, EvaluateJob)
    parser.add_argument("--eval", choices=["mIoU"], default="mIoU", help="the published spelling")
    _add_retry_options(parser)


def _evaluate(options: argparse.Namespace) -> int:
    from cae_seg.launch.launcher import launch_evaluate

    return launch_evaluate(job_of(EvaluateJob, options))


def _add_predict(commands: Any) -> None:
    parser = _add(commands, "predict", _predict, "segment images and paint the result")
    parser.add_argument("weights", type=Path, help="weights.pth of a finished run")
    parser.add_argument("inputs", type=Path, nargs="+", help="images or folders of images")
    folder = Path("predictions")
    parser.add_argument(
        "--out", type=output_folder, default=folder, help=f"folder (default: {folder})"
    )
    parser.add_argument(
        "--write",
        type=choices(PICTURES),
        default=("labels", "panel"),
        help=f"pictures of each image, of {','.join(PICTURES)} (default: labels,panel)",
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number(1, 10_000),
        default=1,
        help="images segmented together (default: 1)",
    )
    parser.add_argument("--config", type=Path, help="default: the one saved in the weights")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")


def _predict(options: argparse.Namespace) -> None:
    _load_engine()
    from cae_seg.engine.predict import predict

    written = predict(
        options.weights,
        options.inputs,
        options.out,
        pictures=options.write,
        batch_size=options.batch_size,
        config=options.config,
        device=options.device,
    )
    print(f"{len(written)} pictures in {options.out}")


def _add_check_sheet(commands: Any) -> None:
    help_ = "check configs, options and knobs of a sheet's rows, as every dry run does"
    parser = _add(commands, "check-sheet", _check_sheet, help_)
    parser.add_argument("sheet", type=Path)


def _check_sheet(options: argparse.Namespace) -> None:
    _load_engine()
    from cae_seg.engine.check_sheet import check_rows
    from cae_seg.sheet.reading import load_sheet

    number = check_rows(load_sheet(options.sheet))
    print(f"{options.sheet}: is valid; {number} row(s) change their recipe")


def _add_export(commands: Any) -> None:
    parser = _add(commands, "export", _export, "write fine-tuned weights for use elsewhere")
    parser.add_argument("weights", type=Path, help="weights.pth of a finished run")
    parser.add_argument(
        "--format",
        choices=["onnx", "mmseg"],
        default="onnx",
        help="onnx: one file, checked by onnxruntime; mmseg: checkpoint and config for"
        " mmsegmentation's init_model",
    )
    parser.add_argument("--out", type=Path, help="default: model.onnx, or the folder mmseg_model")
    parser.add_argument("--config", type=Path, help="default: the one saved in the weights")


def _export(options: argparse.Namespace) -> None:
    from cae_seg.files import check_output_file, check_writable

    onnx = options.format == "onnx"
    out = options.out or Path("model.onnx" if onnx else "mmseg_model")
    (check_output_file if onnx else check_writable)(out)
    _load_engine()
    from cae_seg.engine.export import export_mmseg, export_onnx
    from cae_seg.run.logs import configure_logging

    with configure_logging(speak=True):
        if onnx:
            difference = export_onnx(options.weights, out, config=options.config)
            answer = f"{out}: logits within {difference:.1e} of torch's, relative to the largest"
        else:
            checkpoint, config = export_mmseg(options.weights, out, config=options.config)
            answer = f"mmseg.apis.init_model({str(config)!r}, {str(checkpoint)!r})"
    print(answer)


def _add_collect_run(commands: Any) -> None:
    parser = _add(commands, "collect-run", _collect_run, "take a run that trained with others")
    parser.add_argument("work_dir", type=Path, help="of the run")
    parser.add_argument("--report", type=Path, required=True, help="of the runs")
    parser.add_argument("--out", type=output_file, required=True, help="metadata of the run")


def _collect_run(options: argparse.Namespace) -> None:
    from cae_seg.run.outputs import collect_run

    collect_run(options.work_dir, options.report, options.out)


def _add_aggregate_seeds(commands: Any) -> None:
    parser = _add(commands, "aggregate-seeds", _aggregate_seeds, "join the seeds of a combination")
    parser.add_argument("metrics", type=Path, nargs="+", help="metrics.json of each seed")
    parser.add_argument("--out", type=output_file, required=True)


def _aggregate_seeds(options: argparse.Namespace) -> None:
    from cae_seg.results.aggregate_seeds import aggregate_seeds

    aggregate_seeds(options.metrics, options.out)


def _add_track(commands: Any) -> None:
    parser = _add(commands, "track", _track, "deliver runs to MLflow, each exactly once")
    parser.add_argument("run_dir", type=Path, help="a seed's folder, or a folder of many runs")
    parser.add_argument("--sheet", type=Path, help="where backbone and epochs are written")
    parser.add_argument("--out", type=output_file, help="what was delivered, as JSON")
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
    parser.add_argument(
        "--columns",
        type=lambda text: text.split(","),
        metavar="A,B,...",
        help="columns to show, in this order: those of the table or of its CSV",
    )
    parser.add_argument("--out", type=output_file, help="file (default: the terminal)")
    parser.add_argument("--csv", type=output_file, help="the same, unrounded")
    _add_pages_option(parser)


def _add_pages_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pages", type=output_folder, help="folder for the pages that the report shows"
    )


def _add_sheet_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sheet",
        type=Path,
        nargs="+",
        action="extend",
        help=f"one or several, joined (default: {SHEET})",
    )


def _table(options: argparse.Namespace) -> None:
    from cae_seg.results.table import write_table
    from cae_seg.run.provenance import code_fingerprint

    sheets = options.sheet or [SHEET]
    text = write_table(
        sheets,
        out=options.out,
        csv=options.csv,
        partial=options.partial,
        format=options.format,
        columns=options.columns,
        code_fingerprint=code_fingerprint(),
    )
    if options.pages:
        from cae_seg.results.report_pages import write_overview, write_page, write_run_pages

        write_page("Results", text, options.pages / "table.html")
        write_overview(sheets, options.pages / "overview.rst")
        write_run_pages(sheets, options.pages / "runs")
    if options.out is None:
        print(text)


def _add_figures(commands: Any) -> None:
    parser = _add(commands, "figures", _figures, "draw the results of a sheet, test the claim")
    _add_sheet_option(parser)
    parser.add_argument("--out", type=output_folder, required=True, help="folder")
    parser.add_argument("--paper", action="store_true", help="3.25 inches wide, for a column")
    parser.add_argument("--claim", type=output_file, help="the published claim, checked (Markdown)")
    _add_pages_option(parser)


def _figures(options: argparse.Namespace) -> None:
    from cae_seg.results.claim_page import write_claim
    from cae_seg.results.figures import write_figures

    sheets = options.sheet or [SHEET]
    write_figures(sheets, options.out, paper=options.paper)
    if options.claim:
        write_claim(sheets, options.claim)
    if options.claim and options.pages:
        from cae_seg.results.report_pages import write_page

        write_page("The claim", options.claim.read_text(), options.pages / "claim.html")


def _add_status(commands: Any) -> None:
    parser = _add(commands, "status", _status, "show how far every run of a sheet is")
    _add_sheet_option(parser)
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument(
        "--watch",
        type=number(0.1),
        nargs="?",
        const=5.0,
        metavar="SECONDS",
        help="show it again every so often, in place (default: 5), until Ctrl-C",
    )


def _status(options: argparse.Namespace) -> None:
    from cae_seg.results.status import write_status

    while True:
        text = write_status(options.sheet or [SHEET], format=options.format)
        # Cursor home, then clear what was below it: no flicker and no scrolling.
        in_place = options.watch is not None and sys.stdout.isatty()
        print(f"\x1b[H\x1b[J{text}" if in_place else text, flush=True)
        if options.watch is None:
            return
        time.sleep(options.watch)


def _add_ui(commands: Any) -> None:
    parser = _add(commands, "ui", _ui, "open the MLflow UI on this machine only")
    parser.add_argument("--port", type=whole_number(1, 65535), default=5000)


def _ui(options: argparse.Namespace) -> None:
    from cae_seg.tracking import tracking_uri, ui_address, ui_command

    command = ui_command(port=options.port)
    os.environ.setdefault("MLFLOW_BACKEND_STORE_URI", tracking_uri())
    print(f"MLflow UI (Ctrl-C ends it): {ui_address(port=options.port)}", flush=True)
    os.execvp(command[0], command)


def _add_doctor(commands: Any) -> None:
    parser = _add(commands, "doctor", _doctor, "report what this machine has and what is missing")
    parser.add_argument("--sheet", type=Path, default=SHEET, help="sheet that is to be run")


def _doctor(options: argparse.Namespace) -> int:
    from cae_seg.doctor import report

    text, healthy = report(options.sheet)
    print(text)
    return 0 if healthy else 1


def _add_clean(commands: Any) -> None:
    help_ = "list what no result depends on, with sizes; remove it with --delete"
    parser = _add(commands, "clean", _clean, help_)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--delete", action="store_true", help="remove what is listed")


def _clean(options: argparse.Namespace) -> None:
    from cae_seg.clean import leftovers, remove

    found = leftovers(options.results)
    for leftover in found:
        print(f"{leftover.size / 1e6:10.1f} MB  {leftover.path}  ({leftover.reason})")
    total = sum(leftover.size for leftover in found) / 1e6
    if options.delete:
        print(f"{remove(found) / 1e6:10.1f} MB removed")
    else:
        print(f"{total:10.1f} MB in all; nothing was removed" + (", add --delete" if found else ""))


def _add_init(commands: Any) -> None:
    help_ = "write sheets, configs, workflow and profiles into a folder, to work without a clone"
    parser = _add(commands, "init", _init, help_)
    parser.add_argument("folder", type=Path)


def _init(options: argparse.Namespace) -> None:
    from cae_seg.project import lay_out

    print(f"{options.folder}: {', '.join(lay_out(options.folder))}")
    print(f"Next: cd {options.folder}; cae-seg doctor; snakemake --profile demo")


def _add_completion(commands: Any) -> None:
    help_ = "print the completion script of a shell, e.g. for `source <(cae-seg completion bash)`"
    parser = _add(commands, "completion", _completion, help_)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _completion(options: argparse.Namespace) -> None:
    import shtab

    print(shtab.complete(build_parser(), options.shell))


if __name__ == "__main__":
    sys.exit(main())
