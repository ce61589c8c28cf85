"""Dataset definitions, dataset files, and data loaders for training, mining and testing."""

from famix.data.build import MiningBatches, SampleStream, build_mining_batches, build_test_loader, build_train_loader
from famix.data.check import verify_datasets
from famix.data.classes import CITYSCAPES_CLASSES, ClassDefinition
from famix.data.definition import DatasetDefinition, LabelEncoding, Layout, PanopticDefinition, SplitDefinition
from famix.data.definition_file import load_definition
from famix.data.images import image_size, read_image
from famix.data.labels import LabelReader
from famix.data.layout.label_reader import label_reader_of
from famix.data.layout.split_files import DatasetFiles, DatasetRecord, SplitFiles, label_file_of
from famix.data.mapper import CropSampler, FAMixDatasetMapper
from famix.data.photometric import AutoAugment, ColorJitter, adjust_colors
from famix.data.registration import (
    get_dataset_dicts,
    get_label_readers,
    register_datasets,
    register_split,
    require_same_classes,
)

__all__ = [
    # Definitions
    "CITYSCAPES_CLASSES", "ClassDefinition", "DatasetDefinition", "LabelEncoding", "Layout", "PanopticDefinition",
    "SplitDefinition", "load_definition",
    # Files
    "DatasetFiles", "DatasetRecord", "LabelReader", "SplitFiles", "image_size", "label_file_of", "label_reader_of",
    "read_image",
    # Detectron2's catalogs
    "get_dataset_dicts", "get_label_readers", "register_datasets", "register_split", "require_same_classes",
    "verify_datasets",
    # Samples and loaders
    "AutoAugment", "ColorJitter", "CropSampler", "FAMixDatasetMapper", "SampleStream", "adjust_colors",
    "MiningBatches", "build_mining_batches", "build_test_loader", "build_train_loader",
]  # fmt: skip
