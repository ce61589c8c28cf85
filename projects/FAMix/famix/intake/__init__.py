"""Files from outside, looked at before they are believed: what they claim is compared with what they are.

Sizes are read from headers before anything is decoded, structures are walked before anything is built from them, and
no code of a file is ever run. Everything here raises `DoubtfulFileError`, or OSError where a file cannot be read; the
loaders turn both into their own error, which names the file and says what to do.
"""

from famix.intake.archives import check_zip, is_zip
from famix.intake.doubt import DoubtfulFileError
from famix.intake.pickles import check_pickle
from famix.intake.plain_files import MAX_JSON_BYTES, parse_json, read_json, read_text, require_plain_file
from famix.intake.tensors import check_tensors, load_tensors, unwrapped_names
from famix.intake.torchscript import Sealed, TorchScript, read_torchscript
from famix.intake.yaml_text import MAX_YAML_BYTES, check_yaml, parse_yaml, read_yaml

__all__ = [
    "MAX_JSON_BYTES",
    "MAX_YAML_BYTES",
    "DoubtfulFileError",
    "Sealed",
    "TorchScript",
    "check_pickle",
    "check_tensors",
    "check_yaml",
    "check_zip",
    "is_zip",
    "load_tensors",
    "parse_json",
    "parse_yaml",
    "read_json",
    "read_text",
    "read_torchscript",
    "read_yaml",
    "require_plain_file",
    "unwrapped_names",
]
