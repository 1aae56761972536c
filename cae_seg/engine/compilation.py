"""The key `compile`: torch.compile of blocks and convolutions' tails in training; off by default.

mmengine compiles `train_step`, which here draws masks, goes through micro-batches and steps the
optimiser: nothing that a compiler follows. The backbone's blocks are most of the work, and one like
the other; norms and activations after convolutions are what a compiler joins.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.dist import get_world_size
from torch import nn

from cae_seg.errors import UserError
from cae_seg.models.heads.upernet import ConvTail


def check_compile(config: Config, *, deterministic: bool) -> None:
    """Check the key `compile`, if a config has it.

    Raises:
        UserError: it is of another kind, or contradicts `deterministic`.
    """
    chosen = config.get("compile")
    if not isinstance(chosen, bool | dict | None):
        raise UserError(f"compile={chosen}: must be True, False, or arguments of torch.compile")
    if compiles(config) and deterministic:
        raise UserError(
            "compile: compiled kernels need not repeat to the bit, as --deterministic promises; "
            "leave one of the two out"
        )


def compiles(config: Config) -> bool:
    """Tell whether a config asks for compiled parts; empty arguments do, as in mmengine."""
    chosen = config.get("compile")
    return chosen if isinstance(chosen, bool) else chosen is not None


def compile_parts(model: nn.Module, config: Config) -> None:
    """Let the backbone's blocks, and convolutions' tails elsewhere, run compiled from now on.

    Raises:
        UserError: there are none, there is no compiler, or torch refuses the arguments.
    """
    options = _options(config)
    compiler = os.environ.get("CXX", "g++")
    if options.get("backend", "inductor") == "inductor" and not shutil.which(compiler):
        raise UserError(
            f"compile: {compiler} is not on the PATH; install a C++ compiler, name it in the "
            "variable CXX, or leave compile out"
        )
    backbone = getattr(model, "backbone", model)
    blocks = list(_blocks(backbone))
    if not blocks:
        name = type(backbone).__name__
        raise UserError(f"compile: {name} has no row of equal blocks to compile; leave compile out")
    parts = [*blocks, *_tails(model, blocks)]
    try:
        for part in parts:
            part.compile(**options)
    except Exception as error:  # torch has no type for wrong arguments
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"compile: torch.compile refuses its arguments ({reason})") from error
    # torch gives up, without an error, on code that it compiled in more forms; a block may have
    # one in which drop path is off, each block of its own rate another, each tail its shape.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 2 * len(parts))


@contextlib.contextmanager
def eager(config: Config) -> Iterator[None]:
    """Compute without compiled code inside, as everywhere but in training.

    Evaluations give what `cae-seg evaluate` gives, and their sizes leave no other code behind for
    the training after them.
    """
    if not compiles(config):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _options(config: Config) -> dict[str, Any]:
    """Return the arguments of torch.compile; crops have one size, so shapes are taken as fixed."""
    chosen = config.get("compile")
    return {"dynamic": False, **(chosen if isinstance(chosen, dict) else {})}


def _blocks(backbone: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules with parts of their own that stand in a row of their kind."""
    rows = (nn.ModuleList, nn.Sequential)
    for module in backbone.modules():
        row = list(module) if isinstance(module, rows) else []
        alike = len(row) > 1 and len({type(part) for part in row}) == 1
        if alike and not isinstance(row[0], rows) and next(row[0].children(), None) is not None:
            yield from row


def _tails(model: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Yield the modules outside of blocks in which a norm or activation follows a convolution.

    None with several ranks: a norm that waits for all of them stands between what could be joined.
    """
    if get_world_size() > 1:
        return
    inside = {part for block in blocks for part in block.modules()}
    for module in model.modules():
        if isinstance(module, ConvModule | ConvTail) and module not in inside:
            yield module
