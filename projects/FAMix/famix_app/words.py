"""Style words: the picture style that CLIP finds for a word, applied to a picture."""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from famix.clip import IMAGE, CLIPImageTower, PromptEncoder, at_stage, check_templates, load_configured_clip
from famix.clip.openai import cached_file
from famix.clip.weights import is_published
from famix.inference.images import RGBImage
from famix.mining import MiningSettings, PromptTable, StyleMiner
from famix.style import StyleBank
from famix.style.pictures import PictureStyles
from famix.utils.errors import ConfigError, FAMixError
from famix_app.comparison import Side
from famix_app.networks import Network

MOST_WORDS, LONGEST = 6, 60

_STEPS, _LR = 40, 0.1  # for one style, see "Picture styles" in projects/FAMix/README.md
_MINED_WIDTH = 512  # pixels; CLIP sees fewer


def parse_words(text: str) -> list[str]:
    """Return the words or phrases of a text, which commas, semicolons or line breaks separate.

    Raises:
        ConfigError: there are none, too many, or too long ones.
    """
    words = list(dict.fromkeys(" ".join(part.split()) for part in re.split(r"[,;\n]", text) if part.strip()))
    if not words:
        raise ConfigError("Style words are missing. Type words or phrases such as: foggy, at night.")
    if len(words) > MOST_WORDS:
        raise ConfigError(f"Style words must be at most {MOST_WORDS}, got {len(words)}. Try some of them first.")
    for word in words:
        if len(word) > LONGEST:
            raise ConfigError(
                f"Style words must have at most {LONGEST} characters each, got {len(word)}. Shorten {word!r}."
            )
    return words


class PictureStyler:
    """CLIP of a network, which mines picture styles.

    Raises:
        ConfigError: the network has no CLIP, or its weights are not on this machine.
    """

    def __init__(self, network: Network) -> None:
        source = network.loaded.base_weights["MODEL.CLIP.WEIGHTS"]
        if not source:
            raise ConfigError(
                f"Style words need the CLIP of {network.name}, but its MODEL.CLIP.WEIGHTS is empty. Start the page with the run "
                "directory in which the network was trained."
            )
        if is_published(source) and not Path(cached_file(source)).is_file():  # the page downloads nothing
            raise ConfigError(
                f"Style words need the CLIP of {network.name}, {source}, which is not at '{cached_file(source)}'. Copy it there, "
                "or train a network with it, which downloads it."
            )
        cfg = network.loaded.cfg.clone()
        cfg.defrost()
        cfg.MODEL.CLIP.WEIGHTS = source
        try:
            weights = load_configured_clip(cfg)
        except FAMixError as error:
            raise ConfigError(f"Style words need the CLIP of {network.name}. {error}") from error
        self._device = torch.device(cfg.MODEL.DEVICE)
        self._tower = at_stage(CLIPImageTower.from_state_dict(weights, trainable=()).to(self._device), IMAGE)
        self._encoder = PromptEncoder(weights, device=self._device)
        self._templates = check_templates(cfg.STYLE_MINING.TEMPLATES)
        self._class_names = network.predictor.classes.names
        self._settings = MiningSettings(
            pixel_mean=tuple(self._tower.pixel_mean),
            pixel_std=tuple(self._tower.pixel_std),
            stage=IMAGE,
            grid=(1, 1),
            steps=_STEPS,
            lr=_LR,
            momentum=0.0,
        )

    def unknown_words(self, words: list[str]) -> list[str]:
        """Return those of the words that this CLIP was not trained on, where it is known."""
        return list(self._encoder.unknown_words(words))

    def restyle(self, pixels: RGBImage, plain: Side, word: str) -> RGBImage:
        """Give a picture the style of a word.

        Args:
            pixels: the picture.
            plain: its prediction. The prompt names the class of most pixels, e.g. "foggy road".
            word: style word.

        Returns:
            The picture with the mean and standard deviation of each channel that a mined picture style has.
        """
        step = -(-pixels.shape[1] // _MINED_WIDTH)
        sample = {
            "image": torch.from_numpy(pixels[::step, ::step].transpose(2, 0, 1).copy()),
            "sem_seg": torch.from_numpy(plain.prediction.labels[::step, ::step].astype(np.int64)),
        }
        miner = StyleMiner(
            clip=self._tower,
            prompts=PromptTable(self._class_names, [word]),
            encode_prompts=lambda texts: self._encoder(texts, self._templates),
            settings=self._settings,
        )
        mined = miner.mine_batch(0, [sample])
        bank = StyleBank({"stage": IMAGE})
        bank.add(mined.class_ids, mined.mean, mined.std)
        styles = PictureStyles(bank, probability=1.0, generator=torch.Generator().manual_seed(0))
        change = styles.draw(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
        return pixels if change is None else change.apply_image(pixels)


load_styler = lru_cache(maxsize=2)(PictureStyler)
"""`PictureStyler` of a network, kept for the next words."""
