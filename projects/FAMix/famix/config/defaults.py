"""Config keys that FAMix adds to Detectron2, with the recipe's values as defaults."""

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
    except ImportError:  # needs panopticapi, which semantic segmentation does not require
        pass
    else:
        add_panoptic_deeplab_config(cfg)
        cfg.MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY = 32  # images are padded to multiples of this
    _add_model_keys(cfg)
    _add_mining_keys(cfg)
    _add_data_and_solver_keys(cfg)
    _add_test_keys(cfg)


def _add_model_keys(cfg: CN) -> None:
    clip = cfg.MODEL.CLIP = CN()
    clip.ARCHITECTURE = ""  # RN50, ViT-B/16, ... (OpenAI's) or open_clip:NAME; "" infers it from WEIGHTS, or is RN50
    clip.WEIGHTS = ""  # name, open_clip:NAME/TAG or file; "" uses random weights until MODEL.WEIGHTS is loaded
    clip.TOKENIZER = ""  # folder with tokenizer files, e.g. for SigLIP; "" uses OpenAI's or downloads it
    clip.OUTPUT_STRIDE = 16  # output stride of the last stage: 8, 16 or 32
    clip.TRAINABLE = ["layer4.2"]  # backbone submodules to train, e.g. "layer4"; ["all"] trains all, and [] freezes all
    clip.CHECKPOINT_ACTIVATIONS = False  # True recomputes activations in the backward pass to save memory

    cfg.MODEL.COMPILE = ""  # backend of torch.compile for training, e.g. inductor; "" runs the layers one by one

    timm = cfg.MODEL.TIMM = CN()
    timm.NAME = "vit_base_patch14_dinov2"  # timm model for build_timm_backbone, a ViT or ConvNeXt
    timm.WEIGHTS = ""  # "pretrained" (downloaded) or a file; "" uses random weights until MODEL.WEIGHTS is loaded

    adapters = cfg.MODEL.ADAPTERS = CN()
    adapters.RANK = 0  # rank of low-rank adapters for backbone weights; 0 disables them
    adapters.ALPHA = 16.0  # adapters are scaled by ALPHA / RANK
    adapters.PATTERNS = ["*attn*", "*mlp*"]  # shell patterns for the names of weights to adapt

    style = cfg.MODEL.STYLE = CN()
    style.STRATEGY = "bank"  # bank (FAMix), noise, mixstyle, none or a registered name; a list is applied in order
    style.BANK = ""  # style bank file, mined if missing; "" uses OUTPUT_DIR/style_bank.safetensors
    style.GRID = [3, 3]  # rows and columns of patches per image
    style.BETA = 0.1  # alpha ~ Beta(BETA, BETA) is the weight of a patch's own statistics
    style.MIX = True  # False replaces a patch's statistics with the drawn style instead of mixing them (ablation)
    style.PROBABILITY = 1.0  # fraction of training images to restyle, in [0, 1]
    style.STAGE = "res2"  # stage of the backbone whose output is restyled, or image for the pixels (picture styles)
    style.NOISE_SCALE = 0.5  # standard deviation of the noise in strategy noise, relative to the statistic
    add_strategy_nodes(style)

    query = cfg.MODEL.MASK_FORMER = CN()
    query.QUERIES = "learned"  # queries of FAMixMaskFormer: learned, or text (one per class, from its name)
    query.CLASSIFIER = "learned"  # classifier of queries: learned, or text (similarity to class names)
    query.NUM_QUERIES = 100  # number of learned queries, at least the number of segments in an image
    query.HIDDEN_DIM = 256  # channels of the decoders, a multiple of 32
    query.ENCODER_LAYERS = 6  # layers of the pixel decoder
    query.DECODER_LAYERS = 9  # layers of the transformer decoder
    query.CLASS_WEIGHT = 2.0  # weight of the cross-entropy over classes, in the loss and in the assignment of queries
    query.MASK_WEIGHT = 5.0  # weight of the binary cross-entropy of masks
    query.DICE_WEIGHT = 5.0  # weight of the Dice loss of masks
    query.NO_OBJECT_WEIGHT = 0.1  # weight of queries without a segment in the cross-entropy over classes
    query.NUM_POINTS = 12544  # points at which masks are compared, per mask
    query.OBJECT_THRESHOLD = 0.8  # minimum class probability of a panoptic segment, in [0, 1]
    query.CLIP_REGIONS = True  # CLIP names regions that no query claims, if TEST.CLASSES lists unlabeled classes
    query.OVERLAP_THRESHOLD = 0.8  # fraction of a mask that must be visible in a panoptic segment, in [0, 1]

    cfg.MODEL.SEM_SEG_HEAD.LABEL_SMOOTHING = 0.1  # label smoothing in CLIPDeepLabV3PlusHead's loss, in [0, 1)
    cfg.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS = []  # one weight per class in the loss, or ["frequency"]; [] for equal weights


def _add_mining_keys(cfg: CN) -> None:
    mining = cfg.STYLE_MINING = CN()
    mining.STEPS = 100  # optimization steps per style
    mining.LR = 1.0  # SGD learning rate for the means and standard deviations of a style
    mining.MOMENTUM = 0.9  # SGD momentum
    mining.WEIGHT_DECAY = 1e-4  # SGD weight decay
    mining.METRIC = "euclidean"  # mining metric: euclidean (paper) or source (covariance of source patches)
    mining.PARAMETRIZATION = ""  # absolute (paper), relative (to a patch's own statistics) or "" (by CLIP family)
    mining.DTYPE = "float32"  # dtype of CLIP after the mined stage: float32 or bfloat16; styles stay in float32
    mining.IMS_PER_BATCH = 16  # images per batch; each class in a batch yields one style
    mining.MAX_BATCHES = 0  # number of batches to mine; 0 means one pass over the source
    mining.POOL_SIZE = 0  # side of the square feature map to which patches are pooled; 0 uses the side CLIP requires
    mining.STYLES = [f"{name} style" for name in _STYLES]  # phrases; a prompt is a random phrase and the class name
    mining.TEMPLATES = []  # sentences with one {} for the prompt; [] uses OpenAI's 80 ImageNet templates
    mining.SEED = 1  # non-negative seed for drawing crops and prompts


def _add_data_and_solver_keys(cfg: CN) -> None:
    cfg.DATASETS.FILES = []  # YAML definitions of additional datasets (see datasets/README.md)
    cfg.DATASETS.UNLABELED = []  # classes whose pixels and segments are ignored in training, e.g. ["car"]
    cfg.DATASETS.BALANCED = False  # True makes all datasets in TRAIN contribute equally, regardless of size
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"  # TrainingSampler (epochs) or RareClassSampler (of DAFormer)
    rare = cfg.DATALOADER.RARE_CLASS = CN()
    rare.TEMPERATURE = 0.01  # temperature of the class probabilities; higher values favor rare classes less
    rare.MIN_PIXELS = 3000  # pixels of the drawn class in an image; crops are redrawn until they show half as many
    cfg.INPUT.COLOR_JITTER = [0.8, 0.8, 0.8]  # brightness, contrast, saturation factors: from 1 - value to 1 + value
    cfg.INPUT.COLOR_JITTER_PROBABILITY = 1.0  # fraction of training images with color jitter, in [0, 1]
    augment = cfg.INPUT.AUTO_AUGMENT = CN()
    augment.NAME = ""  # RandAugment or AugMix without geometric operations, after color jitter; "" for none
    augment.MAGNITUDE = 9  # strength of its operations: 0 to 30 for RandAugment, 1 to 10 for AugMix
    augment.PROBABILITY = 1.0  # fraction of training images that it changes, in [0, 1]
    cfg.INPUT.SCALE_RANGE = [1.0, 1.0]  # lowest and highest factor for random resizing before the training crop
    cfg.INPUT.MAX_PIXELS = 8192 * 8192  # pixel limit per image, label or video frame; larger files are rejected
    cfg.INPUT.RELEASED_PADDING = False  # True labels the padding of training crops as road, as in the authors' code
    cfg.INPUT.CROP_RESIZED_TO = []  # (height, width) of the crop after resizing, in pixels; [] keeps INPUT.CROP.SIZE
    cfg.SOLVER.OPTIMIZER = "SGD"  # SGD, ADAM or ADAMW
    cfg.SOLVER.WEIGHT_DECAY_EMBED = None  # weight decay of queries, positions and class tokens; None for WEIGHT_DECAY
    cfg.SOLVER.BACKBONE_LR_FACTOR = 0.1  # ratio of the backbone's learning rate to the head's
    cfg.SOLVER.POLY_LR_FLOOR = 1e-6  # lowest learning rate if LR_SCHEDULER_NAME is PolyLR
    cfg.SOLVER.ACCUMULATE = 1  # forward passes per batch and process; gradients are accumulated to save memory
    cfg.SOLVER.MAX_SKIPPED_BATCHES = 0  # number of batches with a non-finite loss to skip before training stops
    cfg.SOLVER.CHECKPOINTS_KEPT = 0  # number of periodic checkpoints to keep besides the final one; 0 keeps all
    cfg.SOLVER.AMP.DTYPE = "float16"  # dtype if SOLVER.AMP.ENABLED is True: float16 (CUDA only) or bfloat16


def _add_test_keys(cfg: CN) -> None:
    test = cfg.TEST
    test.PROTOCOL = "native"  # evaluation protocol: parts from docs/PROTOCOLS.md joined with +, e.g. half+flip
    test.PROTOCOL_OF = []  # protocols for individual datasets, e.g. ["mapillary_val=robustnet1536"]
    test.WINDOW_BATCH = 1  # sliding windows per forward pass; higher values are faster on a GPU but need more memory
    test.CLASSES = "all"  # classes in mIoU: all, synthia16, synthia13; or names to predict, as a list or .txt file
    test.ABSENT_CLASSES = "skip"  # predicted but never labeled classes: skip (excluded from mIoU) or zero (IoU of 0)
    test.RELEASED_PADDING = False  # True labels the padding of protocol crops as road, as in the authors' code
    test.EVALUATOR = "streaming"  # streaming, detectron2 (SemSegEvaluator) or cityscapes (the official script)
    test.SOURCE = []  # datasets in DATASETS.TEST that are not targets; [] means those in the source domain

    selection = cfg.MODEL_SELECTION = CN()
    selection.USE = "last"  # weights to score after training: last, best (on SOURCE_VAL) or ema
    selection.SOURCE_VAL = ""  # source validation set, scored every PERIOD iterations; "" disables validation
    selection.PERIOD = 0  # iterations between evaluations; 0 uses TEST.EVAL_PERIOD, or else SOLVER.CHECKPOINT_PERIOD
    selection.EMA_DECAY = 0.0  # decay of the moving average of weights, in [0, 1); 0 disables the average

    cfg.TRACKERS = []  # experiment trackers that also receive metrics and images: wandb, mlflow
