"""Nearest prompts of mined styles according to CLIP.

A bank does not hold the patches that its styles were mined on. The styles are therefore applied to other content: patches
of given images or of noise with the spectrum of natural images. Each patch is normalised at the bank's stage, gets the
statistics of the style and passes through the remaining stages of CLIP; the embedding of the style is the mean over the
patches. Content and the gap between images and texts outweigh style in these embeddings, so differences are compared: of a
style to the mean of all styles, and of a prompt to the mean of the prompts of its class.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from famix.clip import CLIPImageTower, PromptEncoder, check_templates, clip_weights_hash
from famix.mining.metadata import bank_text_design
from famix.reports.bank import bank_prompts, json_list
from famix.style.bank import StyleBank
from famix.style.statistics import channel_mean_std
from famix.utils.errors import BankError

__all__ = ["NearestPrompts", "find_nearest_prompts", "noise_image", "require_clip"]

_PATCHES = 2  # per row and column of the content
_SEED = 0

Progress = Callable[[Sequence[int]], Iterable[int]]


@dataclass(frozen=True)
class NearestPrompts:
    """Prompts near to some styles of a bank.

    Attributes:
        rows: (M,) int64, indices of the styles in the bank.
        prompts: for each style, all prompts of its class from near to far.
        ranks: (M,) int64, rank of the prompt that the style was mined with, 1 for the nearest.
    """

    rows: Tensor
    prompts: tuple[tuple[str, ...], ...]
    ranks: Tensor


def require_clip(bank: StyleBank, clip_state_dict: Mapping[str, Tensor], source: str) -> None:
    """Check that a bank was made with a CLIP; a bank without a hash passes.

    Args:
        bank: the styles.
        clip_state_dict: see `famix.load_clip_state_dict`.
        source: where it was loaded from, for the message.

    Raises:
        BankError: if the bank was made with another CLIP.
    """
    expected, found = bank.metadata.get("clip_hash"), clip_weights_hash(clip_state_dict)
    if expected and expected != found:
        raise BankError(f"--clip must be the CLIP with the bank's clip_hash {expected}, got {found} of '{source}'.")


def noise_image(side: int) -> Tensor:
    """Make (3, side, side) float32 noise in [0, 255] units with the spectrum of natural images and a fixed seed."""
    generator = torch.Generator().manual_seed(_SEED)
    frequencies = torch.fft.fftfreq(side)
    amplitude = 1 / torch.hypot(frequencies[:, None], frequencies[None]).clamp(min=1 / side)
    noise = torch.fft.ifft2(torch.fft.fft2(torch.randn(3, side, side, generator=generator)) * amplitude).real
    deviation, mean = torch.std_mean(noise, dim=(1, 2), keepdim=True)
    return _column(CLIPImageTower.pixel_mean) + _column(CLIPImageTower.pixel_std) * (noise - mean) / deviation


@torch.no_grad()
def find_nearest_prompts(
    bank: StyleBank,
    clip_state_dict: Mapping[str, Tensor],
    images: Sequence[Tensor] = (),
    *,
    most_styles: int = 300,
    progress: Progress = iter,
) -> NearestPrompts:
    """Rank the prompts of each style's class.

    Args:
        bank: mined styles; those of classes with a single prompt are left out.
        clip_state_dict: weights of the bank's CLIP.
        images: (3, H, W) in [0, 255], the content; noise if empty.
        most_styles: maximum number of styles, evenly chosen.
        progress: wraps the rows during the computation, e.g. tqdm.

    Raises:
        BankError: if the bank has no prompts to compare, or other channels than the CLIP.
    """
    rows, candidates = _comparable(bank)
    if not rows:
        raise BankError("--clip must be used with a bank of several prompts per class, got none. Mine one.")
    if len(rows) > most_styles:
        rows = [rows[place] for place in torch.linspace(0, len(rows) - 1, most_styles).round().long().tolist()]
    clip = CLIPImageTower.from_state_dict(clip_state_dict, trainable=())
    embed = _style_encoder(bank, clip, images)
    embeddings = torch.stack([embed(row) for row in progress(rows)])
    directions = embeddings - embeddings.mean(dim=0)
    mined_with = bank_text_design(bank)
    encoder = PromptEncoder(clip_state_dict, activation=mined_with.activation, causal=mined_with.causal)
    templates = check_templates(json_list(bank, "templates", str))
    own, ordered, ranks = bank_prompts(bank), [], []
    for row, direction in zip(rows, directions, strict=True):
        prompts = candidates[bank.class_name(int(bank.class_ids[row]))]
        texts = encoder(prompts, templates)
        order = F.cosine_similarity(texts - texts.mean(dim=0), direction[None]).argsort(descending=True, stable=True)
        ordered.append(tuple(prompts[place] for place in order.tolist()))
        ranks.append(1 + ordered[-1].index(own[row]))
    return NearestPrompts(torch.tensor(rows), tuple(ordered), torch.tensor(ranks))


def _comparable(bank: StyleBank) -> tuple[list[int], dict[str, list[str]]]:
    """Return the rows of styles that have several prompts of their class, and these prompts by class name."""
    names = sorted(bank.class_names(), key=len, reverse=True)  # "traffic sign" before "sign"
    prompts: dict[str, list[str]] = {}
    for text in json_list(bank, "prompts", str):
        prompts.setdefault(next((name for name in names if text.endswith(f" {name}")), ""), []).append(text)
    known = {name: texts for name, texts in prompts.items() if len(texts) > 1}
    classes = map(bank.class_name, bank.class_ids.tolist())
    rows = [
        row
        for row, (name, own) in enumerate(zip(classes, bank_prompts(bank), strict=False))
        if own in known.get(name, ())
    ]
    return rows, known


def _style_encoder(bank: StyleBank, clip: CLIPImageTower, images: Sequence[Tensor]) -> Callable[[int], Tensor]:
    """Make a function from a row of the bank to the embedding (D,) of its style."""
    stage = bank.metadata.get("stage", "res2")
    clip.check_stage(stage)
    content = images or [noise_image(_PATCHES * clip.input_resolution)]
    patches = torch.cat([_patches(clip, stage, image) for image in content])
    if patches.shape[1] != bank.num_channels:
        raise BankError(
            f"--clip must have {bank.num_channels} channels at {stage} like the bank, got {patches.shape[1]}. Name the bank's CLIP."
        )
    mean, std = channel_mean_std(patches)
    normalised = (patches - mean) / std

    def embed(row: int) -> Tensor:
        style_mean, style_std = bank.mean[row][None, :, None, None], bank.std[row][None, :, None, None]
        restyled = torch.addcmul(style_mean, normalised, style_std)
        restyled = restyled.relu() if clip.rectified else restyled
        return F.normalize(clip.encode_from(stage, restyled), dim=1).mean(dim=0)

    return embed


def _patches(clip: CLIPImageTower, stage: str, image: Tensor) -> Tensor:
    """Return (P, C, h, w) features of an image's patches, pooled to the size that CLIP was trained with."""
    features = clip.features_at(stage, ((image - _column(clip.pixel_mean)) / _column(clip.pixel_std))[None])
    size = clip.input_side(stage)
    parts = [part for row in features.tensor_split(_PATCHES, 2) for part in row.tensor_split(_PATCHES, 3)]
    side = size or min(min(part.shape[-2:]) for part in parts)
    return torch.cat([F.adaptive_avg_pool2d(part, side) for part in parts])


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)
