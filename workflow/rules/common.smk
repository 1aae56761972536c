import hashlib
import re
from pathlib import Path

from cae_seg.engine.check_sheet import check_sheet
from cae_seg.run.paths import RunDir
from cae_seg.run.provenance import code_fingerprint
from cae_seg.errors import UserError
from cae_seg.sheet.reading import Sheet, load_sheet
from cae_seg.sheet.rows import rows_together
from cae_seg.sheet.schema import Experiment
from cae_seg.sheet.values import EXPANDED
from cae_seg.files import read_json


# Values of the sheet reach a shell only as `{name:q}`, which quotes each item of a list, and as
# `--option={name:q}`, so that a leading dash is no option. Input functions and functions of params
# return them, because Snakemake expands `{…}` in plain strings.
def read_sheet() -> Sheet:
    """Read the sheet that `--config sheet=FILE` names, or the published one."""
    path = str(config["sheet"])
    if set(path) & EXPANDED:
        raise SystemExit(f"error: {path}: one of <>{{}} in the name; rename the sheet")
    try:
        sheet = load_sheet(path)
        if workflow.is_main_process:  # not again in each of its jobs
            check_sheet(sheet)
        return sheet
    except UserError as error:
        raise SystemExit(f"error: {error}")


SHEET = read_sheet()
ROWS = {row.name: row for row in SHEET.experiments}
AMONG_RESULTS = {"caption": "../report/table.rst", "category": "Results"}


def row(wildcards) -> Experiment:
    """Return the row of the sheet that a job belongs to."""
    try:
        return ROWS.get(wildcards.experiment) or SHEET.experiment(wildcards.experiment)
    except UserError as error:
        raise SystemExit(f"error: {error}")


def row_value(key: str):
    """Return a function that takes one key from the row of a job."""
    return lambda wildcards: getattr(row(wildcards), key)


DATA = {found.root: found for found in SHEET.used_data}


def manifest(wildcards) -> str:
    """Return the manifest of the data that a run uses."""
    return str(SHEET.data_of(row(wildcards)).manifest)


def archive(wildcards) -> list[str]:
    """Return the local files that data is prepared from, whose change Snakemake then notices."""
    data = DATA[wildcards.root]
    own = [data.classes] if data.classes else []
    if "://" in data.source or Path(data.source).is_dir():
        return own
    return own + require_file(
        data.source, data.manifest, f"correct `source` of the data in {SHEET.path}"
    )


def expected_images(wildcards) -> list[str]:
    """Return the numbers of images that the data must have, as SPLIT=IMAGES."""
    return [f"{split}={images}" for split, images in DATA[wildcards.root].expected.items()]


def data_source(wildcards) -> str:
    """Return where the data comes from."""
    return DATA[wildcards.root].source


def data_options(wildcards) -> list[str]:
    """Return what the sheet says about data beyond its source."""
    data = DATA[wildcards.root]
    reduce = None if data.reduce_zero_label is None else str(data.reduce_zero_label).lower()
    return [
        *cli_flag("sha256", data.sha256),
        *cli_flag("type", None if data.type == "ade20k" else data.type),
        *cli_flag("classes", data.classes),
        *cli_flag("reduce-zero-label", reduce),
        *([] if data.ignore_index is None else [f"--ignore-index={data.ignore_index}"]),
    ]


def inspection(found: Experiment) -> str:
    """Name the inspection of a row's checkpoint; rows of one checkpoint and config share it."""
    what = f"{found.checkpoint} {found.checkpoint_sha256} {found.config}"
    if found.model_options:
        what += f" {sorted(found.model_options.items())}"
    stem = re.sub(r"[^\w.-]", "_", Path(found.checkpoint).stem)[:80].lstrip("-.")
    return f"{stem}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"


CHECKPOINTS = {inspection(found): found for found in SHEET.experiments if found.has_checkpoint}


def inspected(wildcards) -> list[str]:
    """Return the inspection that a run needs; none where it starts from random weights."""
    found = row(wildcards)
    return [f"<results>/checkpoints/{inspection(found)}.json"] if found.has_checkpoint else []


def model_options(wildcards) -> list[str]:
    """Return what the rows of an inspected checkpoint replace in their config's model."""
    options = CHECKPOINTS[wildcards.checkpoint].model_options
    return [f"--cfg-options={key}={value}" for key, value in options.items()]


def checkpoint_file(wildcards) -> list[str]:
    """Return the checkpoint where it is a local file, whose change Snakemake then notices."""
    found = CHECKPOINTS[wildcards.checkpoint]
    if found.checkpoint_is_url:
        return []
    remedy = f"download it (README.md says where), or correct {found.name!r} in {SHEET.path}"
    result = SHEET.results / "checkpoints" / f"{wildcards.checkpoint}.json"
    return require_file(found.checkpoint, result, remedy)


def require_file(file: str, result: Path, remedy: str) -> list[str]:
    """Return a local input; stop in one line where it is missing and `result` needs it."""
    if Path(file).exists() or result.exists() or file in rules.make_demo.output:
        return [file]
    raise SystemExit(f"error: {file}: no such file; {remedy}")


def cli_flag(name: str, value) -> list[str]:
    """Return an option of `cae-seg` as arguments: none where there is no value."""
    if value in (None, False):
        return []
    return [f"--{name}" if value is True else f"--{name}={value}"]


# Only parameters that depend on nothing but wildcards are a reason to run again when they change.
def recipe_options(wildcards) -> list[str]:
    """Return what a row changes in its config beyond the learning rate."""
    return recipe(row(wildcards))


def recipe(found: Experiment) -> list[str]:
    """Return the recipe options of a row."""
    options = found.model_options | found.options
    pairs = [f"--cfg-options={key}={value}" for key, value in options.items()]
    crop = ["--crop-size", *map(str, found.crop_size)] if found.crop_size else []
    return [
        *cli_flag("precision", found.precision),
        *cli_flag("deterministic", found.deterministic),
        *cli_flag("iterations", found.iterations),
        *cli_flag("batch-size", found.batch_size),
        *crop,
        *pairs,
    ]


def train_arguments(wildcards, input, output, resources) -> list[str]:
    """Return the arguments of a training."""
    return run_arguments(
        row(wildcards), wildcards, input, resources, f"--out={output.run}", *job_options(resources)
    )


def run_arguments(found: Experiment, wildcards, input, resources, *more: str) -> list[str]:
    """Return the arguments of the training of one row."""
    return [
        f"--name={found.name}",
        f"--seed={wildcards.seed}",
        f"--learning-rate={found.learning_rate}",
        *recipe(found),
        *machine_options(wildcards, resources),
        *(f"--pretrained={file}" for file in input.get("checkpoint", [])),
        f"--data={input.data}",
        f"--work-dir={SHEET.run_dir(found.name, int(wildcards.seed)) / 'work'}",
        *more,
        "--",
        found.config,
    ]


def job_options(resources) -> list[str]:
    """Return what a training job is told besides its runs."""
    return [
        f"--sheet={SHEET.path}",
        f"--attempt={resources.attempt}",
        f"--error-file={resources.no_retry_file}",
    ]


def machine_options(wildcards, resources) -> list[str]:
    """Return the hardware options of a training."""
    images = cli_flag("images-per-gpu", row(wildcards).images_per_gpu)
    return [*device_options(wildcards, resources), f"--nodes={resources.nodes}", *images]


TOGETHER = rows_together(SHEET.experiments)


def arguments_together(wildcards, input, output, resources) -> list[str]:
    """Return the arguments of rows that train together."""
    first, *others = TOGETHER[wildcards.experiment]
    options = ["--keep-going", f"--report={output.run}", *job_options(resources)]
    arguments = run_arguments(first, wildcards, input, resources, *options)
    for found in others:
        arguments += ["--next", *run_arguments(found, wildcards, input, resources)]
    return arguments


def recipes_together(wildcards) -> list[str]:
    """Return the rates and recipes of rows that train together."""
    rows = TOGETHER[wildcards.experiment]
    return [word for found in rows for word in (found.name, found.learning_rate, *recipe(found))]


def report_together(wildcards) -> str:
    """Return the report on the rows that a row trains together with."""
    return str(report_on(TOGETHER[wildcards.experiment], int(wildcards.seed)))


def report_on(rows: tuple[Experiment, ...], seed: int) -> Path:
    """Return where the report on rows that train together is."""
    return SHEET.run_dir(rows[0].name, seed) / "together.json"


def forget_failed_reports() -> None:
    """Remove the reports on rows of which one has no result, so that the next start trains it.

    Not before the end of the workflow: the other rows need their report until then.
    """
    for rows in TOGETHER.values():
        for seed in rows[0].seeds:
            if not all(RunDir(SHEET.run_dir(found.name, seed)).finished for found in rows):
                report_on(rows, seed).unlink(missing_ok=True)


def device_options(wildcards, resources) -> list[str]:
    """Return the device options of a job: the GPUs that it was given on each of its nodes.

    A row that asks for CUDA keeps doing so without any, and is refused by its job.
    """
    asked, given = row(wildcards).device, given_gpus(wildcards, resources) // resources.nodes
    if given:
        return [f"--device={asked}", f"--gpus={given}"]
    return [f"--device={asked if asked == 'cuda' else 'cpu'}"]


def given_gpus(wildcards, resources) -> int:
    """Return the GPUs that a job was given, over all its nodes."""
    return resources.gpu if resources.nodes == 1 else row(wildcards).gpus


def gpus(wildcards) -> int:
    """Return the GPUs of a training on one node; none where `gres` names them."""
    found = row(wildcards)
    return found.gpus if found.nodes == 1 else 0


def row_override(key: str, otherwise=None):
    """Return a resource function: the row's value, or `otherwise`, or the default resource.

    `--set-resources` replaces the function, and so comes before the row.
    """

    def value(wildcards, input, attempt, threads, rulename, async_run):
        chosen = getattr(row(wildcards).resources, key)
        if chosen is not None or otherwise is not None:
            chosen = otherwise if chosen is None else chosen
            return chosen(wildcards) if callable(chosen) else chosen
        default = (workflow.resource_settings.default_resources or {}).get(key)
        known = dict(input=input, attempt=attempt, threads=threads, rulename=rulename)
        return default and default.evaluate(wildcards, **known, async_run=async_run).value

    return value


def error_file(wildcards, rulename) -> str:
    """Return where a job keeps a user's mistake, which the executor does not try again."""
    folder = SHEET.run_dir(wildcards.experiment, wildcards.seed)
    return str(RunDir(folder).error_file(rulename))


def attempt_number(wildcards, attempt) -> int:
    """Return which attempt of this start of Snakemake a job is."""
    return attempt


def shared_resources() -> dict:
    """Return what training and evaluation both need: their part of the cluster, and their retries."""
    keys = ("slurm_partition", "slurm_account", "qos", "constraint", "slurm_extra")
    site = {key: row_override(key) for key in keys}
    return site | {"attempt": attempt_number, "no_retry_file": error_file}


def gpu_model(wildcards, input, attempt, threads, rulename, async_run) -> str | None:
    """Return the GPU type of a training; none where `gres` names it."""
    if row(wildcards).nodes > 1:
        return None
    return row_override("gpu_model")(wildcards, input, attempt, threads, rulename, async_run)


# The job step of the SLURM executor asks for all of `gpu` on one node, so that a job of several
# nodes does not start; `gres` counts by node.
def gres(wildcards, input, attempt, threads, rulename, async_run) -> str | None:
    """Return the GPUs of each node of a training on several, as SLURM writes them."""
    found = row(wildcards)
    if found.nodes == 1 or not found.gpus:
        return None
    model = row_override("gpu_model")(wildcards, input, attempt, threads, rulename, async_run)
    return ":".join(["gpu", *([model] if model else []), str(found.gpus // found.nodes)])


def cpus(wildcards) -> int:
    """Return the cores of a training."""
    return row(wildcards).cores


def memory(wildcards) -> int:
    """Return the memory of a training on one node, MB."""
    return row(wildcards).memory_mb


def work_weights(wildcards, input) -> str:
    """Return the weights of a finished run."""
    return str(RunDir(Path(input.run).parent).work.weights)


def expand_seeds(pattern: str):
    """Return a function from an experiment to the files of all its seeds."""
    return lambda wildcards: expand(pattern, seed=row(wildcards).seeds, allow_missing=True)


def all_runs(pattern: str) -> list[str]:
    """Return a file of every run of the sheet."""
    return [
        file
        for found in SHEET.experiments
        for file in expand(pattern, experiment=found.name, seed=found.seeds)
    ]


def tracking_retry_token(wildcards) -> str:
    """Return what changes while the tracker has not taken a run, so that it is offered again."""
    file = SHEET.run_dir(wildcards.experiment, wildcards.seed) / "tracked.json"
    if not file.is_file() or read_json(file).get("delivered", True):
        return "nothing"
    return f"offered at {file.stat().st_mtime_ns}"


def augmented_runs() -> list[str]:
    """Return the evaluations with flips and several scales that rows ask for."""
    return [
        str(RunDir(SHEET.run_dir(found.name, seed)).augmented_file)
        for found in SHEET.experiments
        if found.aug_test
        for seed in found.seeds
    ]


def sheet_input(wildcards) -> str:
    """Return the sheet as an input."""
    return str(SHEET.path)


def sheet_file(wildcards, input) -> str:
    """Return the sheet; depending on `input`, it is no reason to run a job again."""
    return str(SHEET.path)


def sheet_setting(wildcards, input) -> str:
    """Return the setting of `snakemake --config` that names the sheet."""
    return f"sheet={SHEET.path}"
