"""FAMix for Detectron2: language-guided domain generalised segmentation (Fahes et al., CVPR 2024).

One labelled source domain, CLIP's robustness kept by freezing almost everything, and text as the only randomisation:

    setup    engine.setup: config -> data registration -> checks; engine.Trainer: the mining hook comes first
    mine     mining: source crops -> CLIP up to res2 -> one style per class of a batch, optimised towards a prompt -> bank
    train    data mapper -> meta-architecture -> class of each patch -> style from the bank -> restyled res2 -> the rest
    test     meta-architecture in eval mode (no styles) -> named protocol -> evaluators -> one table over all targets
    use      Predictor.from_checkpoint(path)(image); the style bank and the text tower are not needed any more

Importing the package registers its backbone, head and meta-architectures with Detectron2.
"""

# ruff: noqa: I001, the imports stand in the order in which the parts are used

import contextlib
import warnings

with warnings.catch_warnings():
    # Detectron2 compiles helpers in a way that torch deprecates; users of FAMix can do nothing about it.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
    import detectron2.engine
    import detectron2.modeling  # noqa: F401

from famix.config import add_famix_config
from famix.utils.errors import FAMixError

# What a style is, how it is optimised, kept and applied: pure tensor functions and small objects
from famix.style import (
    PatchRestyler,
    StyleBank,
    channel_mean_std,
    dominant_labels,
    optimize_styles,
    restyle_patches,
)

# Prompts to CLIP embeddings
from famix.clip import PromptEncoder

# Networks, registered with Detectron2 on import
from famix.modeling import CLIPDeepLabV3PlusHead, FAMixPanopticFPN, FAMixSemanticSegmentor, PatchStyleMixin
from famix.clip import CLIPResNet, load_clip_state_dict

with contextlib.suppress(ImportError):  # without panopticapi
    from famix.modeling import FAMixPanopticDeepLab

# Data sets, mapping and loading
from famix.data import register_datasets

# Files of the released program
from famix.io.released_checkpoint import load_released_checkpoint

# The offline pass that fills the bank, and the loop that trains with it
from famix.mining import StyleMiner
from famix.engine import StyleMiningHook, Trainer

# A trained network as a function of an image
from famix.inference import Predictor

__all__ = [
    "CLIPDeepLabV3PlusHead",
    "CLIPResNet",
    "FAMixError",
    "FAMixPanopticDeepLab",
    "FAMixPanopticFPN",
    "FAMixSemanticSegmentor",
    "PatchRestyler",
    "PatchStyleMixin",
    "Predictor",
    "PromptEncoder",
    "StyleBank",
    "StyleMiner",
    "StyleMiningHook",
    "Trainer",
    "add_famix_config",
    "channel_mean_std",
    "dominant_labels",
    "load_clip_state_dict",
    "load_released_checkpoint",
    "optimize_styles",
    "register_datasets",
    "restyle_patches",
]
