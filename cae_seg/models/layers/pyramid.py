"""mmsegmentation's pyramid over maps of one stride, whose last deconvolutions a head may do."""

from collections.abc import Collection, Sequence

from mmseg.models.necks import Feature2Pyramid
from torch import Tensor, nn

from cae_seg.models.ops.convolution import Unexpanded


class FastFeature2Pyramid(Feature2Pyramid):
    """`Feature2Pyramid`: four maps (N, C, h, w) of one stride to four strides, finest first."""

    @property
    def levels(self) -> tuple[nn.Module, ...]:
        """What makes each map, finest first."""
        if self.upsample_4x is not None:
            return self.upsample_4x, self.upsample_2x, self.identity, self.downsample_2x
        return self.upsample_2x, self.identity, self.downsample_2x, self.downsample_4x

    @property
    def deconvolved(self) -> tuple[int, ...]:
        """Levels that come out of a deconvolution."""
        return (0, 1) if self.upsample_4x is not None else (0,)

    def forward(
        self, inputs: Sequence[Tensor], unexpanded: Collection[int] = ()
    ) -> tuple[Tensor | Unexpanded, ...]:
        """Return the pyramid.

        Args:
            inputs: four maps.
            unexpanded: levels, of those in `deconvolved`, to leave before their deconvolution.
        """
        return raise_levels(self.levels, inputs, unexpanded)


def raise_levels(
    levels: Sequence[nn.Module], maps: Sequence[Tensor], unexpanded: Collection[int]
) -> tuple[Tensor | Unexpanded, ...]:
    """Return what each level makes of its map, some before their last layer, a deconvolution."""
    return tuple(
        Unexpanded(level[:-1](x), level[-1]) if n in unexpanded else level(x)
        for n, (level, x) in enumerate(zip(levels, maps, strict=True))
    )
