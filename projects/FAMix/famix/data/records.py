"""Former place of these names, until all modules import from the new one."""
# ruff: noqa

from famix.data.split_files import DatasetRecord, label_file_of
