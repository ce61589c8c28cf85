"""CLIP ViTs: open_clip's own (OpenAI's, LAION's), EVA02-CLIP and PE-Core, SigLIP and SigLIP 2."""

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from famix.clip.base import CLIP_FAMILY_REGISTRY
from famix.clip.open_clip.family import OpenClipTower, pad_to
from famix.utils.errors import ConfigError


class PatchMap(Tensor):
    """Map (N, C, h, w) of patch tokens with the prefix tokens that the later blocks attend to.

    Results of operations on it are plain tensors.

    Attributes:
        prefix: class and register tokens, (N, P, C).
    """

    prefix: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def join(cls, features: Tensor, prefix: Tensor) -> "PatchMap":
        """Attach prefix tokens to a map."""
        joined = features.as_subclass(cls)
        joined.prefix = prefix
        return joined


class Tokens(NamedTuple):
    """Tokens of a map.

    Attributes:
        values: prefix tokens followed by those of the map, (B, P + h * w, C).
        size: (h, w).
        arguments: additional arguments of the blocks, such as rotary positions.
    """

    values: Tensor
    size: tuple[int, int]
    arguments: dict[str, Any]


class TokenTower(OpenClipTower):
    """Image tower whose stages are transformer blocks, "block1", "block2", ..., all with the same stride.

    Images are padded to multiples of the patch size. In `forward`, the patch size is `output_stride`; the patch embedding is
    resampled if CLIP was trained with a different one.
    """

    mined_on_images = True
    num_prefix: int

    def _set_up(self, tower: Any) -> None:
        self.stages = tuple(f"block{index + 1}" for index in range(len(self.blocks)))
        if self.output_stride != self.patch_size:
            self.register_buffer("_resampling", resampling(self.patch_size, self.output_stride), persistent=False)

    @property
    @abstractmethod
    def blocks(self) -> Any:
        """Transformer blocks."""

    @property
    @abstractmethod
    def patch_conv(self) -> Any:
        """Convolution of the patch embedding."""

    @abstractmethod
    def _add_positions(self, patches: Tensor) -> Tensor:
        """Turn embedded patches (B, C, h, w) into tokens (B, P + h * w, C) with prefix and positions."""

    def _block_arguments(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return additional arguments of the blocks for a map of size (h, w)."""
        return {}

    def stem(self, images: Tensor, dense: bool) -> Tokens:
        """Embed the patches of images."""
        weight, patch = self.patch_conv.weight, self.output_stride if dense else self.patch_size
        if patch != self.patch_size:
            weight = resample_kernel(weight, self._resampling)
        patches = F.conv2d(pad_to(images, patch), weight, self.patch_conv.bias, stride=patch)
        size = (patches.shape[2], patches.shape[3])
        return Tokens(self._add_positions(patches), size, self._block_arguments(size))

    def run_stage(self, stage: str, x: Tokens, dense: bool) -> Tokens:
        """Run a block."""
        index = self.stages.index(stage)
        return x._replace(values=self.run_block(self.blocks[index], x.values, **x.arguments))

    def map_of(self, x: Tokens) -> Tensor:
        """Return the map (B, C, h, w) of tokens."""
        return x.values[:, self.num_prefix :].mT.unflatten(2, x.size)

    def with_map(self, x: Tokens, features: Tensor) -> Tokens:
        """Replace the map of tokens."""
        return x._replace(values=torch.cat([x.values[:, : self.num_prefix], features.flatten(2).mT], dim=1))

    def features_at(self, stage: str, images: Tensor) -> PatchMap:
        """Compute the map of a block at CLIP's original patch size, with its prefix tokens."""
        x = self._run_to(stage, images)
        return PatchMap.join(self.map_of(x), x.values[:, : self.num_prefix])

    def state_of(self, features: Tensor) -> Tokens:
        """Return the tokens for a map returned by `features_at`.

        Raises:
            ConfigError: the map has no prefix tokens.
        """
        tokens: Tensor = features.flatten(2).mT
        prefix: Any = getattr(features, "prefix", None)
        if self.num_prefix and prefix is None:
            raise ConfigError(
                "features must be a result of features_at with its class token, got a plain tensor. Use replace_map(features, new)."
            )
        if self.num_prefix:
            tokens = torch.cat([prefix.to(tokens), tokens], dim=1)
        size = (features.shape[2], features.shape[3])
        return Tokens(tokens, size, self._block_arguments(size))

    def replace_map(self, features: Tensor, new: Tensor) -> Tensor:
        """Return `new` with the prefix tokens of `features`."""
        return PatchMap.join(new, features.prefix) if isinstance(features, PatchMap) else new

    @property
    def patch_size(self) -> int:
        """Original patch size in pixels."""
        return self.patch_conv.kernel_size[0]

    def input_side(self, stage: str) -> int:
        """Return the height and width of the map at CLIP's input resolution."""
        return self.input_resolution // self.patch_size

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of every block."""
        return dict.fromkeys(self.stages, ShapeSpec(channels=self.patch_conv.out_channels, stride=self.output_stride))


def resampling(old: int, new: int) -> Tensor:
    """Compute the matrix (new * new, old * old) that `resample_kernel` applies to kernels of old x old pixels.

    It keeps the embedding of resized patches ("FlexiViT", Beyer et al., CVPR 2023).
    """
    unit = torch.eye(old * old).unflatten(1, (1, old, old))
    resize = F.interpolate(unit, (new, new), mode="bicubic", antialias=True, align_corners=False).flatten(1)
    return torch.linalg.pinv(resize)


def resample_kernel(weight: Tensor, matrix: Tensor) -> Tensor:
    """Resample a patch embedding (C, 3, p, p) with a matrix from `resampling`."""
    side = math.isqrt(len(matrix))
    return (weight.float().flatten(2) @ matrix.mT).unflatten(2, (side, side)).to(weight.dtype)


def resample_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample position embeddings (L, C) for a map of size `old` to (L', C) for size `new`."""
    if old == new:
        return positions
    grid = positions.float().mT.unflatten(1, old)[None]
    return F.interpolate(grid, new, mode="bicubic", antialias=True, align_corners=False)[0].flatten(1).mT.to(positions)


class SelfAttention(nn.MultiheadAttention):
    """torch's attention of tokens (B, L, C) to themselves, without its transposition.

    After the transposition, torch projects the tokens with a product of strided batches, which takes most of a step.
    """

    def forward(self, query: Tensor, *others: Any, **options: Any) -> tuple[Tensor, None]:
        """Return the result (B, L, C), and None for the weights."""
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = projected.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads.unbind())
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


@CLIP_FAMILY_REGISTRY.register()
class CLIPViT(TokenTower):
    """open_clip's VisionTransformer, used by OpenAI and LAION."""

    embedding_modules = ("ln_post", "attn_pool", "attn_pool_contrastive", "proj")
    kinds = ("vit",)
    markers = ("visual.conv1.weight", "visual.class_embedding")
    example = "ViT-B-16"
    num_prefix = 1

    @property
    def blocks(self) -> Any:
        """Transformer blocks."""
        return self.transformer.resblocks

    @property
    def patch_conv(self) -> Any:
        """Convolution of the patch embedding."""
        return self.conv1

    def _set_up(self, tower: Any) -> None:
        super()._set_up(tower)
        self._grid = tower.grid_size
        self._tower = [tower]  # in a list, because its modules are already registered
        for block in self.blocks:
            if type(block.attn) is nn.MultiheadAttention:
                block.attn.__class__ = SelfAttention
        if not self.with_embedding:
            self.ln_post, self.attn_pool, self.proj = nn.Identity(), None, None

    def _add_positions(self, patches: Tensor) -> Tensor:
        size = (patches.shape[2], patches.shape[3])
        positions: Any = self.positional_embedding
        tokens = patches.flatten(2).mT + resample_positions(positions[1:], self._grid, size).to(patches)
        prefix = (self.class_embedding + positions[0]).to(patches).expand(patches.shape[0], 1, -1)
        return self._tower[0].ln_pre(self._tower[0].patch_dropout(torch.cat([prefix, tokens], dim=1)))

    def embed(self, x: Tokens) -> Tensor:
        """Pool and project tokens."""
        self.require_embedding()
        pooled, _ = self._tower[0]._pool(x.values)
        return pooled @ self.proj


@CLIP_FAMILY_REGISTRY.register()
class CLIPTimmViT(TokenTower):
    """timm's ViTs in open_clip's wrapper: EVA02-CLIP and PE-Core (with rotary positions), SigLIP and SigLIP 2."""

    embedding_modules = ("head", "trunk.norm", "trunk.fc_norm", "trunk.attn_pool", "trunk.head")
    kinds = ("eva", "vision_transformer")
    markers = ("visual.trunk.patch_embed.proj.weight", "visual.trunk.blocks.0.norm1.weight")
    example = "EVA02-B-16"

    @property
    def blocks(self) -> Any:
        """Transformer blocks."""
        return self.trunk.blocks

    @property
    def patch_conv(self) -> Any:
        """Convolution of the patch embedding."""
        return self.trunk.patch_embed.proj

    def _set_up(self, tower: Any) -> None:
        super()._set_up(tower)
        trunk: Any = self.trunk
        self.num_prefix = trunk.num_prefix_tokens
        if getattr(trunk, "rope", None) is not None:
            trunk.rope._use_cached_embed = False  # compute positions for the size of every map
        if not self.with_embedding:
            self.head: Any = None
            trunk.norm = trunk.fc_norm = trunk.head = nn.Identity()
            trunk.attn_pool = None

    def _block_arguments(self, size: tuple[int, int]) -> dict[str, Any]:
        rope = getattr(self.trunk, "rope", None)
        return {} if rope is None else {"rope": rope.get_embed(shape=list(size))}

    def _add_positions(self, patches: Tensor) -> Tensor:
        trunk: Any = self.trunk
        size, tokens = (patches.shape[2], patches.shape[3]), trunk.patch_embed.norm(patches.flatten(2).mT)
        positions, prefix = trunk.pos_embed, [x for x in (trunk.cls_token, trunk.reg_token) if x is not None]
        added = 0 if trunk.no_embed_class else self.num_prefix  # prefix tokens with a position
        if positions is not None:
            grid = resample_positions(positions[0, added:], trunk.patch_embed.grid_size, size)
            tokens = tokens + grid.to(tokens)
        if prefix:
            joined = torch.cat(prefix, dim=1)
            joined = joined + positions[:, :added] if positions is not None and added else joined
            tokens = torch.cat([joined.to(tokens).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return trunk.norm_pre(trunk.pos_drop(tokens))

    def embed(self, x: Tokens) -> Tensor:
        """Pool and project tokens."""
        self.require_embedding()
        trunk: Any = self.trunk
        return self.head(trunk.forward_head(trunk.norm(x.values)))
