"""Pixel decoder and transformer decoder of Mask2Former (Cheng et al., CVPR 2022), built from the parts in transformers.

The library builds these parts for its own backbones and leaves their initialization to the enclosing model. Here they are
built on the maps of any backbone and initialized explicitly. Shapes: B images, Q queries, C hidden channels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from famix.utils.errors import ConfigError

STRIDES = (4, 8, 16, 32)
"""Strides of the feature maps: the last three enter the pixel decoder, and masks have the resolution of the first."""

NUM_HEADS = 8
"""Number of attention heads."""

_NUM_GROUPS = 32  # number of groups in the library's group norms


class DecoderOutput(NamedTuple):
    """Predictions before the first layer and after every layer of the transformer decoder."""

    queries: list[Tensor]  # (B, Q, C) each
    masks: list[Tensor]  # (B, Q, h, w) mask logits each, at stride 4


class MaskDecoder(nn.Module):
    """Mask2Former's decoder, which turns feature maps into queries and one mask per query.

    Args:
        channels: channels of the four feature maps, from stride 4 to stride 32.
        num_queries: number of queries Q.
        hidden_dim: number of channels C, a multiple of 32.
        encoder_layers: number of layers of deformable attention in the pixel decoder, at least 1.
        decoder_layers: number of layers of masked attention in the transformer decoder, at least 1.
        queries: module in place of the learned query features. Its attribute `weight` (Q, C) is read in every forward pass.

    Raises:
        ConfigError: a value is out of range, or transformers is not installed.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_queries: int,
        *,
        hidden_dim: int = 256,
        encoder_layers: int = 6,
        decoder_layers: int = 9,
        queries: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for key, value, valid, constraint, default in (
            ("NUM_QUERIES", num_queries, num_queries > 0, "positive", 100),
            ("HIDDEN_DIM", hidden_dim, hidden_dim > 0 and hidden_dim % _NUM_GROUPS == 0,
             f"a positive multiple of {_NUM_GROUPS}", 256),
            ("ENCODER_LAYERS", encoder_layers, encoder_layers > 0, "positive", 6),
            ("DECODER_LAYERS", decoder_layers, decoder_layers > 0, "positive", 9),
        ):  # fmt: skip
            if not valid:
                raise ConfigError(f"MODEL.MASK_FORMER.{key} must be {constraint}, got {value}. Use e.g. {default}.")
        self.hidden_dim = hidden_dim
        library = load_library()
        config = library.Mask2FormerConfig(
            feature_size=hidden_dim,
            mask_feature_size=hidden_dim,
            hidden_dim=hidden_dim,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers + 1,  # the library counts the prediction before the first layer
            num_queries=num_queries,
            num_attention_heads=NUM_HEADS,
            encoder_feedforward_dim=4 * hidden_dim,
            dim_feedforward=8 * hidden_dim,
            feature_strides=list(STRIDES),
        )
        with torch.random.fork_rng(devices=[]):  # the library draws initial weights from the global generator
            self.pixel_decoder = library.Mask2FormerPixelDecoder(config, list(channels))
            self.transformer = library.Mask2FormerTransformerModule(hidden_dim, config)
            _initialize(self, library, config)
        if queries is not None:
            self.transformer.queries_features = queries

    def forward(self, features: Sequence[Tensor]) -> DecoderOutput:
        """Decode feature maps (B, channels, h, w) with strides 4, 8, 16 and 32.

        Raises:
            ConfigError: the groups of a norm would have a single value.
        """
        if self.hidden_dim == _NUM_GROUPS and features[-1].shape[-2:] == (1, 1) and len(features[-1]) == 1:
            raise ConfigError(
                f"MODEL.MASK_FORMER.HIDDEN_DIM must be at least {2 * _NUM_GROUPS} for a single image of up to {STRIDES[-1]} x "
                f"{STRIDES[-1]} pixels, got {self.hidden_dim}. Use a larger image, or train with {2 * _NUM_GROUPS} or more."
            )
        with full_precision(features[0].device):  # for the positions of samples
            pixels = self.pixel_decoder([feature.float() for feature in features], return_dict=True)
        output = self.transformer(list(pixels.multi_scale_features), pixels.mask_features)
        queries = [hidden.transpose(0, 1) for hidden in output.intermediate_hidden_states]
        return DecoderOutput(queries, list(output.masks_queries_logits))


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Disable automatic mixed precision on a device while the context is open."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return nullcontext()  # torch.export would make a nested graph of the other context
    return torch.autocast(device.type, enabled=False)


def load_library() -> Any:
    """Import transformers' module for Mask2Former, which takes seconds. Raises ConfigError if it is not installed."""
    try:
        from transformers.models.mask2former import modeling_mask2former
    except ImportError as error:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE FAMixMaskFormer requires transformers ({error}). Install it with pip install "
            "'famix[queries]'."
        ) from error
    return modeling_mask2former


@torch.no_grad()
def _initialize(decoder: MaskDecoder, library: Any, config: Any) -> None:
    """Initialize the decoder as in the authors' implementation.

    The constructors leave the pixel decoder's level embedding uninitialized and the offsets of deformable attention random.
    In the library, the enclosing model calls `_init_weights` on every module. The modules initialized here have no parameters in
    common, so their order is arbitrary.
    """
    for module in decoder.pixel_decoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    initializer = library.Mask2FormerPreTrainedModel(config)
    own = (
        nn.Embedding,
        library.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
        library.Mask2FormerPixelDecoder,
        library.Mask2FormerTransformerModule,
        library.Mask2FormerMaskedAttentionDecoderLayer,
        library.Mask2FormerPredictionBlock,
    )
    for module in decoder.modules():
        if isinstance(module, own):
            initializer._init_weights(module)
