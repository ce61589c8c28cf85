"""Atomic file writing and safe reading of untrusted files.

Readers check the sizes in headers against the file size before they decode anything, and never execute code from a file.
They raise `CorruptFileError`, or OSError if a file cannot be read. Callers turn both into an error that names the file.
"""

from famix.io.hashes import file_sha256
from famix.io.tensors import is_torch_file, load_pickled_tensors, load_tensors, unwrapped_names
from famix.io.text_files import (
    MAX_JSON_BYTES,
    MAX_YAML_BYTES,
    check_yaml,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    read_yaml,
    require_plain_file,
    yaml_problem,
)
from famix.io.torchscript import TorchScript, read_torchscript

__all__ = [
    "MAX_JSON_BYTES", "MAX_YAML_BYTES", "TorchScript", "check_yaml", "file_sha256", "is_torch_file", "load_pickled_tensors",
    "load_tensors", "parse_json", "parse_yaml", "read_json", "read_text", "read_torchscript", "read_yaml",
    "require_plain_file", "unwrapped_names", "yaml_problem",
]  # fmt: skip
