"""Queries and classifiers, either learned or computed from text embeddings of the class names.

Text embeddings are buffers, so checkpoints contain them and predictions need no text tower. Shapes: B images, Q queries, C
hidden channels, K classes, D channels of text embeddings.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from famix.clip import PromptEncoder, load_configured_clip, require_text_design
from famix.data.classes import classes_of
from famix.modeling.query.decoder import full_precision
from famix.utils.errors import ConfigError

TEXT_NAME = "text_embeddings"
"""Last component in the names of buffers that contain text embeddings."""

_INITIAL_SCALE, _MAX_SCALE = 1 / 0.07, 100.0  # scales of cosine similarities, as in CLIP
_width_in_checkpoint: ContextVar[int | None] = ContextVar("_width_in_checkpoint", default=None)


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

    Args:
        text_embeddings: (K, D) unit-length embeddings of the class names.
        hidden_dim: number of channels C.
    """

    text_embeddings: Tensor

    def __init__(self, text_embeddings: Tensor, hidden_dim: int) -> None:
        super().__init__()
        self.register_buffer(TEXT_NAME, text_embeddings)
        dim = text_embeddings.shape[1]
        with torch.random.fork_rng(devices=[]):
            hidden = [nn.Linear(hidden_dim, hidden_dim), nn.ReLU()]
            self.projection = nn.Sequential(
                *hidden, nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim)
            )
            self.no_object = nn.Parameter(torch.randn(1, dim))
        self.log_scale = nn.Parameter(torch.tensor(math.log(_INITIAL_SCALE)))

    def forward(self, queries: Tensor) -> Tensor:
        """Map queries (B, Q, C) to scaled cosine similarities (B, Q, K + 1), the last of which is "no object"."""
        with full_precision(queries.device):
            rows = F.normalize(torch.cat([self.text_embeddings, self.no_object]), dim=1)
            directions = F.normalize(self.projection(queries.float()), dim=2)
            return self.log_scale.exp().clamp(max=_MAX_SCALE) * directions @ rows.t()


def embed_classes(cfg: CfgNode) -> Tensor:
    """Compute the text embeddings of the class names with the text tower of MODEL.CLIP.WEIGHTS.

    Args:
        cfg: config; uses DATASETS, MODEL.CLIP, MODEL.SEM_SEG_HEAD.NUM_CLASSES, STYLE_MINING.TEMPLATES and MODEL.DEVICE.

    Returns:
        (K, D) unit-length float32 on the CPU, averaged over the templates. They are zero on the meta device and within
        `text_embeddings_of`, whose checkpoint contains them.

    Raises:
        ConfigError: MODEL.CLIP.WEIGHTS is empty, or a name is too long or unknown to the text tower.
        WeightsError: the weights are unusable.
    """
    width = _width_in_checkpoint.get()
    if width is not None or torch.device(cfg.MODEL.DEVICE).type == "meta":
        return torch.zeros(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, width or 1)
    source = cfg.MODEL.CLIP.WEIGHTS
    if not source:
        raise ConfigError(
            "MODEL.CLIP.WEIGHTS must name a CLIP with a text tower for text in MODEL.MASK_FORMER.QUERIES or CLASSIFIER, got ''. "
            "Set MODEL.CLIP.WEIGHTS, or set both keys to learned."
        )
    weights = load_configured_clip(cfg)
    require_text_design(weights, source)
    names, encoder = classes_of(cfg).names, PromptEncoder(weights, device=cfg.MODEL.DEVICE)
    unknown = encoder.unknown_words(names)
    if unknown:
        raise ConfigError(
            f"MODEL.CLIP.WEIGHTS {source} must know the words of all class names, got {', '.join(map(repr, unknown))}. Use a CLIP "
            "with a full vocabulary, or rename the classes."
        )
    return encoder(names, cfg.STYLE_MINING.TEMPLATES).cpu()


@contextmanager
def text_embeddings_of(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """While the context is open, build networks with text embeddings from a checkpoint and without a text tower.

    Args:
        weights: state_dict of the network.
    """
    widths = [value.shape[-1] for name, value in weights.items() if name.rpartition(".")[2] == TEXT_NAME]
    token = _width_in_checkpoint.set(widths[0] if widths else 1)
    try:
        yield
    finally:
        _width_in_checkpoint.reset(token)
