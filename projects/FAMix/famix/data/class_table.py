"""Former place of these names, until all modules import from the new one."""
# ruff: noqa

from famix.data.classes import CLASSES, SHIPPED, ClassTable, classes_of, trained_classes
from famix.data.registration import classes_in_files
