#!/usr/bin/env python
"""Segment an image with an exported network: onnx_runtime_example.py model_final.onnx street.jpg overlay.png"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime  # type: ignore[import-untyped]

if len(sys.argv) != 4:
    sys.exit(__doc__)
model_file, image_file, output_file = sys.argv[1:]
for file in (model_file, image_file):
    if not Path(file).is_file():
        sys.exit(f"'{file}' does not exist")
session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
class_names, colors = json.loads(metadata["class_names"]), np.array(json.loads(metadata["colors"]), np.uint8)

image = cv2.imread(image_file)  # BGR, any size of at least 32 x 32 pixels
if image is None:
    sys.exit(f"cannot read '{image_file}' as an image")
height, width = image.shape[:2]
resized = image
if metadata.get("size", "free") != "free":  # "384x768": height and width were fixed by the export
    resized = cv2.resize(image, [int(side) for side in metadata["size"].split("x")][::-1])
rgb = np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1))[None]  # (1, 3, height, width) uint8, not normalized
outputs = session.run(None, {"image": rgb})
labels = outputs[-1][0].argmax(axis=0).astype(np.uint8)  # index into class_names
labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)

for class_id, pixels in enumerate(np.bincount(labels.ravel(), minlength=len(class_names))):
    if pixels:
        print(f"{pixels / labels.size:6.1%} {class_names[class_id]}")
overlay = cv2.addWeighted(image, 0.5, np.ascontiguousarray(colors[labels][..., ::-1]), 0.5, 0)
if "panoptic" in metadata:  # a query head that was trained on segments
    from query_segments import panoptic_segments  # in the same folder; `instances` there makes overlapping masks

    settings, things = json.loads(metadata["panoptic"]), json.loads(metadata["things"])
    ids, segments = panoptic_segments(outputs[0][0], outputs[1][0], resized.shape[:2], things, **settings)
    ids = cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST)
    for segment in segments:
        name, score = class_names[segment["category_id"]], segment["score"]
        print(f"segment {segment['id']}: {name}, {segment['area']} pixels, score {score:.2f}")
    overlay[np.diff(ids, axis=0, prepend=ids[:1]) != 0] = overlay[np.diff(ids, axis=1, prepend=ids[:, :1]) != 0] = 255
if not cv2.imwrite(output_file, overlay):
    sys.exit(f"cannot write '{output_file}'")
