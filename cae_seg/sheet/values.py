"""Single values of a sheet: what is accepted, and in which form it is kept."""

import re
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

EXPANDED = frozenset("<>{}")
"""Characters in the names of input files that Snakemake replaces."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_SECRET = re.compile(
    r"token|secret|password|passwd|signature|credential|api_?key|^(sig|key)$", re.I
)
_REFERENCE = re.compile(r"\$\{\w+\}")


def number_of(value: Any) -> float:
    """Return a number that may be written as text; YAML 1.1's other spellings are refused."""
    if isinstance(value, bool) or not _NUMBER.fullmatch(str(value).strip()):
        raise ValueError("is no number; write digits such as 48.1 or 2e-4")
    return float(value)


def rate_text(value: Any) -> str:
    """Return a learning rate as the text it was written as, after checking that it is one."""
    try:
        rate = number_of(value)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ValueError("is no learning rate; write a positive number such as 2e-4")
    return str(value).strip()


def one_or_many(value: Any) -> Any:
    """Accept a single value as a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def check_distinct(values: tuple) -> tuple:
    """Refuse a list that holds a value twice."""
    if len(set(values)) < len(values):
        raise ValueError("holds a value twice")
    return values


def option_text(value: Any) -> str:
    """Return a config value in the spelling of `--cfg-options`."""
    if isinstance(value, list | dict):
        raise ValueError('is a list or mapping; write it as text, "[1,2]"')
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_printable(value: Any) -> Any:
    """Refuse control characters in text, its keys and its items."""
    texts = [*value, *value.values()] if isinstance(value, dict) else [value]
    for text in texts:
        if isinstance(text, str) and not text.isprintable():
            raise ValueError("contains a line break or another control character; remove it")
    return value


def hub_url(source: str) -> str:
    """Return the URL of a model's weights on the Hugging Face hub for `hf:OWNER/NAME`.

    Any other source is returned as it is.

    Raises:
        ValueError: a name of another form.
    """
    if not source.startswith("hf:"):
        return source
    name = source.removeprefix("hf:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError("is no model of the Hugging Face hub; write hf:OWNER/NAME")
    return f"https://huggingface.co/{name}/resolve/main/model.safetensors"


def is_url(source: str) -> bool:
    """Tell whether a source is to be downloaded."""
    return source.startswith(("http://", "https://"))


def check_source(value: str) -> str:
    """Check the name of a local file, or a URL, which must be valid and hold no secret."""
    if is_url(value):
        _check_url(value)
    elif set(value) & EXPANDED:
        raise ValueError("contains one of <>{}, which Snakemake expands; rename the file")
    return value


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(_REFERENCE.sub("x", url))
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("is not a valid address; correct host and port")
    if "@" in parts.netloc:
        raise ValueError("contains a user name or password; put them into ~/.netrc")
    for name, content in parse_qsl(urlsplit(url).query):
        if _SECRET.search(name) and not _REFERENCE.fullmatch(content):
            raise ValueError(
                f"contains the secret {name!r}; write {name}=${{NAME}} and set the environment "
                "variable NAME"
            )


def check_folder_name(value: str) -> str:
    """Refuse folder names that Snakemake expands or that a shell or SLURM could misread."""
    if not re.fullmatch(r"[\w .,+@=~()/-]+", value) or value.startswith(("-", "~")):
        raise ValueError(
            "is no folder name that Snakemake and SLURM can pass on; use letters, digits, "
            "spaces and .,+@=~()/-_ only, with no - or ~ in front"
        )
    return value


def check_sbatch_options(value: str) -> str:
    """Refuse what a shell would expand: the SLURM executor does not quote `slurm_extra`."""
    if set(value) & set("$`;&|<>(){}\\*?#!~"):
        raise ValueError("contains a character that the shell expands; use plain sbatch options")
    try:
        shlex.split(value)
    except ValueError as error:
        raise ValueError("has an unbalanced quotation mark") from error
    return value


def fill_pattern(pattern: str, fields: Mapping[str, Any]) -> str:
    """Replace `{field}` in a pattern of a grid; nothing else of Python's formats is known.

    Raises:
        ValueError: an unknown field, or a single brace.
    """
    known = {f"{{{name}}}": str(value) for name, value in fields.items()}
    filled = re.sub("|".join(map(re.escape, known)), lambda found: known[found[0]], pattern)
    if set(re.sub("|".join(map(re.escape, known)), "", pattern)) & set("{}"):
        raise ValueError(f"grid: the pattern {pattern!r} may hold {', '.join(known)} only")
    return filled
