"""Queries and classifiers, either learned or computed from text embeddings of the class names.

Text embeddings are buffers, so checkpoints contain them and predictions need no text tower. Shapes: B images, Q queries, C
hidden channels, K classes, D channels of text embeddings.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from famix.clip import PromptEncoder, load_configured_clip, require_text_design
from famix.clip.files import CLIPStateDict
from famix.data.classes import classes_of
from famix.data.vocabulary import Synonyms, unlabeled_classes, unseen_names, vocabulary_of
from famix.modeling.query.decoder import full_precision
from famix.utils.errors import ConfigError, WeightsError

TEXT_NAME = "text_embeddings"
"""Last component in the names of buffers that contain text embeddings."""

_INITIAL_SCALE, _MAX_SCALE = 1 / 0.07, 100.0  # scales of cosine similarities, as in CLIP
_MAX_DIFFERENCE = 0.01  # between unit-length embeddings from the same text tower, for checkpoints in half precision


class _Checkpoint(NamedTuple):
    """Checkpoint that networks are built for."""

    width: int  # D
    clip: str  # MODEL.CLIP.WEIGHTS of its run


_checkpoint: ContextVar[_Checkpoint | None] = ContextVar("_checkpoint", default=None)


class ClassEmbeddings(NamedTuple):
    """Text embeddings for a network."""

    trained: Tensor  # (K, D) unit-length float32; zero for classes without labels
    tested: Tensor | None = None  # (M, D) float32, means over synonyms, for the M classes that TEST.CLASSES lists
    clip: CLIPStateDict | None = None  # weights that computed them, if some of these classes have no labels in training


class TextQueries(nn.Module):
    """Query features computed from text embeddings, one query per class, as in TQDM (Pak et al., ECCV 2024).

    Args:
        text_embeddings: (K, D) unit-length embeddings of the class names.
        hidden_dim: number of channels C.
    """

    text_embeddings: Tensor

    def __init__(self, text_embeddings: Tensor, hidden_dim: int) -> None:
        super().__init__()
        self.register_buffer(TEXT_NAME, text_embeddings)
        with torch.random.fork_rng(devices=[]):
            self.projection = nn.Linear(text_embeddings.shape[1], hidden_dim)

    @property
    def weight(self) -> Tensor:
        """Query features (K, C)."""
        return self.projection(self.text_embeddings)


class LinearClassifier(nn.Module):
    """Linear classifier of queries.

    Args:
        hidden_dim: number of channels C.
        num_classes: number of classes K.
    """

    def __init__(self, hidden_dim: int, num_classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.linear = nn.Linear(hidden_dim, num_classes + 1)

    def forward(self, queries: Tensor) -> Tensor:
        """Map queries (B, Q, C) to logits (B, Q, K + 1), the last of which is "no object"."""
        return self.linear(queries)


class TextClassifier(nn.Module):
    """Classifier that compares queries with text embeddings and a learned "no object" row, as in FC-CLIP (Yu et al., 2023).

    Classes with an embedding of zero have no labels in training and are never predicted.

    Args:
        text_embeddings: (K, D) unit-length embeddings of the class names.
        hidden_dim: number of channels C.
        tested: (M, D) embeddings of the classes to predict in eval mode. They are not part of the state_dict. None predicts
            the K classes.
    """

    text_embeddings: Tensor
    tested: Tensor | None

    def __init__(self, text_embeddings: Tensor, hidden_dim: int, tested: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer(TEXT_NAME, text_embeddings)
        self.register_buffer("tested", tested, persistent=False)
        dim = text_embeddings.shape[1]
        with torch.random.fork_rng(devices=[]):
            hidden = [nn.Linear(hidden_dim, hidden_dim), nn.ReLU()]
            self.projection = nn.Sequential(
                *hidden, nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim)
            )
            self.no_object = nn.Parameter(torch.randn(1, dim))
        self.log_scale = nn.Parameter(torch.tensor(math.log(_INITIAL_SCALE)))

    def forward(self, queries: Tensor) -> Tensor:
        """Map queries (B, Q, C) to scaled cosine similarities (B, Q, K + 1), the last of which is "no object".

        In eval mode with `tested`, the shape is (B, Q, M + 1).
        """
        text = self.text_embeddings if self.training or self.tested is None else self.tested
        with full_precision(queries.device):
            embeddings = torch.cat([text, self.no_object])
            directions = F.normalize(self.projection(queries.float()), dim=2)
            logits = self.log_scale.exp().clamp(max=_MAX_SCALE) * directions @ F.normalize(embeddings, dim=1).t()
            return logits.masked_fill(embeddings.abs().sum(dim=1) == 0, -torch.inf)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        stored, own = state_dict.get(f"{prefix}{TEXT_NAME}"), self.text_embeddings
        if self.tested is not None and stored is not None and stored.shape == own.shape:
            difference = (stored.to(own) - own).norm(dim=1).max()
            if difference > _MAX_DIFFERENCE:
                raise WeightsError(
                    "The checkpoint has other text embeddings of its classes than MODEL.CLIP.WEIGHTS computes (difference "
                    f"{difference:.2g}), so classes in TEST.CLASSES cannot be compared with its queries. Set MODEL.CLIP.WEIGHTS, "
                    "STYLE_MINING.TEMPLATES and DATASETS.UNLABELED to their values in training."
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


def embed_classes(cfg: CfgNode) -> ClassEmbeddings:
    """Compute the text embeddings of the class names with the text tower of MODEL.CLIP.WEIGHTS.

    Args:
        cfg: config; uses DATASETS, MODEL.CLIP, MODEL.SEM_SEG_HEAD.NUM_CLASSES, STYLE_MINING.TEMPLATES, TEST.CLASSES and
            MODEL.DEVICE.

    Returns:
        Embeddings on the CPU, averaged over the templates. They are zero on the meta device. Within `text_embeddings_of`,
        whose checkpoint contains those of training, they are zero unless TEST.CLASSES lists classes.

    Raises:
        ConfigError: MODEL.CLIP.WEIGHTS is empty, a name is too long or unknown to the text tower, or TEST.CLASSES or
            DATASETS.UNLABELED is invalid.
        WeightsError: the weights are unusable.
    """
    unlabeled, vocabulary, checkpoint = unlabeled_classes(cfg), vocabulary_of(cfg), _checkpoint.get()
    num_classes, width = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, checkpoint.width if checkpoint else 1
    if torch.device(cfg.MODEL.DEVICE).type == "meta":
        return ClassEmbeddings(
            torch.zeros(num_classes, 1), torch.zeros(len(vocabulary.synonyms), 1) if vocabulary else None
        )
    if checkpoint and not vocabulary:
        return ClassEmbeddings(torch.zeros(num_classes, checkpoint.width))
    labeled = [train_id for train_id in range(num_classes) if train_id not in unlabeled]
    names = classes_of(cfg).names
    synonyms: Synonyms = tuple((names[train_id],) for train_id in labeled)
    rows, clip = _embed(cfg, (*synonyms, *(vocabulary.synonyms if vocabulary else ())), checkpoint)
    if checkpoint and rows.shape[1] != width:
        raise WeightsError(
            f"MODEL.CLIP.WEIGHTS has text embeddings with {rows.shape[1]} channels, but the checkpoint has {width}. Set "
            "MODEL.CLIP.WEIGHTS to the weights used for training."
        )
    trained = rows.new_zeros(num_classes, rows.shape[1])
    trained[labeled] = rows[: len(labeled)]
    if vocabulary is None:
        return ClassEmbeddings(trained)
    return ClassEmbeddings(trained, rows[len(labeled) :], clip if unseen_names(cfg, vocabulary.table.names) else None)


def _embed(cfg: CfgNode, synonyms: Synonyms, checkpoint: _Checkpoint | None) -> tuple[Tensor, CLIPStateDict]:
    """Return embeddings (len(synonyms), D), averaged over templates and synonyms, and the CLIP that computed them."""
    if checkpoint:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.CLIP.WEIGHTS = checkpoint.clip
    source = cfg.MODEL.CLIP.WEIGHTS
    if not source:
        raise ConfigError(
            "MODEL.CLIP.WEIGHTS must name a CLIP with a text tower for names in TEST.CLASSES, and for text in "
            "MODEL.MASK_FORMER.QUERIES or CLASSIFIER, got ''. Set MODEL.CLIP.WEIGHTS, or set TEST.CLASSES to all and both keys "
            "to learned."
        )
    weights = load_configured_clip(cfg)
    require_text_design(weights, source)
    names, encoder = [name for entry in synonyms for name in entry], PromptEncoder(weights, device=cfg.MODEL.DEVICE)
    unknown = encoder.unknown_words(names)
    if unknown:
        raise ConfigError(
            f"MODEL.CLIP.WEIGHTS {source} must know the words of all class names, got {', '.join(map(repr, unknown))}. Use a CLIP "
            "with a full vocabulary, rename the classes, or, for a network without text, set MODEL.MASK_FORMER.CLASSIFIER and "
            "MODEL.MASK_FORMER.QUERIES to learned."
        )
    embeddings = encoder(names, cfg.STYLE_MINING.TEMPLATES).cpu()
    return torch.stack([rows.mean(dim=0) for rows in embeddings.split([len(entry) for entry in synonyms])]), weights


@contextmanager
def text_embeddings_of(weights: Mapping[str, Tensor], clip: str = "") -> Iterator[None]:
    """While the context is open, build networks with text embeddings from a checkpoint.

    The text tower is needed only for classes that TEST.CLASSES lists.

    Args:
        weights: state_dict of the network.
        clip: MODEL.CLIP.WEIGHTS of its run, if the config that networks are built from lacks it.
    """
    widths = [value.shape[-1] for name, value in weights.items() if name.rpartition(".")[2] == TEXT_NAME]
    token = _checkpoint.set(_Checkpoint(widths[0] if widths else 1, clip))
    try:
        yield
    finally:
        _checkpoint.reset(token)
