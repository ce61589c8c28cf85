"""Config keys that FAMix adds to Detectron2, with the values of the recipe as defaults."""

from detectron2.config import CfgNode as CN
from detectron2.projects.deeplab import add_deeplab_config

from famix.style.strategies import add_strategy_nodes

_STYLES = (
    "Ethereal Mist", "Cyberpunk Cityscape", "Rustic Charm", "Galactic Fantasy", "Pastel Dreams",
    "Dystopian Noir", "Whimsical Wonderland", "Urban Grit", "Enchanted Forest", "Retro Futurism",
    "Monochrome Elegance", "Vibrant Graffiti", "Haunting Shadows", "Steampunk Adventures", "Watercolor Serenity",
    "Industrial Chic", "Cosmic Voyage", "Pop Art Popularity", "Abstract Symphony", "Magical Realism",
)  # fmt: skip


def add_famix_config(cfg: CN) -> None:
    """Add FAMix's keys to a Detectron2 config, in place.

    Args:
        cfg: result of `detectron2.config.get_cfg`. The keys of `detectron2.projects.deeplab` (ASPP_*, PROJECT_*,
            POLY_LR_POWER, ...) and of `detectron2.projects.panoptic_deeplab` are added as well.
    """
    add_deeplab_config(cfg)
    try:
        from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config
    except ImportError:  # it needs panopticapi, which semantic segmentation does not
        pass
    else:
        add_panoptic_deeplab_config(cfg)
        cfg.MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY = 32  # images are padded to multiples of it

    clip = cfg.MODEL.CLIP = CN()
    clip.ARCHITECTURE = ""  # RN50, RN101, RN50x4, RN50x16, RN50x64 or open_clip:NAME; "" = read from WEIGHTS, or RN50
    clip.WEIGHTS = ""  # name of a CLIP model, "minitown" or a file; "" = random weights, for MODEL.WEIGHTS to replace
    clip.TOKENIZER = ""  # folder with the tokenizer files of SigLIP and alike; "" = OpenAI's, or a download
    clip.OUTPUT_STRIDE = 16  # stride of res5: 8, 16 or 32
    clip.TRAINABLE = ["layer4.2"]  # submodules of the backbone that train, e.g. "layer4"; "all"; [] freezes everything

    timm = cfg.MODEL.TIMM = CN()
    timm.NAME = "vit_base_patch14_dinov2"  # model of build_timm_backbone: a ViT or ConvNeXt of timm
    timm.WEIGHTS = ""  # "pretrained" (timm downloads them) or a file; "" = random weights, for MODEL.WEIGHTS to replace

    adapters = cfg.MODEL.ADAPTERS = CN()
    adapters.RANK = 0  # rank of the low-rank adapters of backbone weights; 0 = no adapters
    adapters.ALPHA = 16.0  # the adapters are scaled by ALPHA / RANK
    adapters.PATTERNS = ["*attn*", "*mlp*"]  # shell patterns for the names of the adapted weights

    style = cfg.MODEL.STYLE = CN()
    style.STRATEGY = "bank"  # bank (FAMix), noise, mixstyle, none or a registered name; a list applies them in turn
    style.BANK = ""  # style bank, mined if the file is missing; "" = OUTPUT_DIR/style_bank.safetensors
    style.GRID = [3, 3]  # (rows, cols) of patches per image
    style.BETA = 0.1  # alpha ~ Beta(BETA, BETA) is the weight of a patch's own statistics
    style.MIX = True  # False: a patch takes the statistics of the drawn style without its own (ablation)
    style.PROBABILITY = 1.0  # fraction of training images that are restyled, in [0, 1]
    style.STAGE = "res2"  # stage with the restyled output: res2, res3 or res4
    style.NOISE_SCALE = 0.5  # strategy noise: standard deviation of the noise, relative to the statistic
    add_strategy_nodes(style)

    cfg.MODEL.SEM_SEG_HEAD.LABEL_SMOOTHING = 0.1  # label smoothing of the loss of CLIPDeepLabV3PlusHead, in [0, 1)
    mining = cfg.STYLE_MINING = CN()
    mining.STEPS = 100  # optimization steps per style
    mining.LR = 1.0  # learning rate of SGD on the means and standard deviations of a style
    mining.MOMENTUM = 0.9  # momentum of SGD
    mining.WEIGHT_DECAY = 1e-4  # weight decay of SGD
    mining.METRIC = "euclidean"  # metric of a step: euclidean (paper) or source, the covariance of source patches
    mining.PARAMETRIZATION = ""  # absolute (paper: mean, std), relative (to the patch's own) or "" = by the CLIP family
    mining.DTYPE = "float32"  # dtype of CLIP behind the mined stage: float32 or bfloat16; styles stay float32
    mining.IMS_PER_BATCH = 16  # images per batch; each class in a batch gets one style
    mining.MAX_BATCHES = 0  # number of batches to mine; 0 = one pass over the source
    mining.POOL_SIZE = 0  # side, in cells, of the square to which patches are pooled; 0 = the side of CLIP's input
    mining.STYLES = [f"{name} style" for name in _STYLES]  # the prompt is a random one of these + " " + class name
    mining.TEMPLATES = []  # sentences with one {} for the prompt; [] = OpenAI's 80 ImageNet templates
    mining.SEED = 1  # seed of the crops and of the draw of prompts, non-negative
    cfg.DATASETS.FILES = []  # YAML definitions of further datasets, see datasets/README.md
    cfg.DATASETS.BALANCED = False  # True: the datasets of TRAIN contribute equally, regardless of their sizes
    cfg.INPUT.COLOR_JITTER = [0.8, 0.8, 0.8]  # brightness, contrast, saturation: factors drawn from 1 -/+ value
    cfg.INPUT.COLOR_JITTER_PROBABILITY = 1.0  # fraction of training images with color jitter, in [0, 1]
    cfg.INPUT.SCALE_RANGE = [1.0, 1.0]  # lowest and highest factor of random resizing before the training crop
    cfg.INPUT.MAX_PIXELS = 8192 * 8192  # pixels of an image, label or video frame; larger ones are refused unread
    cfg.INPUT.RELEASED_PADDING = False  # True: fill training crops beyond the image with road, like the authors' code
    cfg.INPUT.CROP_RESIZED_TO = []  # (height, width) in pixels to which the crop is resized; [] keeps INPUT.CROP.SIZE
    cfg.SOLVER.OPTIMIZER = "SGD"  # SGD, ADAM or ADAMW
    cfg.SOLVER.BACKBONE_LR_FACTOR = 0.1  # learning rate of the backbone divided by that of the head
    cfg.SOLVER.POLY_LR_FLOOR = 1e-6  # lowest learning rate of LR_SCHEDULER_NAME PolyLR
    cfg.SOLVER.ACCUMULATE = 1  # forward passes per batch and process; their gradients add up, which saves memory
    cfg.SOLVER.MAX_SKIPPED_BATCHES = 0  # batches with a loss that is not finite to skip before training stops
    cfg.SOLVER.CHECKPOINTS_KEPT = 0  # number of checkpoints of SOLVER.CHECKPOINT_PERIOD to keep; 0 = all
    cfg.SOLVER.AMP.DTYPE = "float16"  # dtype with SOLVER.AMP.ENABLED: float16 (CUDA only) or bfloat16
    test = cfg.TEST
    test.PROTOCOL = "native"  # evaluation protocol: parts of docs/PROTOCOLS.md joined by +, e.g. half+flip
    test.PROTOCOL_OF = []  # protocols of single datasets, e.g. ["mapillary_val=robustnet1536"]
    test.WINDOW_BATCH = 1  # sliding windows per forward pass: more are faster on a GPU, and take more memory
    test.CLASSES = "all"  # classes in mIoU: all, synthia16 or synthia13 (also "16" and "13")
    test.ABSENT_CLASSES = "skip"  # classes that are predicted but never labeled: skip (not in mIoU) or zero (IoU 0)
    test.RELEASED_PADDING = False  # True: fill protocol crops beyond the image with road, like the authors' code
    test.EVALUATOR = "streaming"  # streaming, detectron2 (SemSegEvaluator) or cityscapes (the dataset's own script)
    test.SOURCE = []  # datasets of DATASETS.TEST that are not targets; [] = those of the domain of DATASETS.TRAIN

    selection = cfg.MODEL_SELECTION = CN()
    selection.USE = "last"  # weights to score after training: last, best (on SOURCE_VAL) or ema
    selection.SOURCE_VAL = ""  # validation set of the source, scored every PERIOD iterations; "" = none
    selection.PERIOD = 0  # iterations; 0 = TEST.EVAL_PERIOD, or SOLVER.CHECKPOINT_PERIOD if that is 0
    selection.EMA_DECAY = 0.0  # decay of the moving average of the weights, in [0, 1); 0 = no average
