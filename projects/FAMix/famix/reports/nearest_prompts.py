"""Nearest prompts of mined styles according to CLIP.

A bank does not contain the patches that its styles were mined on. The styles are therefore applied to other content:
patches of given images, or of noise with the spectrum of natural images. Each patch is normalized at the bank's stage, gets
the statistics of the style and passes through the remaining stages of CLIP. The embedding of the style is the mean over the
patches. Content and the gap between images and texts outweigh style in these embeddings, so differences are compared: a
style minus the mean over all styles, and a prompt minus the mean over the prompts for its class.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from famix.clip import CLIPImageTower, PromptEncoder, at_stage, check_templates, clip_weights_hash
from famix.mining.metadata import bank_text_design
from famix.reports.bank import bank_prompts, json_list
from famix.style.bank import StyleBank
from famix.style.statistics import channel_mean_std
from famix.utils.errors import BankError

_PATCHES = 2  # patches per row and column of the content
_SEED = 0


@dataclass(frozen=True)
class NearestPrompts:
    """Nearest prompts for M styles of a bank."""

    rows: Tensor  # (M,) int64, indices of the styles in the bank
    prompts: tuple[tuple[str, ...], ...]  # all prompts for the class of each style, nearest first
    ranks: Tensor  # (M,) int64, rank of the prompt that the style was mined with, from 1


def require_clip(bank: StyleBank, clip_state_dict: Mapping[str, Tensor], source: str) -> None:
    """Raise BankError if a bank was not made with the CLIP from `source`. A bank without a hash passes."""
    expected, found = bank.metadata.get("clip_hash"), clip_weights_hash(clip_state_dict)
    if expected and expected != found:
        raise BankError(
            f"The bank has clip_hash {expected}, but '{source}' has {found}. Pass the bank's CLIP with --clip."
        )


def noise_image(side: int) -> Tensor:
    """Make a (3, side, side) float32 noise image in [0, 255] units, with a natural spectrum and a fixed seed."""
    generator = torch.Generator().manual_seed(_SEED)
    frequencies = torch.fft.fftfreq(side)
    amplitude = 1 / torch.hypot(frequencies[:, None], frequencies[None]).clamp(min=1 / side)
    noise = torch.fft.ifft2(torch.fft.fft2(torch.randn(3, side, side, generator=generator)) * amplitude).real
    deviation, mean = torch.std_mean(noise, dim=(1, 2), keepdim=True)
    return _column(CLIPImageTower.pixel_mean) + _column(CLIPImageTower.pixel_std) * (noise - mean) / deviation


def evenly(count: int, most: int) -> Sequence[int]:
    """Return the indices of at most `most` of `count` items, evenly spaced."""
    return range(count) if count <= most else torch.linspace(0, count - 1, most).round().long().tolist()


@torch.no_grad()
def find_nearest_prompts(
    bank: StyleBank,
    clip_state_dict: Mapping[str, Tensor],
    images: Sequence[Tensor] = (),
    *,
    most_styles: int = 300,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> NearestPrompts:
    """Rank the prompts for the class of each style.

    Args:
        bank: bank of mined styles. Styles of classes with a single prompt are skipped.
        clip_state_dict: weights of the bank's CLIP.
        images: (3, H, W) content images in [0, 255]. If empty, noise is used.
        most_styles: maximum number of styles, evenly spaced in the bank.
        progress: function that wraps the rows during computation, e.g. tqdm.

    Raises:
        BankError: no class in the bank has several prompts, or its styles do not fit the CLIP.
    """
    candidates = _prompts_by_class(bank)
    own, names = bank_prompts(bank), [bank.class_name(class_id) for class_id in bank.class_ids.tolist()]
    rows = [row for row, prompt in enumerate(own) if prompt in candidates.get(names[row], ())]
    if not rows:
        raise BankError("--clip requires a mined bank with several prompts per class. Mine one.")
    rows = [rows[place] for place in evenly(len(rows), most_styles)]
    embed = _style_encoder(bank, CLIPImageTower.from_state_dict(clip_state_dict, trainable=()), images)
    embeddings = torch.stack([embed(row) for row in progress(rows)])
    directions = embeddings - embeddings.mean(dim=0)
    mined_with = bank_text_design(bank)
    encoder = PromptEncoder(clip_state_dict, activation=mined_with.activation, causal=mined_with.causal)
    templates = check_templates(json_list(bank, "templates", str))
    ordered, ranks = [], []
    for row, direction in zip(rows, directions, strict=True):
        prompts = candidates[names[row]]
        texts = encoder(prompts, templates)
        order = F.cosine_similarity(texts - texts.mean(dim=0), direction[None]).argsort(descending=True, stable=True)
        ordered.append(tuple(prompts[place] for place in order.tolist()))
        ranks.append(1 + ordered[-1].index(own[row]))
    return NearestPrompts(torch.tensor(rows), tuple(ordered), torch.tensor(ranks))


def _prompts_by_class(bank: StyleBank) -> dict[str, list[str]]:
    """Return a mapping from each class with several prompts to these prompts."""
    names = sorted(bank.class_names(), key=len, reverse=True)  # "traffic sign" before "sign"
    prompts: dict[str, list[str]] = {}
    for text in json_list(bank, "prompts", str):
        prompts.setdefault(next((name for name in names if text.endswith(f" {name}")), ""), []).append(text)
    return {name: texts for name, texts in prompts.items() if len(texts) > 1}


def _style_encoder(bank: StyleBank, clip: CLIPImageTower, images: Sequence[Tensor]) -> Callable[[int], Tensor]:
    """Make a function that maps a row of the bank to the (D,) embedding of its style."""
    stage = bank.metadata.get("stage", "res2")
    clip = at_stage(clip, stage)
    patches = []
    for image in images or [noise_image(_PATCHES * clip.input_resolution)]:
        pixels = ((image - _column(clip.pixel_mean)) / _column(clip.pixel_std))[None]
        content = pixels if clip.mined_on_images else clip.features_at(stage, pixels)
        parts = [part for row in content.tensor_split(_PATCHES, 2) for part in row.tensor_split(_PATCHES, 3)]
        # Patches get the size that CLIP was trained with.
        if clip.mined_on_images:
            sides = (clip.input_resolution, clip.input_resolution)
            patches += [F.interpolate(part, sides, mode="bicubic", antialias=True) for part in parts]
        else:
            side = clip.input_side(stage) or min(min(part.shape[-2:]) for part in parts)
            patches += [F.adaptive_avg_pool2d(part, side) for part in parts]
    content = torch.cat(patches)
    content = clip.features_at(stage, content) if clip.mined_on_images else content
    if content.shape[1] != bank.num_channels:
        raise BankError(
            f"--clip has {content.shape[1]} channels at {stage}, but the bank has {bank.num_channels}. Pass the bank's CLIP."
        )
    mean, std = channel_mean_std(content)
    normalized = (content - mean) / std

    def embed(row: int) -> Tensor:
        style_mean, style_std = bank.mean[row][None, :, None, None], bank.std[row][None, :, None, None]
        restyled = torch.addcmul(style_mean, normalized, style_std)
        restyled = restyled.relu() if clip.rectified else restyled
        return F.normalize(clip.encode_from(stage, clip.replace_map(content, restyled)), dim=1).mean(dim=0)

    return embed


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)
