"""FAMix for Detectron2: language-guided domain-generalized segmentation (Fahes et al., CVPR 2024).

Training uses one labeled source domain, freezes almost all of CLIP to keep its robustness, and takes styles from text:

    setup    engine.setup: config -> data registration -> checks; engine.Trainer runs the mining hook first
    mine     mining: source crops -> CLIP up to res2 -> one style per class in a batch, optimized toward a prompt -> bank
    train    data mapper -> meta-architecture -> class of each patch -> style from the bank -> restyled res2 -> other layers
    test     meta-architecture in eval mode (no styles) -> named protocol -> evaluators -> one table for all targets
    use      Predictor.from_checkpoint(path)(image), which needs neither a style bank nor a text tower

Importing the package registers its backbone, head and meta-architectures with Detectron2.
"""

# ruff: noqa: I001, imports follow the order of use

import contextlib
import importlib.util
import warnings

__version__ = "0.2.0.dev0"  # of the package; setup.cfg reads it

if importlib.util.find_spec("detectron2") is None:
    raise ModuleNotFoundError(
        "FAMix requires Detectron2, which PyPI lacks. Install it from https://github.com/facebookresearch/detectron2, or run "
        "make setup in a clone of FAMix, which needs no compiler.",
        name="detectron2",
    )

with warnings.catch_warnings():
    # Detectron2 uses torch.jit.script, which torch deprecates.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
    import detectron2.engine
    import detectron2.modeling  # noqa: F401

from famix.config import add_famix_config, config_file
from famix.utils.errors import FAMixError

# Styles: pure tensor functions and small objects
from famix.style import (
    PatchRestyler,
    StyleBank,
    channel_mean_std,
    dominant_labels,
    optimize_styles,
    restyle_patches,
)

# CLIP and networks, registered with Detectron2 on import
from famix.clip import CLIPResNet, PromptEncoder, load_clip_state_dict
from famix.modeling import CLIPDeepLabV3PlusHead, FAMixPanopticFPN, FAMixSemanticSegmentor, PatchStyleMixin

with contextlib.suppress(ImportError):  # if panopticapi is not installed
    from famix.modeling import FAMixPanopticDeepLab

# Datasets, and checkpoints of the reference implementation
from famix.data import register_datasets
from famix.io.released_checkpoint import load_released_checkpoint

# Mining, training and prediction
from famix.mining import StyleMiner
from famix.engine import StyleMiningHook, Trainer
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
    "config_file",
    "dominant_labels",
    "load_clip_state_dict",
    "load_released_checkpoint",
    "optimize_styles",
    "register_datasets",
    "restyle_patches",
]
