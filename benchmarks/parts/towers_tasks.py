"""The tasks of `towers.py`: comparison with open_clip and timm, kept memory, a training step and the mining of a batch."""

from typing import Any

import open_clip
import timm
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from famix.clip import CLIPImageTower, PromptEncoder
from famix.clip.base import family_named
from famix.clip.files import CLIPStateDict
from famix.clip.open_clip.timm_backbone import build_timm_tower
from famix.config import load_config
from famix.engine.optimization import build_optimizer
from famix.mining.miner import MiningSettings, PromptTable, StyleMiner
from parts.common import PROJECT, measure

SIDE, STYLES = 512, 2
TEXTS = ["road", "Urban Grit style car", "foggy sky", "person", "traffic light"]
TEMPLATES = ["a photo of a {}.", "a bad photo of the {}.", "{}", "itap of a {}."]


def relative(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference in units of the largest value."""
    return float((got - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def compare(architecture: str) -> dict[str, float]:
    """Compare image and text tower with the forward pass of open_clip or timm."""
    if architecture.startswith("vit_"):
        return compare_timm(architecture)
    name = architecture.removeprefix("open_clip:")
    model: Any = open_clip.create_model(name, pretrained=None).eval()
    vary(model)
    weights = CLIPStateDict(model.state_dict())
    weights.architecture = f"open_clip:{name}"
    tower = CLIPImageTower.from_state_dict(weights, trainable=())
    images = torch.randn(1, 3, tower.input_resolution, tower.input_resolution)
    expected = model.encode_image(images)
    maps = model.visual.forward_intermediates(images, intermediates_only=True)["image_intermediates"][
        -len(tower.stages) :
    ]
    found = {
        "size": tower.input_resolution,
        "stages": 0.0,
        "image": relative(tower.encode_image(images), expected),
        "from": 0.0,
    }
    for stage, reference in zip(tower.stages, maps, strict=True):
        features = tower.features_at(stage, images)
        found["stages"] = max(found["stages"], relative(features, reference))
        found["from"] = max(found["from"], relative(tower.encode_from(stage, features), expected))
    encoder = PromptEncoder(weights, activation="gelu", causal=True)
    if "SigLIP" in name:
        tokens = torch.randint(encoder.tower.vocab_size, (20, encoder.tower.context_length))
        return {**found, "text": relative(encoder.tower(tokens), model.encode_text(tokens))}
    sentences = [template.format(text) for text in TEXTS for template in TEMPLATES]
    means = model.encode_text(open_clip.get_tokenizer(name)(sentences)).unflatten(0, (5, 4)).mean(1)
    return {**found, "text": relative(encoder(TEXTS, TEMPLATES), nn.functional.normalize(means, dim=1))}


def compare_timm(name: str) -> dict[str, float]:
    """Compare the maps of a backbone without text tower with timm's, at its own patch size."""
    tower = build_timm_tower(name, "", 16, ()).eval()
    reference: Any = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    vary(tower)
    reference.load_state_dict(tower.trunk.state_dict(), strict=False)  # without the final norm
    images = torch.randn(1, 3, 224, 224)
    maps = reference.forward_intermediates(images, norm=False, intermediates_only=True)
    pairs = zip(tower.stages, maps, strict=True)
    return {"size": 224, "stages": max(relative(tower.features_at(stage, images), map_) for stage, map_ in pairs)}


def vary(model: nn.Module) -> None:
    """Vary biases, norms and layer scales, which hide blocks if they are close to zero."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))


def make_config(architecture: str, options: dict[str, Any]) -> Any:
    """Return the config of a segmentation network with noise styles."""
    resnet, timm = architecture.startswith("RN"), architecture.startswith("vit_")
    pyramid = timm or "ViT" in architecture or "EVA" in architecture
    settings = {
        "MODEL.DEVICE": "cpu", "MODEL.STYLE.STRATEGY": "noise", "MODEL.CLIP.WEIGHTS": "", "MODEL.CLIP.TRAINABLE": [],
        "MODEL.BACKBONE.NAME": "build_timm_backbone" if timm else "build_clip_backbone",
        "MODEL.TIMM.NAME" if timm else "MODEL.CLIP.ARCHITECTURE": architecture,
        "MODEL.CLIP.OUTPUT_STRIDE": 16 if resnet or pyramid else 32,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p4"] if pyramid else ["res2", "res5"],
        "MODEL.STYLE.STAGE": "block1" if pyramid else "res2", "SOLVER.OPTIMIZER": "ADAMW", "SOLVER.BASE_LR": 1e-4, **options,
    }  # fmt: skip
    return load_config(str(PROJECT / "configs/Base-FAMix.yaml"), [x for pair in settings.items() for x in pair])


def count(architecture: str, options: dict[str, Any]) -> dict[str, float]:
    """Count parameters, and the GiB that autograd keeps for a backward pass per image and once, on tensors without values."""
    mode, cpu = FakeTensorMode(), torch.device("cpu")
    with torch.device("meta"):
        cfg = make_config(architecture, {**options, "MODEL.STYLE.STRATEGY": "none"})
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).train()
    for part in model.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(FakeTensor(mode, weight.data, cpu), weight.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else FakeTensor(mode, buffer, cpu)
    sizes = [(x.numel() / 1e6, x.requires_grad) for x in model.parameters()]
    found = {"parameters": sum(size for size, _ in sizes), "trained": sum(size for size, learns in sizes if learns)}
    for dtype in (torch.float32, torch.bfloat16):
        one, two = (_kept_in_batch(mode, model, dtype, images) for images in (1, 2))
        name = str(dtype).removeprefix("torch.")
        found |= {f"{name}/image": (two - one) / 2**30, f"{name}/once": (2 * one - two) / 2**30}
    return found


def _kept_in_batch(mode: FakeTensorMode, model: Any, dtype: torch.dtype, images: int) -> int:
    weights = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
    memories: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        memory = x.untyped_storage()
        if memory._cdata not in weights:
            memories[memory._cdata] = memory.nbytes()
        return x

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with mode, autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        features = model.backbone(torch.empty(images, 3, SIDE, SIDE))
        losses = model.sem_seg_head(features, torch.empty(images, SIDE, SIDE, dtype=torch.long))
    del losses  # tensors stay alive until here, so that no memory is counted twice
    return sum(memories.values())


def train(architecture: str, options: dict[str, Any]) -> dict[str, float]:
    """Measure a training step."""
    cfg = make_config(architecture, options)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()  # creates its state
    batch = [{"image": torch.randint(256, (3, SIDE, SIDE)).float(), "sem_seg": torch.randint(19, (SIDE, SIDE))}]

    def step() -> None:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    return measure(step)


def mine(architecture: str) -> dict[str, float]:
    """Measure the mining of a batch."""
    family, sizes = family_named(architecture)
    create: Any = family
    tower = create(sizes, 32, trainable=(), with_embedding=True).eval()
    half = torch.arange(SIDE).expand(SIDE, SIDE) >= SIDE // 2
    samples = [{"image": torch.randint(256, (3, SIDE, SIDE)).float(), "sem_seg": half.long()} for _ in range(2)]
    with torch.no_grad():
        size = tower.encode_image(torch.zeros(1, 3, tower.input_resolution, tower.input_resolution)).shape[1]

    def mine_batch(steps: int) -> None:
        miner = StyleMiner(
            clip=tower,
            prompts=PromptTable(["road", "sky"], ["foggy"]),
            encode_prompts=lambda texts: nn.functional.normalize(torch.randn(len(texts), size), dim=1),
            settings=MiningSettings(tower.pixel_mean, tower.pixel_std, stage=tower.stages[0], steps=steps),
        )
        assert len(miner.mine_batch(0, samples).class_ids) == STYLES

    rest, found = measure(lambda: mine_batch(0)), measure(lambda: mine_batch(1))
    return {**found, "step": (found["seconds"] - rest["seconds"]) / STYLES}
