"""An experiment sheet: what to run, read from YAML and checked before anything starts.

A sheet lists combinations of a pretrained checkpoint and a learning rate, one row each, or spans
them as a grid. The models below are the one place where its keys, their defaults and their
descriptions stand; `workflow/schemas/sheet.schema.json` and `config/README.md` are generated from
them by `python workflow/schemas/generate.py`.
"""

import difflib
import itertools
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    field_validator,
)
from pydantic_core.core_schema import CoreSchema, no_info_before_validator_function

from cae_seg.config_files import ZOO_PREFIX, find_config, named_batch_size
from cae_seg.errors import UserError

ADE20K = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"

RECIPES = {
    "ViT-B": "upernet_cae_base_12_512_slide_160k_ade20k",
    "ViT-L": "upernet_cae_large_24_512_slide_160k_ade20k",
    "ViT-tiny": "upernet_cae_tiny_demo",
}
"""The config of each backbone that leaves the learning rate to the sheet."""

SIZES = {"ViT-B": "base", "ViT-L": "large", "ViT-tiny": "tiny"}
"""How the names of config files call each backbone."""

RESERVED_NAMES = frozenset(
    {"benchmarks", "checkpoints", "demo", "figures", "logs", "mlflow", "pages", "sweep"}
    | {"claim.json", "claim.md", "mlflow.db", "readme.md", "table.csv", "table.md"}
)
"""Files and folders of ours in the results folder, in lower case."""

_RATE_IN_NAME = re.compile(r"_(\d+(?:\.\d+)?e-\d+)(?=_|$)")


EXPANDED = frozenset("<>{}")
"""Characters in the names of input files that Snakemake replaces."""


def _rate_text(value: Any) -> str:
    """Return a learning rate as the text it was written as, after checking that it is one."""
    text = str(value).strip()
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if isinstance(value, bool) or not (0 < rate < math.inf):
        raise ValueError("is no learning rate; write a positive number such as 2e-4")
    return text


def _one_or_many(value: Any) -> Any:
    """Let a single value stand for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


class _OneOrMany:
    """Annotation of a list that may be written as its only item, in the schema too."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return no_info_before_validator_function(_one_or_many, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


def _distinct(values: tuple) -> tuple:
    if len(set(values)) < len(values):
        raise ValueError("holds a value twice")
    return values


def _option_text(value: Any) -> str:
    """Return a config value in the spelling of `--cfg-options`."""
    if isinstance(value, list | dict):
        raise ValueError('is a list or mapping; write it as text, "[1,2]"')
    return str(value).lower() if isinstance(value, bool) else str(value)


def _printable(value: Any) -> Any:
    """Refuse control characters in text, its keys and its items."""
    texts = [*value, *value.values()] if isinstance(value, dict) else [value]
    for text in texts:
        if isinstance(text, str) and not text.isprintable():
            raise ValueError("contains a line break or another control character; remove it")
    return value


def _local_name(value: str) -> str:
    """Refuse what Snakemake expands in file names."""
    if not _is_url(value) and set(value) & EXPANDED:
        raise ValueError("contains one of <>{}, which Snakemake expands; rename the file")
    return value


def _folder_name(value: str) -> str:
    """Refuse folder names that Snakemake expands or that a shell or SLURM could misread."""
    if not re.fullmatch(r"[\w .,+@=~()/-]+", value) or value.startswith(("-", "~")):
        raise ValueError(
            "is no folder name that Snakemake and SLURM can pass on; use letters, digits, "
            "spaces and .,+@=~()/-_ only, with no - or ~ in front"
        )
    return value


def _sbatch_options(value: str) -> str:
    """Refuse what a shell would expand: the SLURM executor does not quote `slurm_extra`."""
    if set(value) & set("$`;&|<>(){}\\*?#!~"):
        raise ValueError("contains a character that the shell expands; use plain sbatch options")
    try:
        shlex.split(value)
    except ValueError as error:
        raise ValueError("has an unbalanced quotation mark") from error
    return value


_number_or_text = WithJsonSchema({"type": ["number", "string"]})
LearningRate = Annotated[str, BeforeValidator(_rate_text), _number_or_text]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(min_length=1), AfterValidator(_local_name)]
FolderName = Annotated[str, Field(min_length=1), AfterValidator(_folder_name)]
OptionKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*$")]
Backbone = Literal["ViT-B", "ViT-L", "ViT-tiny"]
Epochs = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0)]
Pixels = Annotated[int, Field(gt=0)]
CropSize = Annotated[
    tuple[Pixels, Pixels],
    BeforeValidator(lambda value: (value, value) if isinstance(value, int) else value),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0},
                {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
            ]
        }
    ),
]
Option = Annotated[
    str,
    BeforeValidator(_option_text),
    WithJsonSchema({"type": ["string", "number", "boolean"]}),
]


class _Strict(BaseModel):
    """A mapping of a sheet: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    _check_text = field_validator("*", mode="after")(_printable)


class Data(_Strict):
    """Which images to train and evaluate on."""

    source: FileName = Field(
        default=ADE20K,
        description="URL or path of the archive in the ADE20K layout, or an extracted folder",
    )
    root: FolderName = Field(
        default="data/ade20k",
        description="folder that the archive is extracted to and the manifest is written to",
    )
    sha256: Sha256 | None = Field(
        default=None, description="SHA-256 that the archive must have (64 hex digits)"
    )
    expected: dict[Literal["training", "validation"], Annotated[int, Field(gt=0)]] = Field(
        default={"training": 20210, "validation": 2000},
        description="number of images that each split must have",
    )


class Resources(_Strict):
    """What one job asks the machine or the cluster for, where it differs from the profile."""

    runtime: int | str | None = Field(
        default=None, description='longest run time, minutes or text such as "2d"'
    )
    mem_mb: int | None = Field(default=None, gt=0, description="memory, MB")
    slurm_partition: str | None = Field(default=None, description="SLURM partition")
    slurm_account: str | None = Field(default=None, description="SLURM account")
    qos: str | None = Field(default=None, description="SLURM quality of service")
    constraint: str | None = Field(default=None, description="SLURM features of the node")
    gpu_model: Annotated[str, StringConstraints(pattern=r"^[\w.]+$")] | None = Field(
        default=None, description="GPU type as the cluster names it"
    )
    slurm_extra: Annotated[str, AfterValidator(_sbatch_options)] | None = Field(
        default=None, description="further options of sbatch"
    )


class Settings(_Strict):
    """Keys that a row, a grid and `defaults` may all carry."""

    method: str = Field(default="CAE", min_length=1, description="pretraining method, a label")
    seeds: Annotated[
        tuple[Seed, ...], Field(min_length=1), AfterValidator(_distinct), _OneOrMany()
    ] = Field(default=(0,), description="seeds; one run each")
    precision: Literal["auto", "fp16", "bf16", "fp32", "apex"] = Field(
        default="auto", description="arithmetic; auto is fp16 on a GPU and fp32 on the CPU"
    )
    deterministic: bool = Field(
        default=False, description="same numbers in every run on CUDA too (slower)"
    )
    options: dict[OptionKey, Option] = Field(
        default={}, description="settings of the config that this run replaces, key: value"
    )
    iterations: int | None = Field(
        default=None,
        gt=0,
        description="length of the training, with schedules and warm-up in proportion; the "
        "config's unless set",
    )
    batch_size: int | None = Field(
        default=None,
        gt=0,
        description="images of one iteration over all GPUs; the config's unless set",
    )
    crop_size: CropSize | None = Field(
        default=None,
        description="height and width of training crops and test windows, or one number for both, "
        "pixels; the config's unless set",
    )
    gpus: int = Field(
        default=8,
        ge=0,
        le=16,
        description="GPUs of one run, over all its nodes; no more are used than the machine has, "
        "and none means the CPU. The result does not depend on it",
    )
    nodes: int = Field(default=1, ge=1, description="machines of one run (SLURM)")
    cpus: int | None = Field(
        default=None, ge=1, description="CPU cores of one run; 8 a GPU unless set, at least 2"
    )
    images_per_gpu: int | None = Field(
        default=None,
        ge=1,
        description="images that fit on a GPU at once; the rest of its share of the 16 of an "
        "iteration is accumulated",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="auto is the GPUs, or the CPU where there are none"
    )
    resources: Resources = Field(
        default=Resources(), description="what the jobs of this row ask a cluster for"
    )


class Experiment(Settings):
    """One combination of checkpoint and learning rate: a row of the sheet and of the table."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="unique name; the results lie in a folder of this name"
    )
    backbone: Backbone = Field(description="the backbone, as the table names it")
    pretraining_epochs: Epochs = Field(description="length of the pretraining, epochs")
    checkpoint: FileName = Field(description="pretrained checkpoint: path or URL")
    checkpoint_sha256: Sha256 | None = Field(
        default=None, description="SHA-256 that the checkpoint must have (64 hex digits)"
    )
    config: FileName | None = Field(
        default=None,
        description="config: stem of a file under configs_local, or a path; "
        "the backbone's recipe unless set",
    )
    learning_rate: LearningRate | None = Field(
        default=None,
        description="learning rate; may be left out where the config's name holds it",
    )
    published_miou: float | None = Field(
        default=None, ge=0, le=100, description="published mIoU to compare with, percent"
    )

    @property
    def stem(self) -> str:
        """Name of the config file without folder and suffix."""
        return Path(self.config or RECIPES[self.backbone]).stem

    @property
    def recipe_changes(self) -> str:
        """What the row changes in its recipe besides the learning rate, as text."""
        knobs = ("iterations", "batch_size", "crop_size")
        values = {key: getattr(self, key) for key in knobs} | self.options
        texts = {
            key: " x ".join(str(part) for part in value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if value is not None
        }
        return ", ".join(f"{key} {value}" for key, value in texts.items())

    @property
    def checkpoint_is_url(self) -> bool:
        """Whether the checkpoint is to be downloaded."""
        return _is_url(self.checkpoint)


class Grid(Settings):
    """Every backbone with every pretraining length, learning rate and seed."""

    name: str = Field(
        default="{backbone}_{epochs}ep_lr{learning_rate}",
        description="pattern of the rows' names, of {backbone}, {size}, {epochs}, {learning_rate}",
    )
    backbone: Annotated[tuple[Backbone, ...], _OneOrMany()] = Field(
        min_length=1, description="one or several backbones"
    )
    pretraining_epochs: Annotated[tuple[Epochs, ...], _OneOrMany()] = Field(
        min_length=1, description="one or several pretraining lengths, epochs"
    )
    learning_rate: Annotated[tuple[LearningRate, ...], _OneOrMany()] = Field(
        min_length=1, description="one or several learning rates"
    )
    checkpoint: str = Field(
        min_length=1,
        description="pattern of the checkpoints' paths or URLs, of {backbone}, {size}, {epochs}",
    )
    config: str | None = Field(
        default=None, description="config of all rows; the backbone's recipe unless set"
    )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that the grid stands for.

        Raises:
            ValueError: a pattern holds an unknown field.
        """
        own = ("name", "backbone", "pretraining_epochs", "learning_rate", "checkpoint")
        shared = {key: getattr(self, key) for key in self.model_fields_set if key not in own}
        for backbone, epochs, rate in itertools.product(
            self.backbone, self.pretraining_epochs, self.learning_rate
        ):
            fields = {
                "backbone": backbone.lower().replace("-", "_"),
                "size": SIZES[backbone],
                "epochs": epochs,
            }
            yield shared | {
                "name": _fill(self.name, fields | {"learning_rate": rate}),
                "backbone": backbone,
                "pretraining_epochs": epochs,
                "learning_rate": rate,
                "checkpoint": _fill(self.checkpoint, fields),
            }


class SheetFile(_Strict):
    """An experiment sheet: what to run, on which data, and where the results go."""

    results: FolderName = Field(
        default="results", description="folder of everything that runs produce"
    )
    data: Data = Field(default=Data(), description="images to train and evaluate on")
    defaults: Settings = Field(
        default=Settings(), description="values of the rows and grids that do not set their own"
    )
    experiments: tuple[Experiment, ...] = Field(
        default=(), description="combinations, one row each"
    )
    grid: Annotated[tuple[Grid, ...], _OneOrMany()] = Field(
        default=(), description="combinations spanned by lists; one grid or several"
    )


@dataclass(frozen=True)
class Sheet:
    """A checked sheet: every row complete, every config found, every name unique."""

    path: Path
    results: Path
    data: Data
    experiments: tuple[Experiment, ...]

    @property
    def manifest(self) -> Path:
        """The file that describes the prepared data."""
        return Path(self.data.root) / "manifest.json"

    def experiment(self, name: str) -> Experiment:
        """Return the row of that name.

        Raises:
            UserError: there is none.
        """
        for row in self.experiments:
            if row.name == name:
                return row
        names = [row.name for row in self.experiments]
        raise UserError(f"{self.path}: no experiment is named {name!r}; {_nearest(name, names)}")

    def run_folder(self, name: str, seed: int) -> Path:
        """Return the folder of one run."""
        return self.results / name / f"seed_{seed}"


def load_sheet(path: Path | str, *, root: Path | str = ".") -> Sheet:
    """Read and check a sheet.

    Args:
        path: the YAML file.
        root: the folder that `configs_local` and relative config paths are found in.

    Raises:
        UserError: the file, or something in it, is not as it must be; the message names file,
            line, row, key and value, and what is allowed.
    """
    path = Path(path)
    text = _read_text(path)
    content = _parse(path, text)
    try:
        _merge_defaults(content)
        file = SheetFile.model_validate(content)
        rows = [*file.experiments, *_grid_rows(file)]
        rows = list(_resolved(rows, _Configs(Path(root))))
    except ValidationError as error:
        raise UserError(_describe(path, text, content, error)) from error
    except _RowError as error:
        line = _row_line(text, content, error.name)
        raise UserError(f"{path}:{line}: experiment {error.name!r}: {error}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if not rows:
        raise UserError(f"{path}: is empty; write a row under `experiments:` or a `grid:`")
    return Sheet(path=path, results=Path(file.results), data=file.data, experiments=tuple(rows))


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError as error:
        others = [str(other) for other in sorted(path.parent.glob("*.yaml"))]
        raise UserError(f"{path}: no such sheet; {_nearest(str(path), others)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


class _Loader(yaml.CSafeLoader):
    """YAML whose fractions stay text (2e-4 and 0.0002 alike) and whose keys are unique."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [rule for rule in rules if not rule[0].endswith((":float", ":timestamp"))]
        for first, rules in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: is not a valid sheet ({error.problem})") from error
    if content is None:
        raise UserError(f"{path}: is empty; write a row under `experiments:` or a `grid:`")
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping with keys such as `experiments`")
    return content


def _merge_defaults(content: dict[str, Any]) -> None:
    """Write the sheet's `defaults` into every row and grid that does not set its own."""
    given = content.get("defaults") or {}
    SheetFile.model_validate({"defaults": given})
    for key in ("experiments", "grid"):
        rows = content.get(key)
        if rows is None:
            content.pop(key, None)
            continue
        content[key] = [
            _merged(given, row) if isinstance(row, dict) else row for row in _one_or_many(rows)
        ]


def _merged(given: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `row` over `given`; the nested mappings are merged key by key."""
    merged = {**given, **row}
    for key in ("options", "resources"):
        if isinstance(given.get(key), dict) and isinstance(row.get(key), dict):
            merged[key] = {**given[key], **row[key]}
    return merged


def _grid_rows(file: SheetFile) -> Iterator[Experiment]:
    for grid in file.grid:
        for row in grid.rows():
            yield Experiment.model_validate(row)


class _RowError(ValueError):
    """Something is wrong with one row as a whole."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class _Configs:
    """The config files of the repository, by stem."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths = {
            path.stem: str(path.relative_to(root))
            for path in sorted((root / "configs_local").rglob("*.py"))
            if "_base_" not in path.parts
        }

    def find(self, row: Experiment) -> str:
        """Return the path of a row's config, relative to the repository."""
        wanted = row.config or RECIPES[row.backbone]
        if wanted in self._paths:
            return self._paths[wanted]
        if wanted.startswith(ZOO_PREFIX):
            return self._find_in_zoo(wanted, row)
        if wanted.endswith(".py") and (self._root / wanted).is_file():
            return wanted
        raise _RowError(
            row.name, f"config: {wanted!r} is no config; {_nearest(wanted, self._paths)}"
        )

    def _find_in_zoo(self, wanted: str, row: Experiment) -> str:
        try:
            find_config(wanted)
        except UserError as error:
            raise _RowError(row.name, f"config: {error}") from error
        return wanted


def _resolved(rows: Iterable[Experiment], configs: _Configs) -> Iterator[Experiment]:
    """Yield the rows with config path and learning rate filled in, and refuse contradictions."""
    names = set()
    for row in rows:
        if row.name in names:
            raise _RowError(row.name, "name: two rows have this name; make it unique")
        if row.name.lower() in RESERVED_NAMES:
            raise _RowError(row.name, "name: is a file or folder of the results; choose another")
        names.add(row.name)
        config = configs.find(row)
        _check_backbone(row, Path(config).stem)
        _check_nodes(row)
        rate = _checked_rate(row, Path(config).stem)
        yield row.model_copy(update={"config": config, "learning_rate": rate})


def _check_backbone(row: Experiment, stem: str) -> None:
    for backbone, size in SIZES.items():
        if f"_cae_{size}" in stem and backbone != row.backbone:
            raise _RowError(
                row.name, f"backbone: {row.backbone!r} contradicts the config {stem} ({backbone})"
            )


def _check_nodes(row: Experiment) -> None:
    if row.gpus and row.gpus % row.nodes:
        raise _RowError(row.name, f"gpus: {row.gpus} do not divide evenly over {row.nodes} nodes")
    images = row.batch_size or named_batch_size(row.stem) or 16
    if row.gpus and images % row.gpus:
        fit = " ".join(str(gpus) for gpus in range(1, images + 1) if images % gpus == 0)
        raise _RowError(
            row.name,
            f"gpus: {row.gpus} do not divide the {images} images of an iteration; {fit} do",
        )


def _checked_rate(row: Experiment, stem: str) -> str:
    """Return the row's learning rate, which the name of its config may hold or forbid."""
    found = _RATE_IN_NAME.search(stem)
    named = found.group(1) if found else None
    if row.learning_rate is None and named is None:
        raise _RowError(row.name, f"learning_rate: is missing; the config {stem} names none")
    if row.learning_rate is None:
        return named
    if named is not None and float(named) != float(row.learning_rate):
        raise _RowError(
            row.name,
            f"learning_rate: {row.learning_rate} contradicts the config {stem}; "
            f"leave `config` out to use the recipe {RECIPES[row.backbone]} with any rate",
        )
    return row.learning_rate


def _describe(path: Path, text: str, content: Mapping[str, Any], error: ValidationError) -> str:
    """Say in one line where a sheet is wrong, how, and what is allowed."""
    first, *more = error.errors()
    place = tuple(part for part in first["loc"] if part != "[key]")
    label, key = _label(content, place)
    message = f"{path}:{_line(text, place)}: {label}{key}: {_reason(first)}"
    return f"{message} (and {len(more)} more)" if more else message


def _reason(error: Mapping[str, Any]) -> str:
    """Say what is wrong with one value."""
    value, key = error["input"], str(error["loc"][-1] if error["loc"] else "")
    match error["type"]:
        case "extra_forbidden":
            allowed = _allowed_keys(error["loc"])
            return f"is no key of a sheet; {_nearest(key, allowed)}"
        case "missing":
            return "is missing"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", error["ctx"]["expected"])
            return f"{value!r} is not allowed; choose from {', '.join(allowed)}"
        case "too_short" | "string_too_short":
            return "is empty"
        case "model_type" | "dict_type":
            return f"{value!r} is not a mapping of keys to values"
        case "string_pattern_mismatch":
            return f"{value!r} does not match {error['ctx']['pattern']}"
        case "value_error":
            return f"{value!r} {error['ctx']['error']}"
        case _:
            return f"{value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _allowed_keys(place: tuple) -> list[str]:
    """Return the keys of the mapping that the last part of `place` was found in."""
    model: Any = SheetFile
    parents = {"data": Data, "defaults": Settings, "experiments": Experiment, "grid": Grid}
    for part in place[:-1]:
        model = Resources if part == "resources" else parents.get(part, model)
    return list(model.model_fields)


def _label(content: Mapping[str, Any], place: tuple) -> tuple[str, str]:
    """Split `place` into the row it lies in, as a person calls it, and the key."""
    label = ""
    if len(place) > 2 and place[0] in ("experiments", "grid"):
        row = content[place[0]][place[1]]
        label = f"{place[0]}, row {place[1] + 1}: "
        if isinstance(row, dict) and "name" in row:
            label = f"experiment {row['name']!r}: "
        place = place[2:]
    return label, ".".join(str(part) for part in place)


def _row_line(text: str, content: Mapping[str, Any], name: str) -> int:
    """Return the line of the last row of that name, or of the grid it came from."""
    rows = content.get("experiments", ())
    places = [index for index, row in enumerate(rows) if row.get("name") == name]
    return _line(text, ("experiments", places[-1]) if places else ("grid",))


def _line(text: str, place: tuple) -> int:
    """Return the line of the deepest part of `place` that the file holds, from 1."""
    node = yaml.compose(text, yaml.CSafeLoader)
    line = node.start_mark.line if node else 0
    for part in place:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
        elif isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                continue
            line, node = found[0][0].start_mark.line, found[0][1]
            continue
        line = node.start_mark.line
    return line + 1


def _fill(pattern: str, fields: Mapping[str, Any]) -> str:
    try:
        return pattern.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{field}}}" for field in fields)
        raise ValueError(f"grid: the pattern {pattern!r} may hold {known} only") from error


def _nearest(wanted: str, known: Iterable[str]) -> str:
    """Suggest what was meant: the nearest names, or all when none is near."""
    known = list(known)
    near = difflib.get_close_matches(wanted, known, n=2, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(known[:20])}" if known else "there is none"


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))
