"""Writing a CLIP in the three forms in which its weights are passed around; `clip_files` reads them back."""

import copy
import io
import warnings
from pathlib import Path
from typing import Literal, get_args

import safetensors.torch
import torch

from famix.clip.files import design_marks
from famix.clip.openai import CLIP, convert_weights, tokenize
from famix.clip.text_tower import OPENAI_TEXT
from famix.io.atomic import save_tensors, whole_file
from famix.utils.errors import ConfigError

__all__ = ["CLIPFileForm", "save_clip"]

CLIPFileForm = Literal["state_dict", "torchscript", "safetensors"]


def save_clip(model: CLIP, path: str | Path, form: CLIPFileForm = "state_dict") -> None:
    """Write a CLIP to a file that is complete or not there at all.

    Args:
        model: with a ResNet image tower, on the CPU. Its convolutions, linear layers and projections are turned into
            half precision, in place, as in OpenAI's files; so all forms hold equal values.
        path: to write, replaced if it is there. The file is marked as one with OpenAI's text tower.
        form: "state_dict" (torch.save), "safetensors" or "torchscript", which is a traced model with the integers
            input_resolution, context_length and vocab_size among its buffers, as OpenAI publishes.

    Raises:
        ConfigError: there is no such form.
    """
    if form not in get_args(CLIPFileForm):
        raise ConfigError(f"Got the form {form!r} of a CLIP file, expected one of {get_args(CLIPFileForm)}. Name one.")
    convert_weights(model)
    if form == "state_dict":
        state_dict = model.state_dict()
        state_dict._metadata[""].update(design_marks(OPENAI_TEXT))
        save_tensors(state_dict, path)
        return
    with whole_file(path) as part:
        if form == "torchscript":
            part.write_bytes(_to_torchscript(model))
        else:
            part.write_bytes(safetensors.torch.save(model.state_dict(), metadata=design_marks(OPENAI_TEXT)))


@torch.no_grad()
def _to_torchscript(model: CLIP) -> bytes:
    resolution = model.visual.input_resolution
    inputs = (torch.zeros(1, 3, resolution, resolution, dtype=model.dtype), tokenize(["a"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and warns of each shape that it takes for a constant
        content = io.BytesIO()  # torch aborts the process where it writes to a full disk itself
        torch.jit.save(torch.jit.trace(_with_integer_buffers(model), inputs, check_trace=False), content)
        return content.getvalue()


def _with_integer_buffers(model: CLIP) -> CLIP:
    integers = {
        "input_resolution": model.visual.input_resolution,
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
    }
    model = copy.deepcopy(model)
    for name, value in integers.items():
        vars(model).pop(name, None)  # clip keeps two of them as plain attributes, which a buffer may not shadow
        model.register_buffer(name, torch.tensor(value))
    return model
