"""A small CLIP in a small file: half precision, and of the token embedding only the rows that were trained.

The file is a .safetensors with the names of OpenAI's files, whose `token_embedding.weight` has T rows, and with
`token_rows` (T,), the tokens that they stand for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from famix.clip.files import design_marks
from famix.clip.openai import VOCAB_SIZE
from famix.clip.text_tower import OPENAI_TEXT
from famix.io.atomic import whole_file
from famix.utils.errors import WeightsError

__all__ = ["expand_compact", "full_embedding", "is_compact", "rounded", "save_compact"]

_EMBEDDING = "token_embedding.weight"
_ROWS = "token_rows"
_MOST_CHANNELS = 4096  # of the embedding: a row in the file becomes as many as there are tokens


def rounded(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a compact file keeps of weights: float32 with the values that half precision has, vectors as they are."""
    return {name: _store(tensor).float() for name, tensor in state_dict.items() if tensor.is_floating_point()}


def _store(tensor: Tensor) -> Tensor:
    # Vectors are norms and biases: few, and a variance can be below what half precision can hold.
    return tensor.half() if tensor.ndim > 1 else tensor.float()


def save_compact(
    state_dict: Mapping[str, Tensor], path: str | Path, token_ids: Sequence[int], metadata: Mapping[str, str]
) -> None:
    """Write a CLIP to a file that is complete or not there at all.

    Args:
        state_dict: of a CLIP whose token embedding has all 49408 rows.
        path: .safetensors file to write, replaced if it is there.
        token_ids: T rows of the token embedding to keep; `expand_compact` fills the others with zeros.
        metadata: texts to keep in the file.
    """
    rows = torch.tensor(token_ids, dtype=torch.int64)
    kept = {**state_dict, _EMBEDDING: state_dict[_EMBEDDING][rows]}
    tensors = {name: _store(tensor).contiguous() for name, tensor in kept.items() if tensor.is_floating_point()}
    with whole_file(path) as part:
        part.write_bytes(save({**tensors, _ROWS: rows.int()}, metadata={**metadata, **design_marks(OPENAI_TEXT)}))


def is_compact(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are those of a compact file. All of these have OpenAI's text tower."""
    return _ROWS in tensors


def expand_compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the tensors of a compact file into those of a usual one, with zeros for tokens that were not trained.

    Raises:
        WeightsError: there is no embedding for the rows, or a row is no token.
    """
    rows, others = tensors[_ROWS].long(), {name: tensor for name, tensor in tensors.items() if name != _ROWS}
    embedding = others.get(_EMBEDDING)
    shape = () if embedding is None else tuple(embedding.shape)
    fits = len(shape) == 2 and tuple(rows.shape) == shape[:1] and 0 < shape[1] <= _MOST_CHANNELS
    fits &= not tensors[_ROWS].is_floating_point()  # half precision cannot count to the last token
    if embedding is None or not fits or ((rows < 0) | (rows >= VOCAB_SIZE)).any():
        raise WeightsError(
            f"Got {_ROWS} of {tensors[_ROWS].dtype} and shape {tuple(rows.shape)} for {_EMBEDDING} of shape {shape}, expected one integer below "
            f"{VOCAB_SIZE} for each row of at most {_MOST_CHANNELS}. Make the file again with train_mini_clip.py."
        )
    return {**others, _EMBEDDING: full_embedding(embedding, rows.tolist())}


def full_embedding(rows: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Spread the rows of a compact token embedding.

    Args:
        rows: (T, C).
        token_ids: their T places.

    Returns:
        (49408, C), 0 in all other places.
    """
    embedding = rows.new_zeros(VOCAB_SIZE, rows.shape[1])
    embedding[torch.tensor(token_ids, dtype=torch.int64)] = rows
    return embedding
