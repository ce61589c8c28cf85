"""Create random CLIPs, and write the formats that `famix.clip.files` reads."""

import copy
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from famix.clip.architecture import CLIP_STRIDE, HEAD_CHANNELS, CLIPArchitecture
from famix.clip.files import TOKEN_EMBEDDING, TOKEN_ROWS, design_marks
from famix.clip.openai import CLIP, VOCAB_SIZE, convert_weights, tokenize
from famix.clip.text.tower import OPENAI_TEXT
from famix.io.atomic import save_tensors, whole_file
from famix.utils.errors import ConfigError

CONTEXT_LENGTH = 77  # maximum number of tokens per text in all published models
CLIPFileForm = Literal["state_dict", "torchscript", "safetensors"]


def random_clip(
    architecture: CLIPArchitecture,
    *,
    seed: int = 0,
    text_width: int | None = None,
    text_layers: int | None = None,
    random_norms: bool = False,
    calibrated_norms: bool = False,
) -> CLIP:
    """Create a CLIP with the clip package's random initialization, in float32 on the CPU.

    The global random state is not changed.

    Args:
        architecture: sizes of the image tower.
        seed: random seed.
        text_width: channels of the text tower, a multiple of 64; None uses 8 * width as in the published models, rounded
            down to a multiple of 64 but at least 64.
        text_layers: depth of the text tower; None uses 12 as in the published models, or 2 if width < 64.
        random_norms: randomize the batch norms. Otherwise, the last norm of each bottleneck has weight 0, which disables the
            residual branches.
        calibrated_norms: set the batch norm statistics to those of smooth random images. Otherwise, features vanish with
            depth in eval mode.

    Returns:
        The model in eval mode, with OpenAI's vocabulary and context length.

    Raises:
        ConfigError: the sizes are invalid.
    """
    sizes = (*architecture.layers, architecture.width, architecture.embed_dim, architecture.input_resolution)
    if (
        len(architecture.layers) != 4
        or min(sizes) < 1
        or architecture.width % 2
        or architecture.input_resolution % CLIP_STRIDE
        or (text_width is not None and (text_width < 1 or text_width % HEAD_CHANNELS))
    ):
        raise ConfigError(
            f"A CLIP must have 4 positive layers, an even width, a resolution divisible by {CLIP_STRIDE} and a text width "
            f"divisible by {HEAD_CHANNELS}, got {architecture} with text width {text_width}. Correct the sizes."
        )
    text_width = text_width or max(architecture.width * 8 // HEAD_CHANNELS, 1) * HEAD_CHANNELS
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed GPUs
        text_heads = text_width // HEAD_CHANNELS
        text_layers = text_layers or (12 if architecture.width >= 64 else 2)
        model = architecture.build_clip(CONTEXT_LENGTH, VOCAB_SIZE, text_width, text_heads, text_layers)
    generator = torch.Generator().manual_seed(seed)
    if random_norms:
        _randomize_norms(model, generator)
    if calibrated_norms:
        _calibrate_norms(model, generator)
    return model.eval()


@torch.no_grad()
def _randomize_norms(model: nn.Module, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0.0, 0.1, generator=generator)
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)


@torch.no_grad()
def _calibrate_norms(model: CLIP, generator: torch.Generator) -> None:
    norms = [module for module in model.visual.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # use the statistics of the batch below
    side = model.visual.input_resolution
    noise = [torch.randn(16, 3, cells, cells, generator=generator) for cells in (2, 4, 8, 16, side)]
    images = sum(functional.interpolate(layer, (side, side), mode="bilinear") for layer in noise) / len(noise) ** 0.5
    model.visual.train()(images)
    for norm in norms:
        norm.momentum = nn.BatchNorm2d(1).momentum


def save_clip(model: CLIP, path: str | Path, form: CLIPFileForm = "state_dict") -> None:
    """Save a CLIP atomically.

    Args:
        model: a CLIP ResNet on the CPU. Its convolutions, linear layers and projections are converted to half precision in
            place, as in OpenAI's files.
        path: output file. Its metadata specifies OpenAI's text design.
        form: "state_dict" (torch.save), "safetensors", or "torchscript" (traced model with the buffers of OpenAI's files).

    Raises:
        ConfigError: `form` is unknown.
    """
    if form not in get_args(CLIPFileForm):
        raise ConfigError(f"form must be one of {', '.join(get_args(CLIPFileForm))}, got {form!r}. Choose one of them.")
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
    integers = {
        "input_resolution": model.visual.input_resolution,
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
    }
    side = model.visual.input_resolution
    inputs = (torch.zeros(1, 3, side, side, dtype=model.dtype), tokenize(["a"]))
    model = copy.deepcopy(model)
    for name, value in integers.items():
        vars(model).pop(name, None)  # two of them are plain attributes, which would block the buffers
        model.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about constant shapes and deprecation
        content = io.BytesIO()  # torch aborts the process on a full disk
        torch.jit.save(torch.jit.trace(model, inputs, check_trace=False), content)
    return content.getvalue()


def save_compact(
    state_dict: Mapping[str, Tensor], path: str | Path, token_ids: Sequence[int], metadata: Mapping[str, str]
) -> None:
    """Save a small CLIP atomically in half precision, with only the trained rows of the token embedding.

    In the .safetensors file, `token_embedding.weight` has T rows and `token_rows` (T,) contains their token ids. On
    loading, all other rows become zero.

    Args:
        state_dict: CLIP weights with all 49408 rows of the token embedding.
        path: output file.
        token_ids: ids of the T trained tokens.
        metadata: additional metadata for the file.
    """
    rows = torch.tensor(token_ids, dtype=torch.int64)
    kept = {**state_dict, TOKEN_EMBEDDING: state_dict[TOKEN_EMBEDDING][rows]}
    tensors = {name: _store(tensor).contiguous() for name, tensor in kept.items() if tensor.is_floating_point()}
    with whole_file(path) as part:
        marks = {**metadata, **design_marks(OPENAI_TEXT)}
        part.write_bytes(safetensors.torch.save({**tensors, TOKEN_ROWS: rows.int()}, metadata=marks))


def rounded(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round weights to the precision of a compact file, and return them in float32."""
    return {name: _store(tensor).float() for name, tensor in state_dict.items() if tensor.is_floating_point()}


def _store(tensor: Tensor) -> Tensor:
    # Vectors are norms and biases; variances can be below the range of half precision.
    return tensor.half() if tensor.ndim > 1 else tensor.float()
