"""Pictures and label maps of predicted images."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.structures import SegDataSample

from cae_seg.data.images import read_image
from cae_seg.data.visualize import (
    check_picture_file,
    draw_comparison,
    draw_labels,
    palette_of,
    write_picture,
)
from cae_seg.errors import UserError

logger = logging.getLogger(__name__)

IMAGES_DRAWN = 4


@HOOKS.register_module()
class VisualizationHook(Hook):
    """Paint a few validation images at each evaluation: image, truth and prediction.

    Args:
        folder: `iter_<n>/` of each evaluation goes here.
    """

    stateless = True

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        self._failed = False

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[SegDataSample] | None = None,
    ) -> None:
        """Paint the images whose turn it is; a picture that cannot be written is left out."""
        dataset = runner.val_dataloader.dataset
        every = -(-len(dataset) // IMAGES_DRAWN)
        for number, sample in numbered(runner.val_dataloader, runner, batch_idx, outputs):
            if number % every == 0 and not self._failed:
                self._paint(runner, sample, dataset.metainfo)

    def _paint(self, runner: Runner, sample: SegDataSample, metainfo: Mapping[str, Any]) -> None:
        path = Path(sample.img_path)
        panel = draw_comparison(
            read_image(path),
            sample.gt_sem_seg.data[0].cpu().numpy(),
            sample.pred_sem_seg.data[0].cpu().numpy(),
            metainfo["classes"],
            palette_of(metainfo),
        )
        try:
            write_picture(panel, self._folder / f"iter_{runner.iter}" / f"{path.stem}.png")
        except UserError as error:
            self._failed = True
            logger.warning("%s; further pictures of this attempt are left out", error)


@HOOKS.register_module()
class ColourMapHook(Hook):
    """Paint the prediction of every test image in the classes' colours.

    Args:
        folder: `<image>.png` go here.
    """

    stateless = True

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)

    def before_test(self, runner: Runner) -> None:
        """Check that nothing but earlier paintings would be replaced, before any work.

        Raises:
            UserError: naming the first file that is not ours.
        """
        dataset = runner.test_dataloader.dataset
        for number in range(len(dataset)):
            check_picture_file(self._target(dataset.get_data_info(number)["img_path"]))

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[SegDataSample] | None = None,
    ) -> None:
        """Paint the images of a batch.

        Raises:
            UserError: the folder cannot be written.
        """
        for sample in outputs:
            labels = sample.pred_sem_seg.data[0].cpu().numpy()
            palette = palette_of(runner.test_dataloader.dataset.metainfo)
            write_picture(draw_labels(labels, palette), self._target(sample.img_path))

    def _target(self, image: str) -> Path:
        return self._folder / f"{Path(image).stem}.png"


@HOOKS.register_module()
class LabelMapHook(Hook):
    """Keep the predicted label map of every test image of this rank.

    Attributes:
        labels: number of the image in the data set → (height, width) label map.
    """

    stateless = True

    def __init__(self) -> None:
        self.labels: dict[int, np.ndarray] = {}

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[SegDataSample] | None = None,
    ) -> None:
        """Keep the maps of a batch."""
        for number, sample in numbered(runner.test_dataloader, runner, batch_idx, outputs):
            self.labels[number] = sample.pred_sem_seg.data[0].cpu().numpy()


def numbered(
    loader: Any, runner: Runner, batch_idx: int, outputs: Sequence[SegDataSample] | None
) -> Iterator[tuple[int, SegDataSample]]:
    """Yield each predicted image of a batch with its number in the data set.

    Ranks take every `world`-th image, as mmengine's DefaultSampler deals them out.
    """
    first = batch_idx * loader.batch_size
    for place, sample in enumerate(outputs or ()):
        yield (first + place) * runner.world_size + runner.rank, sample
