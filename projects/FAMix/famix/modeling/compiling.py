"""torch.compile for training. Compiled layers keep their parameter names, so checkpoints do not change."""

import os
import shutil

import torch
from detectron2.config import CfgNode
from torch import nn

from famix.clip import CLIPImageTower
from famix.config import require_setting

_COMPILERS = ("g++", "clang++", "c++", "cl")


def compile_layers(model: nn.Module, backend: str) -> None:
    """Compile the blocks of the image tower and the layers of the semantic head, in place.

    Everything else stays uncompiled, so that styles can be applied between blocks. Compilation starts with the first batch.

    Args:
        model: meta-architecture. Its head, if any, is the attribute `sem_seg_head`.
        backend: name in `torch.compiler.list_backends`, or "" to compile nothing.
    """
    if not backend:
        return
    for part in model.modules():
        if isinstance(part, CLIPImageTower):
            part.compile_backend = backend
    head = getattr(model, "sem_seg_head", None)
    for layer in head.children() if head is not None else ():
        layer.compile(backend=backend)


def check_compilation(cfg: CfgNode) -> None:
    """Raise ConfigError if MODEL.COMPILE is not a known backend, or the backend lacks a C++ compiler."""
    backend, known = cfg.MODEL.COMPILE, torch.compiler.list_backends(exclude_tags=())
    constraint = f"'' or one of {', '.join(known)}"
    require_setting(cfg, "MODEL.COMPILE", backend in ("", *known), constraint, "Use inductor")
    found = backend != "inductor" or "CXX" in os.environ or any(map(shutil.which, _COMPILERS))
    remedy = "Install a C++ compiler such as g++, or set it to ''"
    require_setting(cfg, "MODEL.COMPILE", found, "'' on a machine without a C++ compiler", remedy)
