"""Families of open_clip: ConvNeXt, ViT, EVA02-CLIP and PE-Core, SigLIP."""

from famix.clip.open_clip.convnext import CLIPConvNeXt
from famix.clip.open_clip.vit import CLIPTimmViT, CLIPViT

__all__ = ["CLIPConvNeXt", "CLIPTimmViT", "CLIPViT"]
