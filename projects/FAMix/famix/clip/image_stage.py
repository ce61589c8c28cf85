"""The image as a stage, for picture styles: statistics of the pixels instead of features, which suit any backbone."""

from collections.abc import Mapping
from typing import Any, NoReturn

from detectron2.layers import ShapeSpec
from torch import Tensor

from famix.clip.base import CLIPImageTower

IMAGE = "image"
"""Value of MODEL.STYLE.STAGE for picture styles."""


class ImageStage(CLIPImageTower):
    """View of a CLIP image tower whose only stage is the image itself, in pixel values 0-255.

    Args:
        tower: the tower that embeds images.
    """

    stages = (IMAGE,)
    mined_on_images = True

    def __init__(self, tower: CLIPImageTower) -> None:
        super().__init__()
        self.tower = tower
        self.pixel_mean, self.pixel_std = tower.pixel_mean, tower.pixel_std
        self.input_resolution, self.with_embedding = tower.input_resolution, tower.with_embedding
        self.trainable = ("tower",)  # which freezes its own submodules

    @classmethod
    def recognises(cls, state_dict: Mapping[str, Tensor]) -> bool:
        """Return False, since this is no family."""
        return False

    @classmethod
    def read_architecture(cls, state_dict: Mapping[str, Tensor], with_embedding: bool = True) -> NoReturn:
        """Not supported."""
        raise NotImplementedError("ImageStage is a view of a tower and has no architecture")

    def stem(self, images: Tensor, dense: bool) -> Tensor:
        """Return the pixel values (B, 3, H, W) of normalized images."""
        return images * self._column(self.pixel_std, images) + self._column(self.pixel_mean, images)

    def run_stage(self, stage: str, x: Tensor, dense: bool) -> Tensor:
        """Return the images unchanged."""
        return x

    def embed(self, x: Tensor) -> Tensor:
        """Embed images in pixel values."""
        return self.tower.encode_image((x - self._column(self.pixel_mean, x)) / self._column(self.pixel_std, x))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """See CLIPImageTower."""
        return {IMAGE: ShapeSpec(channels=3, stride=1)}

    @staticmethod
    def _column(values: Any, like: Tensor) -> Tensor:
        return like.new_tensor(values).view(3, 1, 1)


def at_stage(tower: CLIPImageTower, stage: str) -> CLIPImageTower:
    """Return the tower that has a stage: `tower` itself, or its `ImageStage`.

    Raises:
        ConfigError: the stage is unknown.
    """
    if stage == IMAGE:
        return ImageStage(tower)
    tower.check_stage(stage)
    return tower
