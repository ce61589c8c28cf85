"""Query head (Mask2Former): semantic, panoptic and instance segmentation from one network."""

from famix.modeling.query.maskformer import FAMixMaskFormer, MaskFormer
from famix.modeling.query.queries import text_embeddings_of

__all__ = ["FAMixMaskFormer", "MaskFormer", "text_embeddings_of"]
