"""The keys of an experiment sheet: types, defaults, descriptions.

A sheet lists combinations of a pretrained checkpoint and a learning rate, one row each, or spans
them as a grid. The models below are the one place where its keys, their defaults and their
descriptions are written; `workflow/schemas/sheet.schema.json` and `config/README.md` are generated
from them by `python workflow/schemas/generate.py`.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StrictBool,
    StrictInt,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core.core_schema import CoreSchema, no_info_before_validator_function

from cae_seg.sheet.values import (
    check_distinct,
    check_folder_name,
    check_printable,
    check_sbatch_options,
    check_source,
    fill_pattern,
    hub_url,
    is_url,
    number_of,
    one_or_many,
    option_text,
    rate_text,
)

ADE20K = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"

RECIPES = {
    "ViT-B": "upernet_cae_base_12_512_slide_160k_ade20k",
    "ViT-L": "upernet_cae_large_24_512_slide_160k_ade20k",
    "ViT-tiny": "upernet_cae_tiny_demo",
}
"""The config of each backbone that leaves the learning rate to the sheet."""

SIZES = {"ViT-B": "base", "ViT-L": "large", "ViT-tiny": "tiny"}
"""How the names of config files call each backbone."""

TIMM_RECIPES = {
    False: "upernet_timm_512_slide_160k_ade20k",
    True: "linear_timm_512_slide_40k_ade20k",
}
"""The config of rows with a timm model, by whether its weights are frozen."""

HEAD_LABELS = {
    "upernet": "UperNet",
    "linear": "linear",
    "linear_4": "linear, 4 taps",
    "setr_naive": "SETR Naive",
    "setr_pup": "SETR PUP",
    "setr_mla": "SETR MLA",
    "fcn": "FCN",
}
"""How a table calls the heads, by the names that sheets and configs have for them."""

BUILT_BY_CONFIG = {
    r"_(cae|caev2|beit|mae|ibot|deit)_base_|_dinov[23]_base_": "ViT-B",
    r"_(cae|caev2|beit)_large_|^setr_|_dinov[23]_large_": "ViT-L",
    r"_dinov[23]_small_": "ViT-S",
    r"_cae_tiny": "ViT-tiny",
    r"_swin_tiny_": "Swin-T",
    r"_swin_demo": "Swin-demo",
    r"_swin_small_": "Swin-S",
    r"_swin_base_": "Swin-B",
    r"_xcit_small_12_": "XCiT-S12",
    r"_xcit_small_24_": "XCiT-S24",
    r"_xcit_medium_24_": "XCiT-M24",
}
"""What shipped configs build, by a pattern of their names."""

WEIGHT_DECAY = "optim_wrapper.optimizer.weight_decay"

MOST_TOGETHER = 16
"""Rows of one frozen backbone that train in one job: each has its optimiser in memory."""

RESERVED_NAMES = frozenset(
    {"benchmarks", "checkpoints", "demo", "figures", "logs", "mlflow", "pages", "sweep"}
    | {"claim.json", "claim.md", "mlflow.db", "readme.md", "table.csv", "table.md"}
)
"""Files and folders of ours in the results folder, in lower case."""

MOST_RUNS = 100_000
"""Rows times seeds of a sheet; Snakemake needs 10 GB to plan as many."""


class _OneOrMany:
    """Annotation of a list that may be written as its only item, in the schema too."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return no_info_before_validator_function(one_or_many, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


_number_or_text = WithJsonSchema({"type": ["number", "string"]})
LearningRate = Annotated[str, BeforeValidator(rate_text), _number_or_text]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(min_length=1), AfterValidator(check_source)]
Checkpoint = Annotated[FileName, AfterValidator(hub_url)]
FolderName = Annotated[str, Field(min_length=1), AfterValidator(check_folder_name)]
OptionKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*$")]
Backbone = Annotated[str, StringConstraints(min_length=1, max_length=100)]
DatasetName = Annotated[str, StringConstraints(pattern=r"^[\w][\w .-]*$", max_length=40)]
Epochs = Annotated[StrictInt, Field(ge=0, le=10**6)]
Seed = Annotated[StrictInt, Field(ge=0, le=2**32 - 1)]
Pixels = Annotated[StrictInt, Field(gt=0, le=10_000)]
Count = Annotated[StrictInt, Field(ge=1, le=10**9)]
Percent = Annotated[
    float,
    BeforeValidator(number_of),
    Field(ge=0, le=100),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100}),
]
CropSize = Annotated[
    tuple[Pixels, Pixels],
    BeforeValidator(lambda value: (value, value) if type(value) is int else value),
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
    BeforeValidator(option_text),
    WithJsonSchema({"type": ["string", "number", "boolean"]}),
]


class _Strict(BaseModel):
    """A mapping of a sheet: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    _check_text = field_validator("*", mode="after")(check_printable)


class Data(_Strict):
    """Which images to train and evaluate on."""

    type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")] = Field(
        default="ade20k",
        description="`ade20k`; `folder` with images/{train,val} and annotations/{train,val}; or a "
        "data set type of mmsegmentation such as `CityscapesDataset`",
    )
    source: FileName = Field(
        default=ADE20K,
        description="URL or path of the archive in the ADE20K layout, or an extracted folder; the "
        "folder of any other data set",
    )
    root: FolderName = Field(
        default="data/ade20k",
        description="folder that the archive is extracted to and the manifest is written to; "
        "`data/` and the name of the source for other data sets",
    )
    sha256: Sha256 | None = Field(
        default=None, description="SHA-256 that the archive must have (64 hex digits)"
    )
    expected: dict[Literal["training", "validation"], Count] = Field(
        default={"training": 20210, "validation": 2000},
        description="number of images that each split must have; of other data sets any",
    )
    classes: FileName | None = Field(
        default=None,
        description="file with the names of a folder's classes: one a line, or JSON with colours; "
        "classes.txt or classes.json in the folder unless set",
    )
    reduce_zero_label: StrictBool | None = Field(
        default=None,
        description="whether 0 is ignored in annotations and classes count from 1; a folder must "
        "say it, a type has its own",
    )
    ignore_index: Annotated[StrictInt, Field(ge=0, le=255)] | None = Field(
        default=None, description="label of the pixels that do not count; 255 unless set"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: Any) -> Any:
        """Replace the defaults, which are ADE20K's, for other data sets."""
        if not isinstance(value, dict) or value.get("type", "ade20k") == "ade20k":
            return value
        name = Path(str(value.get("source", "data"))).name
        return {"root": f"data/{name}", "expected": {}} | value

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        own = ("classes", "reduce_zero_label", "ignore_index")
        if self.type == "ade20k":
            for key in own:
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} is for other data sets; set `type` too, or leave it out"
                    )
            return self
        if self.source == ADE20K or is_url(self.source) or self.sha256:
            raise ValueError(f"type {self.type} needs its folder as `source`, not an archive")
        if self.classes is not None and self.type != "folder":
            raise ValueError(f"classes is for `type: folder`; {self.type} has its own")
        return self

    @property
    def manifest(self) -> Path:
        """The file that describes the prepared data."""
        return Path(self.root) / "manifest.json"

    @property
    def label(self) -> str:
        """How a table calls the data set unless the sheet has a name for it."""
        if self.type == "ade20k":
            return "ADE20K"
        return (
            Path(self.source).name if self.type == "folder" else self.type.removesuffix("Dataset")
        )


class Resources(_Strict):
    """What one job asks the machine or the cluster for, where it differs from the profile."""

    runtime: StrictInt | str | None = Field(
        default=None, description='longest run time, minutes or text such as "2d"'
    )
    mem_mb: Count | None = Field(default=None, description="memory, MB")
    slurm_partition: str | None = Field(default=None, description="SLURM partition")
    slurm_account: str | None = Field(default=None, description="SLURM account")
    qos: str | None = Field(default=None, description="SLURM quality of service")
    constraint: str | None = Field(default=None, description="SLURM features of the node")
    gpu_model: Annotated[str, StringConstraints(pattern=r"^[\w.]+$")] | None = Field(
        default=None, description="GPU type as the cluster names it"
    )
    slurm_extra: Annotated[str, AfterValidator(check_sbatch_options)] | None = Field(
        default=None, description="further options of sbatch"
    )


class Settings(_Strict):
    """Keys that a row, a grid and `defaults` may all carry."""

    method: str = Field(default="CAE", min_length=1, description="pretraining method, a label")
    seeds: Annotated[
        tuple[Seed, ...], Field(min_length=1), AfterValidator(check_distinct), _OneOrMany()
    ] = Field(default=(0,), description="seeds; one run each")
    precision: Literal["auto", "fp16", "bf16", "fp32", "apex"] = Field(
        default="auto", description="arithmetic; auto is fp16 on a GPU and fp32 on the CPU"
    )
    deterministic: StrictBool = Field(
        default=False, description="same numbers in every run on CUDA too (slower)"
    )
    options: dict[OptionKey, Option] = Field(
        default={}, description="settings of the config that this run replaces, key: value"
    )
    iterations: Count | None = Field(
        default=None,
        description="length of the training, with schedules and warm-up in proportion; the "
        "config's unless set",
    )
    batch_size: Count | None = Field(
        default=None,
        description="images of one iteration over all GPUs; the config's unless set",
    )
    crop_size: CropSize | None = Field(
        default=None,
        description="height and width of training crops and test windows, or one number for both, "
        "pixels; the config's unless set",
    )
    timm: Annotated[str, StringConstraints(pattern=r"^[\w.]+$")] | None = Field(
        default=None,
        description="timm model, with or without a tag, that replaces the config's backbone",
    )
    head: FileName | None = Field(
        default=None,
        description="head that replaces the config's: `upernet`, `linear`, `linear_4`, "
        "`setr_naive`, `setr_pup`, `setr_mla`, `fcn`, or a config whose head and neck are taken; "
        "upernet for a timm model",
    )
    frozen: StrictBool = Field(
        default=False,
        description="train neck and head only; the backbone keeps its weights, and rows over the "
        "same one train in one job",
    )
    gpus: StrictInt = Field(
        default=8,
        ge=0,
        le=16,
        description="GPUs of one run, over all its nodes; no more are used than the machine has, "
        "and none means the CPU. The result does not depend on it",
    )
    nodes: Annotated[StrictInt, Field(ge=1, le=10_000)] = Field(
        default=1, description="machines of one run (SLURM)"
    )
    cpus: Count | None = Field(
        default=None, description="CPU cores of one run; 8 a GPU unless set, at least 2"
    )
    images_per_gpu: Count | None = Field(
        default=None,
        description="images that fit on a GPU at once; the rest of its share of the 16 of an "
        "iteration is accumulated",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="auto is the GPUs, or the CPU where there are none"
    )
    resources: Resources = Field(
        default=Resources(), description="what the jobs of this row ask a cluster for"
    )
    data: str | None = Field(
        default=None,
        description="data set, by its name under `datasets`; the sheet's `data` unless set",
    )
    aug_test: StrictBool = Field(
        default=False,
        description="evaluate with flips and several scales too, for a column of its own",
    )
    class_weights: (
        Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] | None
    ) = Field(default=None, description="weights of the classes in the loss, one for each")


class Experiment(Settings):
    """One combination of checkpoint and learning rate: a row of the sheet and of the table."""

    name: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    ] = Field(description="unique name; results are written to a folder of this name")
    backbone: Backbone = Field(description="the backbone, as the table names it")
    pretraining_epochs: Epochs = Field(description="length of the pretraining, epochs")
    checkpoint: Checkpoint = Field(
        description="pretrained checkpoint: path, URL, or hf:OWNER/NAME of the Hugging Face hub; "
        "none to train from random weights"
    )
    checkpoint_sha256: Sha256 | None = Field(
        default=None, description="SHA-256 that the checkpoint must have (64 hex digits)"
    )
    config: FileName | None = Field(
        default=None,
        description="config: stem of a file under configs_local, or a path; "
        "the recipe of the backbone or of timm models unless set",
    )
    learning_rate: LearningRate | None = Field(
        default=None,
        description="learning rate; may be left out where the config's name holds it",
    )
    published_miou: Percent | None = Field(
        default=None, description="published mIoU to compare with, percent"
    )
    published_miou_multi_scale: Percent | None = Field(
        default=None, description="published mIoU with flips and several scales, percent"
    )

    @property
    def cores(self) -> int:
        """CPU cores of a training on each node: what the row says, or eight per GPU."""
        return self.cpus or max(2, 8 * self.gpus // self.nodes)

    @property
    def memory_mb(self) -> int:
        """Memory of a training on each node, MB, unless `resources` says otherwise."""
        return 8000 + 16000 * (self.gpus // self.nodes)

    @property
    def stem(self) -> str:
        """Name of the config file without folder and suffix."""
        return Path(self.config or self.recipe or "").stem

    @property
    def recipe(self) -> str | None:
        """Config of a row that names none, or None where its backbone has no recipe."""
        return TIMM_RECIPES[self.frozen] if self.timm else RECIPES.get(self.backbone)

    @property
    def trains_with(self) -> str | None:
        """What rows of one frozen backbone have in common that train together; None for others.

        They may differ in learning rate, weight decay and head, and in what only a table reads.
        """
        if not (self.frozen or re.match(r"linear_(timm|dinov[23])_", self.stem)):
            return None
        own = {"name", "learning_rate", "head", "published_miou", "published_miou_multi_scale"}
        options = {k: v for k, v in self.options.items() if k != WEIGHT_DECAY}
        return f"{self.model_dump(exclude=own | {'options', 'aug_test'})} {sorted(options.items())}"

    @property
    def model_options(self) -> dict[str, str]:
        """What the row replaces in its config's model, as options."""
        choice = {"timm": self.timm, "head": self.head, "frozen": self.frozen or None}
        if self.class_weights is not None:
            choice["class_weights"] = str(list(self.class_weights)).replace(" ", "")
        choice["pretrained"] = None if self.has_checkpoint else "None"
        return {f"model.{key}": str(value) for key, value in choice.items() if value is not None}

    @property
    def head_label(self) -> str:
        """The head as a table names it: the row's, or what the name of its config begins with."""
        name = self.head or ("linear" if self.timm and self.frozen and not self.config else None)
        stem = self.stem
        if name is None:
            known = (head for head in HEAD_LABELS if f"{stem}_".startswith(f"{head}_"))
            name = max(known, key=len, default=re.split(r"[_-]", stem)[0])
        return HEAD_LABELS.get(name, Path(name).stem)

    @property
    def recipe_changes(self) -> str:
        """What the row changes in its recipe besides learning rate, backbone and head, as text."""
        knobs = ("iterations", "batch_size", "crop_size")
        values = {key: getattr(self, key) for key in knobs} | self.options
        if self.class_weights is not None:
            values["class_weights"] = " ".join(f"{weight:g}" for weight in self.class_weights)
        texts = {
            key: " x ".join(str(part) for part in value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if value is not None
        }
        return ", ".join(f"{key} {value}" for key, value in texts.items())

    @property
    def has_checkpoint(self) -> bool:
        """Whether the backbone starts from a checkpoint, not from random weights."""
        return self.checkpoint != "none"

    @property
    def checkpoint_is_url(self) -> bool:
        """Whether the checkpoint is to be downloaded."""
        return is_url(self.checkpoint)


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

    @property
    def size(self) -> int:
        """Number of rows that the grid expands to."""
        return len(self.backbone) * len(self.pretraining_epochs) * len(self.learning_rate)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that the grid expands to.

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
                "size": SIZES.get(backbone, backbone.lower().replace("-", "_")),
                "epochs": epochs,
            }
            yield shared | {
                "name": fill_pattern(self.name, fields | {"learning_rate": rate}),
                "backbone": backbone,
                "pretraining_epochs": epochs,
                "learning_rate": rate,
                "checkpoint": fill_pattern(self.checkpoint, fields),
            }


class SheetFile(_Strict):
    """An experiment sheet: what to run, on which data, and where the results go."""

    results: FolderName = Field(
        default="results", description="folder of everything that runs produce"
    )
    data: Data = Field(default=Data(), description="images to train and evaluate on")
    datasets: dict[DatasetName, Data] = Field(
        default={}, description="further data sets, by the name that rows call them in their `data`"
    )
    defaults: Settings = Field(
        default=Settings(), description="values of the rows and grids that do not set their own"
    )
    experiments: tuple[Experiment, ...] = Field(
        default=(), description="combinations, one row each"
    )
    grid: Annotated[tuple[Grid, ...], _OneOrMany()] = Field(
        default=(), description="combinations spanned by lists; one grid or several"
    )
