"""Datasets: their definitions, their files, and the loaders for training, mining and tests."""

from famix.data.augmentation import ColorJitter, CropSampler, adjust_colors
from famix.data.build import MiningBatches, build_mining_batches, build_test_loader, build_train_loader
from famix.data.check import verify_datasets
from famix.data.classes import CITYSCAPES_CLASSES, ClassDefinition
from famix.data.definition import (
    DatasetDefinition,
    LabelEncoding,
    Layout,
    PanopticDefinition,
    SplitDefinition,
)
from famix.data.definition_file import load_definition
from famix.data.images import image_size, read_image
from famix.data.labels import LabelReader
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
from famix.data.split_files import DatasetFiles, SplitFiles

__all__ = [
    # Definitions
    "CITYSCAPES_CLASSES",
    "ClassDefinition",
    "DatasetDefinition",
    "PanopticDefinition",
    "SplitDefinition",
    "Layout",
    "LabelEncoding",
    "load_definition",
    # Files
    "LabelReader",
    "label_reader_of",
    "DatasetFiles",
    "SplitFiles",
    "DatasetRecord",
    "label_file_of",
    "image_size",
    "read_image",
    # Detectron2's catalogs
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
