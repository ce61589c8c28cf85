"""The CLIP that is shipped, on scenes that it was not trained on, through the project's own towers."""

import numpy as np
import torch

from famix.clip import CLIPResNet, PromptEncoder, load_clip_state_dict
from famix.data import CITYSCAPES_CLASSES
from famix_minitown.compact_clip import to_input
from famix_minitown.crops import CropPlan, TownSource, crops_of_scene
from famix_minitown.datasets import register
from famix_minitown.looks import LOOKS

LOOK_NAMES = list(LOOKS)


def test_tells_looks_and_classes_far_above_chance() -> None:
    register()
    weights = load_clip_state_dict("minitown")
    plan = CropPlan(seed=9, looks=5, crops=3, single_looks=True)
    crops = np.concatenate([crops_of_scene(TownSource(300_000, 20), plan, index) for index in range(20)])
    crops = crops[crops["looks"][:, 0] >= 0]
    labels = sorted(set(crops["label"].tolist()))
    texts = [f"{LOOKS[look].phrases[0]} {CITYSCAPES_CLASSES[label].name}" for look in LOOK_NAMES for label in labels]
    with torch.no_grad():
        images = CLIPResNet.from_state_dict(weights).encode_image(to_input(crops["image"]))
        guesses = (images @ PromptEncoder(weights)(texts, ["a photo of a {}."]).t()).argmax(1).numpy()
    assert len(crops) > 200
    assert (guesses // len(labels) == crops["looks"][:, 0]).mean() > 0.75  # chance: 1 of 35
    assert (np.array(labels)[guesses % len(labels)] == crops["label"]).mean() > 0.5  # chance: 1 of 10
