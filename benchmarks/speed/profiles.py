"""Profiles of a training step, mining and a prediction: the largest operations, their share, and how fast they compute."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from parts.towers_tasks import make_config
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from famix.clip.base import family_named
from famix.engine import build_optimizer
from famix.style import optimize_styles
from famix_minitown.runs.study import markdown
from speed.mining import SGD
from speed.setting import Setting

NETWORKS = {"RN50": "RN50", "ConvNeXt-B": "open_clip:convnext_base_w", "ViT-B-16": "open_clip:ViT-B-16"}
TRAINABLE = {"RN50": ["layer4.2"]}  # the other towers are frozen
ITEMS = 10
ARITHMETIC = {  # kind -> operators in the profile, and in the counter of floating-point operations
    "convolutions, forward": (
        ("mkldnn_convolution", "_slow_conv2d_forward", "thnn_conv2d", "_conv_depthwise2d", "cudnn_convolution"),
        ("convolution",),
    ),
    "convolutions, backward": (
        ("convolution_backward", "_slow_conv2d_backward", "mkldnn_convolution_backward"),
        ("convolution_backward",),
    ),
    "matrix products": (("mm", "addmm", "bmm", "baddbmm"), ("mm", "addmm", "bmm", "baddbmm")),
    "attention": (
        ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"),
        ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"),
    ),
}  # fmt: skip
COPIES = ("copy_", "clone", "contiguous", "_to_copy", "mkldnn_reorder_conv2d_weight")


@dataclass(frozen=True)
class Item:
    """Operation in a profile."""

    name: str
    calls: int
    seconds: float  # of its own, without the operations that it calls
    flops: int  # 0 if it is bound by memory


def profile_rows(setting: Setting) -> Iterator[str]:
    """Return the profiles of all networks and the shares of arithmetic and copies in each."""
    torch.manual_seed(setting.seed)
    peak = matrix_rate()
    texts = [f"Rate of a matrix product of 2048 x 2048 numbers: {peak / 1e9:.0f} GFLOP/s."]
    summary = []
    for name, architecture in NETWORKS.items():
        for task, run in tasks(setting, name, architecture).items():
            items = profile_of(run)
            texts.append(f"{name}, {task}:\n\n{format_items(items, peak)}")
            summary.append([name, task, *(f"{100 * share:.0f} %" for share in shares(items))])
    yield markdown(["network", "task", "convolutions and matrix products", "copies"], summary)
    yield "\n\n".join(texts)


def tasks(setting: Setting, name: str, architecture: str) -> dict[str, Callable[[], object]]:
    """Return the profiled functions of a network."""
    side = setting.sizes.step_crop
    cfg = make_config(architecture, {"MODEL.CLIP.TRAINABLE": TRAINABLE.get(name, [])})
    model: Any = build_model(cfg).train()
    optimizer, batch = build_optimizer(cfg, model), setting.random_batch(setting.sizes.images, side)

    def train() -> None:
        model.train()
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    @torch.no_grad()
    def predict() -> None:
        model.eval()
        model(batch[:1])

    return {
        f"training step, {setting.sizes.images} images of {side} x {side}": train,
        f"mining step, {setting.sizes.styles} styles": mining_step(architecture, setting.sizes.styles),
        f"prediction, an image of {side} x {side}": predict,
    }


def mining_step(architecture: str, styles: int) -> Callable[[], object]:
    """Return a function that runs two optimization steps of styles."""
    family, sizes = family_named(architecture)
    create: Any = family
    tower = create(sizes, 32, trainable=(), with_embedding=True).eval()
    stage, side = tower.stages[0], tower.input_resolution
    with torch.no_grad():
        own = tower.features_at(stage, torch.randn(styles, 3, side, side))
        embedding = tower.encode_from(stage, own)
    texts = F.normalize(torch.randn_like(embedding), dim=1)

    def encode(patches: Tensor) -> Tensor:
        return tower.encode_from(stage, tower.replace_map(own, patches))

    return lambda: optimize_styles(own, texts, encode, steps=2, relative=not tower.rectified, **SGD)


def profile_of(run: Callable[[], object]) -> list[Item]:
    """Run a function three times and return the operations of the last time, grouped, in descending order of time."""
    run()
    with FlopCounterMode(display=False) as counter:
        run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    calls = {event.key.removeprefix("aten::"): event for event in found.key_averages()}
    return group(
        {name: (event.count, event.self_cpu_time_total / 1e6) for name, event in calls.items()},
        {str(op).removeprefix("aten."): flops for op, flops in counter.get_flop_counts()["Global"].items()},
    )


def group(calls: Mapping[str, tuple[int, float]], flops: Mapping[str, int]) -> list[Item]:
    """Group operators that compute the same, given (calls, seconds) and floating-point operations by operator."""
    items, rest = [], dict(calls)
    for kind, (operators, counted) in ARITHMETIC.items():
        found = [rest.pop(name) for name in operators if name in rest]
        count, seconds = sum(n for n, _ in found), sum(t for _, t in found)
        items.append(Item(kind, count, seconds, sum(flops.get(name, 0) for name in counted)))
    items += [Item(name, count, seconds, 0) for name, (count, seconds) in rest.items()]
    return sorted((item for item in items if item.calls), key=lambda item: -item.seconds)


def shares(items: list[Item]) -> tuple[float, float]:
    """Return the shares of arithmetic and of copies in the time of all items."""
    total = sum(item.seconds for item in items)
    arithmetic = sum(item.seconds for item in items if item.name in ARITHMETIC)
    return arithmetic / total, sum(item.seconds for item in items if item.name in COPIES) / total


def format_items(items: list[Item], peak: float) -> str:
    """Return a table of the largest items. The bound is arithmetic or memory."""
    total, rows = sum(item.seconds for item in items), []
    for item in items[:ITEMS]:
        rate = item.flops / item.seconds
        speed = [f"{rate / 1e9:.0f}", f"{100 * rate / peak:.0f} %"] if item.flops else ["", ""]
        bound = "arithmetic" if item.name in ARITHMETIC else "memory"
        rows.append(
            [item.name, item.calls, f"{item.seconds:.3f}", f"{100 * item.seconds / total:.1f} %", *speed, bound]
        )
    headers = ["operation", "calls", "seconds", "share", "GFLOP/s", "of the matrix product's rate", "bound"]
    return markdown(headers, rows)


def matrix_rate(side: int = 2048) -> float:
    """Return the floating-point operations per second of a large matrix product, the best of five."""
    a, b = torch.randn(2, side, side)
    moments = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        moments.append(time.perf_counter() - start)
    return 2 * side**3 / min(moments)
