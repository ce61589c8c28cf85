"""Every config key that FAMix adds to Detectron2, with the recipe's values as defaults."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.projects.deeplab import add_deeplab_config

from famix.style.strategies import add_strategy_nodes

__all__ = ["add_famix_config", "flat_settings"]

_STYLES = (
    "Ethereal Mist",
    "Cyberpunk Cityscape",
    "Rustic Charm",
    "Galactic Fantasy",
    "Pastel Dreams",
    "Dystopian Noir",
    "Whimsical Wonderland",
    "Urban Grit",
    "Enchanted Forest",
    "Retro Futurism",
    "Monochrome Elegance",
    "Vibrant Graffiti",
    "Haunting Shadows",
    "Steampunk Adventures",
    "Watercolor Serenity",
    "Industrial Chic",
    "Cosmic Voyage",
    "Pop Art Popularity",
    "Abstract Symphony",
    "Magical Realism",
)


def add_famix_config(cfg: CN) -> None:
    """Add FAMix's keys to a Detectron2 config, in place.

    Args:
        cfg: the node that `detectron2.config.get_cfg` returns. The keys of `detectron2.projects.deeplab`
            (ASPP_*, PROJECT_*, POLY_LR_POWER, ...) are added first, since both families of heads share them, then those
            of `detectron2.projects.panoptic_deeplab`.
    """
    add_deeplab_config(cfg)
    _add_panoptic_keys(cfg)
    _add_model_keys(cfg)
    _add_mining_keys(cfg)
    _add_input_keys(cfg)
    _add_solver_keys(cfg)
    _add_test_keys(cfg)
    _add_selection_keys(cfg)


def flat_settings(cfg: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """All settings of a config: "KEY.OF.IT" -> value.

    Args:
        cfg: a config, a node of one, or sections of settings as YAML has them.
        prefix: of all keys.
    """
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        flat |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _add_panoptic_keys(cfg: CN) -> None:
    try:
        from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config
    except ImportError:  # it needs panopticapi, which semantic segmentation does without
        return
    add_panoptic_deeplab_config(cfg)
    cfg.MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY = 32  # images are padded to multiples; CLIP's stride fits any image


def _add_model_keys(cfg: CN) -> None:
    clip = cfg.MODEL.CLIP = CN()
    clip.ARCHITECTURE = ""  # RN50, RN101, RN50x4, RN50x16, RN50x64 or open_clip:NAME; "" = decided by WEIGHTS, or RN50
    clip.WEIGHTS = ""  # a name of the clip package, "minitown" or a file; "" = random, for MODEL.WEIGHTS to fill
    clip.OUTPUT_STRIDE = 16  # stride of res5: 8, 16 or 32
    clip.TRAINABLE = ["layer4.2"]  # submodules of the backbone that train: e.g. "layer4"; "all"; [] freezes everything

    style = cfg.MODEL.STYLE = CN()
    style.STRATEGY = (
        "bank"  # bank (FAMix), noise, mixstyle, none or a registered name; [bank, noise]: noise on the bank's styles
    )
    style.BANK = ""  # style bank file, mined when it does not exist; "" = OUTPUT_DIR/style_bank.safetensors
    style.GRID = [3, 3]  # (rows, cols) of patches of an image
    style.BETA = 0.1  # alpha ~ Beta(BETA, BETA), the weight of a patch's own statistics
    style.MIX = True  # False: a patch takes the drawn style as it is, without its own (an ablation)
    style.PROBABILITY = 1.0  # share of training images that are restyled; the others keep their own statistics
    style.STAGE = "res2"  # stage whose output is restyled: res2, res3 or res4
    style.NOISE_SCALE = 0.5  # strategy noise: standard deviation of the noise, relative to the statistic itself
    add_strategy_nodes(style)

    cfg.MODEL.SEM_SEG_HEAD.LABEL_SMOOTHING = 0.1  # of the cross-entropy in CLIPDeepLabV3PlusHead, in [0, 1)


def _add_mining_keys(cfg: CN) -> None:
    mining = cfg.STYLE_MINING = CN()
    mining.STEPS = 100  # optimiser steps of a style
    mining.LR = 1.0  # of SGD on the style's means and standard deviations
    mining.MOMENTUM = 0.9  # of that SGD
    mining.WEIGHT_DECAY = 1e-4  # of that SGD
    mining.METRIC = "euclidean"  # of the steps: euclidean (the paper) or source, how styles vary among source patches
    mining.DTYPE = "float32"  # of CLIP's layers behind the mined stage, or bfloat16; styles and statistics stay float32
    mining.IMS_PER_BATCH = 16  # images that share a batch, over which a class gets one style
    mining.MAX_BATCHES = 0  # stop after so many batches; 0 = one pass over the source
    mining.POOL_SIZE = 0  # side, in cells, of the square that a patch is pooled to; 0 = that of CLIP's own input
    mining.STYLES = [f"{name} style" for name in _STYLES]  # prompt = a random one of these + " " + class name
    mining.TEMPLATES = []  # sentences with one {} for the prompt; [] = OpenAI's 80 ImageNet templates
    mining.SEED = 1  # of the crops' order and place and of the prompts' draw, >= 0


def _add_input_keys(cfg: CN) -> None:
    cfg.DATASETS.FILES = []  # YAML files that define own datasets, see datasets/README.md
    cfg.DATASETS.BALANCED = False  # True: every data set of TRAIN contributes equally often, whatever its size
    cfg.INPUT.COLOR_JITTER = [0.8, 0.8, 0.8]  # brightness, contrast, saturation: factors drawn from 1 -/+ value
    cfg.INPUT.COLOR_JITTER_PROBABILITY = 1.0  # share of training images whose colors are jittered, in [0, 1]
    cfg.INPUT.SCALE_RANGE = [1.0, 1.0]  # random resizing before the training crop: lowest and highest factor
    cfg.INPUT.MAX_PIXELS = 8192 * 8192  # of an image, label or video frame; larger ones are refused unread
    cfg.INPUT.RELEASED_PADDING = False  # True: crops larger than the image have road there, as the released program's
    cfg.INPUT.CROP_RESIZED_TO = []  # (height, width) in pixels that the crop is resized to; [] keeps INPUT.CROP.SIZE


def _add_solver_keys(cfg: CN) -> None:
    cfg.SOLVER.OPTIMIZER = "SGD"  # SGD, ADAM or ADAMW
    cfg.SOLVER.BACKBONE_LR_FACTOR = 0.1  # learning rate of the backbone over that of the head
    cfg.SOLVER.POLY_LR_FLOOR = 1e-6  # LR_SCHEDULER_NAME PolyLR: no learning rate falls below this one
    cfg.SOLVER.ACCUMULATE = 1  # parts that a process's batch is cut into, whose gradients are added up: saves memory
    cfg.SOLVER.MAX_SKIPPED_BATCHES = 0  # batches with a loss that is not finite to leave out before the training stops
    cfg.SOLVER.CHECKPOINTS_KEPT = 0  # of those that SOLVER.CHECKPOINT_PERIOD saves, how many stay; 0 = all
    cfg.SOLVER.AMP.DTYPE = "float16"  # of SOLVER.AMP.ENABLED: float16 (CUDA only) or bfloat16


def _add_test_keys(cfg: CN) -> None:
    test = cfg.TEST
    test.PROTOCOL = "native"  # how targets are scored: parts of docs/PROTOCOLS.md joined by +, e.g. half+flip
    test.PROTOCOL_OF = []  # other protocols of single data sets: ["mapillary_val=robustnet1536"]
    test.WINDOW_BATCH = 1  # windows of a sliding window that the network gets at once: faster on a GPU, more memory
    test.CLASSES = "all"  # that mIoU is the mean of: all, synthia16 or synthia13 (also "16" and "13")
    test.ABSENT_CLASSES = "skip"  # classes predicted but nowhere labelled: skip (not in mIoU) or zero (count as 0)
    test.RELEASED_PADDING = False  # True: a protocol's crop pads labels with road, as the released program, not ignore


def _add_selection_keys(cfg: CN) -> None:
    cfg.TEST.EVALUATOR = (
        "streaming"  # streaming, detectron2 (SemSegEvaluator) or cityscapes (that data set's own script)
    )
    cfg.TEST.SOURCE = []  # data sets of DATASETS.TEST that are no targets; [] = those of the domain of DATASETS.TRAIN

    selection = cfg.MODEL_SELECTION = CN()
    selection.USE = (
        "last"  # weights that are scored after training: last, best (on SOURCE_VAL) or ema; never by targets
    )
    selection.SOURCE_VAL = ""  # data set of the source that is scored every PERIOD iterations; "" = none
    selection.PERIOD = 0  # iterations; 0 = TEST.EVAL_PERIOD, or where that is 0 SOLVER.CHECKPOINT_PERIOD
    selection.EMA_DECAY = 0.0  # of the moving average of the weights, in [0, 1); 0 = none
