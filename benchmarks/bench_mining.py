"""Mining: its step against the bare network and the plain loop, its prompts, and what bfloat16 does."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from bench_plain import PlainSteps, plain_prompts, plain_tail
from bench_setting import SGD, Setting
from bench_turns import Clock, Row, in_turns
from torch import Tensor

from famix.clip import IMAGENET_TEMPLATES, CLIPResNet, PromptEncoder, load_clip_state_dict
from famix.style import optimize_styles, restyle_patches
from famix_minitown.datasets import register

__all__ = ["mining_rows", "step_seconds"]

Encode = Callable[[Tensor], Tensor]


def mining_rows(setting: Setting) -> Iterator[Row]:
    """Rows about single steps of mining, and about prompts."""
    yield from _step_rows(setting)
    yield from _half_rows(setting)
    yield from _size_rows(setting)
    yield from _prompt_rows(setting)


def step_seconds(clock: Clock, patches: Tensor, texts: Tensor, encode: Encode, steps: int = 2) -> float:
    """The shortest time from one call of the encoder to the next, which is a whole step."""
    moments = []

    def timed(x: Tensor) -> Tensor:
        moments.append(clock.now())
        return encode(x)

    optimize_styles(patches, texts, timed, steps=steps, **SGD)
    return min(after - before for before, after in pairwise(moments))


def encoder(setting: Setting) -> Encode:
    """The rest of the network behind the mined stage, as the miner runs it."""
    network = setting.miner_network
    side = network.input_side("res2")
    return lambda patches: network.encode_from("res2", F.adaptive_avg_pool2d(patches, side))


def forward_backward(patches: Tensor, encode: Encode) -> None:
    """Through the frozen network alone: no weight gradients, no styles, no optimiser."""
    x = patches.detach().requires_grad_()
    torch.autograd.grad(encode(x).sum(), x)


def in_half(encode: Encode, device: str) -> Encode:
    """The encoder with its layers in bfloat16; what it gets, and the styles and their statistics, stay float32."""

    def half(x: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            return encode(x)

    return half


def _step_rows(setting: Setting) -> Iterator[Row]:
    clock, count = setting.clock, setting.sizes.styles
    patches, texts, encode = setting.patches(count), setting.texts(count), encoder(setting)
    plain, channels_first = PlainSteps(setting.clip, patches, texts, **SGD), patches.contiguous()
    seconds = in_turns(
        {
            "step": lambda: step_seconds(clock, patches, texts, encode),
            "bare": clock.timed(lambda: forward_backward(patches, encode)),
            "plain": clock.timed(plain.step),
            "plain bare": clock.timed(lambda: forward_backward(channels_first, lambda x: plain_tail(setting.clip, x))),
        },
        2 * setting.sizes.rounds,
    )
    step, bare, plain_step, plain_bare = (value / count for value in seconds.values())
    yield Row(
        "mining step, per style", step, "bare frozen forward and backward", bare,
        target="mining step over the bare frozen forward and backward", at_most=1.10,
    )  # fmt: skip
    yield Row(
        "mining step, per style", step, "plain loop's step", plain_step,
        target="mining step over the plain loop's (1.5 times faster)", at_most=1 / 1.5,
    )  # fmt: skip
    yield Row("bare frozen forward and backward, per style", bare, "unfolded, channels first", plain_bare)


def _half_rows(setting: Setting) -> Iterator[Row]:
    clock, count = setting.clock, setting.sizes.styles
    patches, texts, encode = setting.patches(count), setting.texts(count), encoder(setting)
    half = in_half(encode, setting.device)
    seconds = in_turns(
        {
            "full": lambda: step_seconds(clock, patches, texts, encode),
            "half": lambda: step_seconds(clock, patches, texts, half),
        },
        setting.sizes.rounds,
    )
    yield Row("mining step in bfloat16, per style", seconds["half"] / count, "in float32", seconds["full"] / count)
    full, rounded = _loss_of_half(setting)
    yield Row("cosine loss of styles mined in bfloat16, the town's CLIP", rounded, "in float32", full, unit="")


def _loss_of_half(setting: Setting) -> tuple[float, float]:
    """What styles mined in float32 and in bfloat16 cost, both judged in float32, with a CLIP that knows the words."""
    register()
    weights = load_clip_state_dict("minitown")
    clip = CLIPResNet.from_state_dict(weights, trainable=()).to(setting.device).requires_grad_(False)
    prompts = PromptEncoder(weights, device=setting.device)
    texts = prompts([f"{look} road" for look in ("night", "foggy", "rainy", "snowy")], ["{}"])
    side = 4 * clip.input_side("res2")
    images = torch.randn(len(texts), 3, side, side, generator=setting.generator()).to(setting.device)
    with torch.no_grad():
        patches = clip.features_at("res2", images)

    def encode(x: Tensor) -> Tensor:
        return clip.encode_from("res2", x)

    def loss(mined_with: Encode) -> float:
        styles = optimize_styles(
            patches,
            texts,
            mined_with,
            steps=5 * setting.sizes.mining_steps,
            lr=len(texts),
            momentum=0.0,
            weight_decay=SGD["weight_decay"],
        )
        mean, std = (values[:, :, None, None] for values in (styles.mean, styles.std))
        with torch.no_grad():
            restyled = restyle_patches(patches, mean, std, torch.zeros(1), (1, 1))
            return float((1 - F.cosine_similarity(encode(restyled), texts)).mean())

    return loss(encode), loss(in_half(encode, setting.device))


def _size_rows(setting: Setting) -> Iterator[Row]:
    clock, most, encode = setting.clock, setting.sizes.styles, encoder(setting)
    counts = sorted({max(1, most // part) for part in (1, 2, 4)})

    def step_of(styles: int) -> Callable[[], float]:
        patches, texts = setting.patches(styles), setting.texts(styles)
        return lambda: step_seconds(clock, patches, texts, encode) / styles

    seconds = in_turns({str(styles): step_of(styles) for styles in counts}, setting.sizes.rounds)
    fewest, *more = seconds
    for styles in more:
        yield Row(f"mining step of {styles} styles, per style", seconds[styles], f"of {fewest}", seconds[fewest])


def _prompt_rows(setting: Setting) -> Iterator[Row]:
    """One prompt in all of its sentences, as the miner asks for it."""
    texts, weights, clock = ["Haunting Shadows style traffic light"], setting.clip.state_dict(), setting.clock
    seconds = in_turns(
        {
            "short": clock.timed(lambda: PromptEncoder(weights, device=setting.device)(texts, IMAGENET_TEMPLATES)),
            "full": clock.timed(lambda: plain_prompts(setting.clip, texts, IMAGENET_TEMPLATES)),
        },
        setting.sizes.rounds,
    )
    yield Row(
        f"prompt in {len(IMAGENET_TEMPLATES)} sentences", seconds["short"], "as rows of 77 tokens", seconds["full"],
        target="prompt over rows of 77 tokens (3 times faster)", at_most=1 / 3,
    )  # fmt: skip
