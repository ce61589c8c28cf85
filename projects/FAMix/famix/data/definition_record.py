"""Former place of these names, until all modules import from the new one."""
# ruff: noqa

from famix.data.definition import changed_entry, describe_dataset, find_definitions, keep_definitions
