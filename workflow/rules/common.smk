import shlex
from pathlib import Path

from snakemake.exceptions import WorkflowError

from cae_seg.errors import UserError
from cae_seg.experiments import Experiment, Sheet, load_sheet


def read_sheet() -> Sheet:
    """Read the sheet that `--config sheet=FILE` names, or the published one."""
    try:
        return load_sheet(config["sheet"])
    except UserError as error:
        raise WorkflowError(str(error)) from error


SHEET = read_sheet()
ROWS = {row.name: row for row in SHEET.experiments}


def row(wildcards) -> Experiment:
    """Return the row of the sheet that a job belongs to."""
    try:
        return ROWS.get(wildcards.experiment) or SHEET.experiment(wildcards.experiment)
    except UserError as error:
        raise WorkflowError(str(error)) from error


def of_row(key: str):
    """Return a function that takes one key from the row of a job."""
    return lambda wildcards: getattr(row(wildcards), key)


def archive(wildcards) -> list[str]:
    """Return the archive where it is a local file, whose change Snakemake then notices."""
    source = SHEET.data.source
    return [source] if source.endswith(".zip") and "://" not in source else []


def expected_images(wildcards) -> str:
    """Return the numbers of images that the data must have, as SPLIT=IMAGES."""
    return " ".join(f"{split}={images}" for split, images in SHEET.data.expected.items())


def checkpoint_file(wildcards) -> list[str]:
    """Return the checkpoint where it is a local file, whose change Snakemake then notices."""
    found = row(wildcards)
    return [] if found.checkpoint_is_url else [found.checkpoint]


def flag(name: str, value) -> str:
    """Write an option of `cae-seg`, or nothing where there is no value."""
    return "" if value in (None, False) else f"--{name}" if value is True else f"--{name} {value}"


def recipe_options(wildcards) -> str:
    """Return what a row changes in its config beyond the learning rate."""
    found = row(wildcards)
    pairs = [shlex.quote(f"{key}={value}") for key, value in found.options.items()]
    flags = [
        flag("deterministic", found.deterministic),
        flag("cfg-options", " ".join(pairs) or None),
    ]
    return " ".join(part for part in flags if part)


# Functions of `resources` are no trigger: a run on other hardware is the same run.
def machine_options(wildcards, resources) -> str:
    """Return the hardware options of a training."""
    found = row(wildcards)
    images = flag("images-per-gpu", found.images_per_gpu)
    return f"{device_options(wildcards, resources)} --nodes {resources.nodes} {images}".strip()


def device_options(wildcards, resources) -> str:
    """Return the device options of a job that was given `resources.gpu` GPUs."""
    return f"--device {row(wildcards).device} --gpus {resources.gpu}"


def cpus(wildcards) -> int:
    """Return the cores of a training: what the row says, or eight a GPU."""
    found = row(wildcards)
    return found.cpus or max(2, 8 * found.gpus // found.nodes)


def memory(wildcards) -> int:
    """Return the memory of a training on one node, MB."""
    found = row(wildcards)
    return 8000 + 16000 * (found.gpus // found.nodes)


def work_weights(wildcards, input) -> str:
    """Return the weights of a finished run."""
    return str(Path(input.run).parent / "work" / "weights.pth")


def of_seeds(pattern: str):
    """Return a function from an experiment to the files of all its seeds."""
    return lambda wildcards: expand(pattern, seed=row(wildcards).seeds, allow_missing=True)


def of_runs(pattern: str) -> list[str]:
    """Return a file of every run of the sheet."""
    return [
        file
        for found in SHEET.experiments
        for file in expand(pattern, experiment=found.name, seed=found.seeds)
    ]
