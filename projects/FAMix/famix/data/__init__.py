"""Datasets: their definition, their files, and the loaders that feed training, mining and tests."""

from famix.data.augmentation import ColorJitter, CropSampler, adjust_colors
from famix.data.build import MiningBatches, build_mining_batches, build_test_loader, build_train_loader
from famix.data.check import verify_datasets
from famix.data.classes import CITYSCAPES_CLASSES, ClassDefinition
from famix.data.definition import DatasetDefinition, SplitDefinition, load_definition
from famix.data.images import image_size, read_image
from famix.data.labels import LabelReader
from famix.data.layout import LabelEncoding, Layout
from famix.data.layout_reader import label_reader_of
from famix.data.mapper import FAMixDatasetMapper
from famix.data.records import DatasetRecord, label_file_of
from famix.data.registration import (
    get_dataset_dicts,
    get_label_readers,
    register_datasets,
    register_split,
    require_same_classes,
)
from famix.data.sampler import SampleStream, StreamSampler
from famix.data.split_files import SplitFiles

__all__ = [
    # What a dataset is
    "CITYSCAPES_CLASSES",
    "ClassDefinition",
    "DatasetDefinition",
    "SplitDefinition",
    "Layout",
    "LabelEncoding",
    "load_definition",
    # Its files
    "LabelReader",
    "label_reader_of",
    "SplitFiles",
    "DatasetRecord",
    "label_file_of",
    "image_size",
    "read_image",
    # Detectron2's catalogues
    "register_datasets",
    "register_split",
    "get_dataset_dicts",
    "get_label_readers",
    "require_same_classes",
    "verify_datasets",
    # Samples
    "ColorJitter",
    "CropSampler",
    "adjust_colors",
    "FAMixDatasetMapper",
    "SampleStream",
    "StreamSampler",
    # Loaders
    "MiningBatches",
    "build_train_loader",
    "build_mining_batches",
    "build_test_loader",
]
