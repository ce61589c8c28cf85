"""CLIP families from open_clip: ConvNeXt, ViT, EVA02-CLIP, PE-Core and SigLIP."""

from famix.clip.open_clip.convnext import CLIPConvNeXt
from famix.clip.open_clip.vit import CLIPTimmViT, CLIPViT

__all__ = ["CLIPConvNeXt", "CLIPTimmViT", "CLIPViT"]
