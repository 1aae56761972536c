"""Test-time augmentation: all views of an image at once."""

from typing import Any

from mmseg.models.segmentors import SegTTAModel
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample


@MODELS.register_module()
class FastTTAModel(SegTTAModel):
    """`SegTTAModel` over a `FastEncoderDecoder`, without a full-size map of logits per view."""

    @property
    def images_per_batch(self) -> int:
        """Images of an evaluation whose windows share forward passes."""
        return self.module.images_per_batch

    def test_step(self, data: dict[str, Any]) -> list[SegDataSample]:
        """Predict images from their augmented views.

        Args:
            data: `inputs` and `data_samples`, for each augmentation a list over the images.
        """
        return self.module.predict_views(data["inputs"], data["data_samples"])
