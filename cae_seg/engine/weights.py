"""Fill a whole segmentor from fine-tuned weights."""

from pathlib import Path

from torch import nn

from cae_seg.models.pretrained.layouts import find_tensors
from cae_seg.models.pretrained.published import load_published
from cae_seg.models.pretrained.reading import load_checkpoint_file
from cae_seg.models.pretrained.values import check_values
from cae_seg.run.work_dir import WorkDir


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill the whole segmentor from a fine-tuned checkpoint, ours or a published one.

    Raises:
        UserError: it cannot be read, is of another architecture, or was damaged since the run
            that it is of has ended.
    """
    if (work := WorkDir(path.parent)).weights == path:
        work.check_weights()
    contents = load_checkpoint_file(path)
    check_values(find_tensors(contents), model.state_dict(), path)
    load_published(model, contents, source=str(path))
