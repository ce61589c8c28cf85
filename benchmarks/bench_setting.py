"""What the speed benchmark runs on: sizes for each kind of machine, the networks, and inputs drawn from the seed."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_turns import Clock
from detectron2.config import CfgNode
from torch import Tensor

from famix.clip import CLIPResNet
from famix.clip.architecture import ARCHITECTURES, CLIPArchitecture, random_clip
from famix.clip.openai import CLIP
from famix.engine import load_config
from famix.modeling import CLIPDeepLabV3PlusHead, FAMixSemanticSegmentor
from famix.style import STYLE_STRATEGY_REGISTRY, PatchRestyler, StyleBank

__all__ = ["CONFIG", "GRID", "NUM_CLASSES", "SGD", "SIZES", "Setting", "Sizes", "random_batch"]

CONFIG = Path(__file__).parent.parent / "projects/FAMix/configs/GTA5/famix_RN50.yaml"
NUM_CLASSES = 19
GRID = (3, 3)
SGD: dict[str, Any] = {"lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4}  # of mining


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        architecture: of CLIP.
        text_layers: of its text tower; None = 12.
        styles: of a mining step.
        mining_images: of a batch of mining.
        mining_steps: of the optimiser, in what is measured as a whole batch or pass.
        templates: sentences of a prompt in these.
        crop: side of the square crops of mining, in pixels, and of training where memory is measured.
        step_crop: side of the crops where the time of training steps is.
        images: of a training step.
        evaluated: height and width of whole images.
        evaluated_images: of a pass over a test set.
        rounds: in which all contenders have their turn.
    """

    architecture: CLIPArchitecture = ARCHITECTURES["RN50"]
    text_layers: int | None = None
    styles: int = 4
    mining_images: int = 2
    mining_steps: int = 20
    templates: int = 16
    crop: int = 768
    step_crop: int = 384
    images: int = 2
    evaluated: tuple[int, int] = (1024, 2048)
    evaluated_images: int = 3
    rounds: int = 3

    def __str__(self) -> str:
        height, width = self.evaluated
        return (
            f"crops of {self.crop} x {self.crop}, in timed training steps {self.step_crop} x {self.step_crop}; training steps of "
            f"{self.images} images; mining steps of {self.styles} "
            f"styles; mining batches of {self.mining_images} images, {self.mining_steps} steps (the recipe: 16 images, "
            f"100 steps), {self.templates} sentences of a prompt (80); whole images of {height} x {width}"
        )


SIZES = {
    "cpu": Sizes(),
    "cuda": Sizes(
        styles=20,
        mining_images=16,
        mining_steps=100,
        templates=80,
        step_crop=768,
        images=8,
        evaluated_images=8,
        rounds=10,
    ),
    "quick": Sizes(
        architecture=CLIPArchitecture.of((1, 1, 1, 1), width=8, embed_dim=16, input_resolution=64),
        text_layers=1,
        styles=2,
        mining_steps=2,
        templates=2,
        crop=96,
        step_crop=48,
        evaluated=(64, 128),
        evaluated_images=2,
        rounds=1,
    ),
}


@dataclass(frozen=True)
class Setting:
    """A run of the benchmark.

    Attributes:
        sizes: how much is measured.
        device: "cpu" or "cuda".
        seed: of all weights and inputs.
        folder: for files.
    """

    sizes: Sizes
    device: str
    seed: int
    folder: Path

    @cached_property
    def clip(self) -> CLIP:
        """OpenAI's own implementation, with random weights; frozen and in eval mode."""
        sizes = self.sizes
        clip = random_clip(
            sizes.architecture, seed=self.seed, text_layers=sizes.text_layers, random_norms=True, calibrated_norms=True
        )
        return clip.to(self.device).requires_grad_(False)

    @cached_property
    def miner_network(self) -> CLIPResNet:
        """The same image tower as mining uses it."""
        return CLIPResNet.from_state_dict(self.clip.state_dict(), trainable=()).to(self.device)

    @property
    def clock(self) -> Clock:
        """A clock for the device."""
        return Clock(self.device)

    def generator(self) -> torch.Generator:
        """A source of random numbers on the CPU."""
        return torch.Generator().manual_seed(self.seed)

    def config(self, *options: object) -> CfgNode:
        """The recipe's config on this device."""
        return load_config(str(CONFIG), ["MODEL.CLIP.WEIGHTS", "", "MODEL.DEVICE", self.device, *map(str, options)])

    def segmentor(self) -> FAMixSemanticSegmentor:
        """The network of the recipe: frozen up to the last block of CLIP. It restyles nothing yet."""
        backbone = CLIPResNet.from_state_dict(
            self.clip.state_dict(), trainable=(self.last_block,), with_embedding=False
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            head = CLIPDeepLabV3PlusHead(backbone.output_shape(), in_features=("res2", "res5"), num_classes=NUM_CLASSES)
        cfg = self.config()
        model = FAMixSemanticSegmentor(
            backbone=backbone, sem_seg_head=head, pixel_mean=cfg.MODEL.PIXEL_MEAN, pixel_std=cfg.MODEL.PIXEL_STD
        )
        return model.to(self.device).train()

    @property
    def last_block(self) -> str:
        """Name of the block that trains."""
        return f"layer4.{self.sizes.architecture.layers[3] - 1}"

    def restyler(self, strategy: str, styles_per_class: int = 500, grid: tuple[int, int] = GRID) -> PatchRestyler:
        """A restyler; the recipe's bank has some 500 styles of a class."""
        restyler = PatchRestyler(
            strategies=[STYLE_STRATEGY_REGISTRY.get(strategy).from_config(self.config())], grid=grid, beta=0.1
        )
        if restyler.needs("bank"):
            restyler.use_bank(random_bank(self.channels, styles_per_class, self.generator()))
        return restyler

    @property
    def channels(self) -> int:
        """Of the restyled stage."""
        return self.sizes.architecture.channels(0)

    def patches(self, count: int) -> Tensor:
        """Patches (count, C, h, w) of the size that the grid cuts out of a crop, as mining gets them."""
        side = self.sizes.crop // 4 // GRID[0]
        noise = torch.randn(count, self.channels, side, side, generator=self.generator())
        return noise.relu_().to(self.device).contiguous(memory_format=torch.channels_last)

    def texts(self, count: int) -> Tensor:
        """Embeddings (count, D) of unit length."""
        noise = torch.randn(count, self.sizes.architecture.embed_dim, generator=self.generator())
        return F.normalize(noise, dim=1).to(self.device)


def random_bank(channels: int, styles_per_class: int, generator: torch.Generator) -> StyleBank:
    """A bank of random styles for all classes and unlabelled patches."""
    bank = StyleBank()
    class_ids = torch.arange(NUM_CLASSES + 1).repeat_interleave(styles_per_class)
    class_ids[class_ids == NUM_CLASSES] = 255
    mean, std = torch.rand(2, len(class_ids), channels, generator=generator)
    bank.add(class_ids, mean, std)
    return bank


def random_batch(images: int, crop: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Noise images with random labels, as a loader gives them."""
    return [
        {
            "image": torch.randint(0, 256, (3, crop, crop), generator=generator, dtype=torch.uint8),
            "sem_seg": torch.randint(0, NUM_CLASSES, (crop, crop), generator=generator),
        }
        for _ in range(images)
    ]
