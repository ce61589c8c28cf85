#!/usr/bin/env python
"""Segment an image with an exported network: onnx_runtime_example.py model_final.onnx street.jpg overlay.png"""

import json
import sys

import cv2
import numpy as np
import onnxruntime  # type: ignore[import-untyped]

model_file, image_file, output_file = sys.argv[1:4]
session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
class_names, colors = json.loads(metadata["class_names"]), np.array(json.loads(metadata["colors"]), np.uint8)

image = cv2.imread(image_file)  # BGR, any size of at least 32 x 32 pixels
if image is None:
    sys.exit(f"cannot read '{image_file}' as an image")
rgb = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))[None]  # (1, 3, height, width) uint8, not normalized
(logits,) = session.run(["logits"], {"image": rgb})  # (1, classes, height, width)
labels = logits[0].argmax(axis=0)  # (height, width), index into class_names

for class_id, pixels in enumerate(np.bincount(labels.ravel(), minlength=len(class_names))):
    if pixels:
        print(f"{pixels / labels.size:6.1%} {class_names[class_id]}")
overlay = cv2.addWeighted(image, 0.5, np.ascontiguousarray(colors[labels][..., ::-1]), 0.5, 0)
if not cv2.imwrite(output_file, overlay):
    sys.exit(f"cannot write '{output_file}'")
