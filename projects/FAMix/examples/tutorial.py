"""Tutorial: from your own images to a table of scores, in Python.

This tutorial writes to `output/tutorial` in the current folder, runs on a CPU and downloads nothing. It is a notebook,
`tutorial.ipynb`, and a script, `tutorial.py`, which runs as a whole or cell by cell in an editor that supports "# %%". The
images are rendered by FAMix's miniature town: to use your own, skip section 1 and describe them in section 2.
"""

# %%
# These sizes train in a few minutes on a laptop.
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from famix import Predictor, config_file
from famix.engine import Trainer, argument_parser, setup
from famix.inference import load_model, strip_checkpoint
from famix.reports import read_report
from famix.utils.plugins import load_plugins
from famix_minitown.rendering.conditions import apply_condition
from famix_minitown.rendering.scene import render_scene

load_plugins()  # the miniature town and its CLIP
FOLDER = Path("output/tutorial")
SIZE = (192, 384)  # height and width of the images
IMAGES = 60  # for training
ITERATIONS = 150

# %% [markdown]
# ## 1. Images and labels
#
# Labels are PNGs with the class id of each pixel, such as 0 for road and 2 for building (Cityscapes train ids). The domain
# "day" is labeled for training, "night" and "fog" only for evaluation.

# %%
for split, condition, first, count in (
    ("day_train", "clear", 0, IMAGES),
    ("day_val", "clear", 500, 8),
    ("night", "night", 500, 8),
    ("fog", "fog", 500, 8),
):
    for folder in ("images", "labels"):
        (FOLDER / folder / split).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        scene = render_scene(first + number, SIZE)
        Image.fromarray(apply_condition(scene, condition)).save(FOLDER / "images" / split / f"{number:03d}.png")
        Image.fromarray(scene.labels).save(FOLDER / "labels" / split / f"{number:03d}.png")

Image.open(FOLDER / "images/fog/000.png")  # a notebook shows it

# %% [markdown]
# ## 2. The dataset
#
# A YAML file defines a dataset: its paths, its classes and the ids in its labels. Each split is registered as a dataset,
# `street_day_train` etc. The keys are documented in datasets/README.md.

# %%
DEFINITION = FOLDER / "street.yaml"
DEFINITION.write_text(f"""
name: street
root: {FOLDER.resolve()}
images: "images/{{split}}/{{key}}.png"
labels: "labels/{{split}}/{{key}}.png"
classes:
  - {{name: road, color: [128, 64, 128]}}
  - {{name: building, color: [70, 70, 70]}}
  - {{name: vegetation, color: [107, 142, 35]}}
  - {{name: sky, color: [70, 130, 180]}}
  - {{name: car, color: [0, 0, 142]}}
label_ids: {{0: road, 1: road, 2: building, 3: building, 8: vegetation, 10: sky, 13: car}}
other_ids: ignore
splits: {{day_train: {{}}, day_val: {{}}, night: {{}}, fog: {{}}}}
""")
print(DEFINITION)

# %% [markdown]
# ## 3. The config
#
# The config selects CLIP, styles and sizes. Start from any config in projects/FAMix/configs, with OpenAI's CLIP from
# Base-FAMix.yaml, and override its keys. `setup` checks keys, files and classes.

# %%
cfg = setup(
    argument_parser().parse_args([
        "--config-file", config_file("minitown/famix_weather.yaml"), "--overwrite",  # replace an earlier run
        "DATASETS.FILES", f"['{DEFINITION}']",
        "DATASETS.TRAIN", "['street_day_train']",
        "DATASETS.TEST", "['street_day_val', 'street_night', 'street_fog']",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5",
        "STYLE_MINING.STYLES", "['night', 'foggy']",
        "INPUT.CROP.SIZE", f"[{SIZE[0]}, {SIZE[0]}]",
        "SOLVER.MAX_ITER", str(ITERATIONS),
        "DATALOADER.NUM_WORKERS", "0",
        "OUTPUT_DIR", str(FOLDER / "run"),
    ])
)  # fmt: skip

# %% [markdown]
# ## 4. Mine styles, train, score
#
# The trainer first mines the styles above from the images of day_train. `resume=True` continues a stopped run. The run
# directory then contains the checkpoint, the style bank, and the scores as results.md, .csv and .json.

# %%
trainer = Trainer(cfg)
trainer.resume_or_load(resume=False)
results = trainer.train(overwrite=True)

# %% [markdown]
# ## 5. Print the scores

# %%
report = read_report(FOLDER / "run/results.json")
rows = [[name, report.class_count(name), report.score(name), report.score(name, "pACC")] for name in results]
headers = ["dataset", "classes that occur", "mIoU in %", "pixel accuracy in %"]
table = tabulate(rows, headers=headers, floatfmt=".1f", tablefmt="github")
(FOLDER / "table.md").write_text(table + "\n")
print(table)

# %% [markdown]
# ## 6. Predict
#
# A predictor accepts paths, PIL images and RGB arrays; `predict_many` loads the next images in a thread. The protocol "flip"
# averages the predictions of each image and its mirror image (see docs/PROTOCOLS.md).

# %%
predictor = Predictor.from_checkpoint(FOLDER / "run", protocol="flip")
photos = sorted((FOLDER / "images/night").glob("*.png"))
Image.fromarray(predictor(photos[0]).overlay(photos[0], alpha=0.6)).save(FOLDER / "overlay.png")
Image.open(FOLDER / "overlay.png")

# %%
shares = []
for photo, prediction in zip(photos, predictor.predict_many(photos), strict=True):
    shares.append([photo.name, *(100 * (prediction.labels == index).mean() for index in range(5))])
print(tabulate(shares, headers=["share in %", *predictor.classes.names], floatfmt=".1f", tablefmt="github"))

# %% [markdown]
# ## 7. Deploy
#
# A stripped checkpoint contains weights, config and classes in one file for `Predictor.from_checkpoint` and demo.py.
# tools/export.py writes it as well, and ONNX.

# %%
strip_checkpoint(load_model(FOLDER / "run"), FOLDER / "street.pth", half=True)
print(Predictor.from_checkpoint(FOLDER / "street.pth").classes.names)
