"""Label readers of whole datasets, whose layouts may differ in the encoding of their labels."""

import os
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from famix.data.definition import DatasetDefinition
from famix.data.label_names import ids_by_name, read_id_names
from famix.data.labels import LabelReader
from famix.data.layout import LabelEncoding
from famix.utils.errors import DatasetError
from famix.utils.paths import as_on_disk, one_form

__all__ = ["LayoutLabelReader", "label_reader_of"]

_PLACEHOLDERS = {"{key}": ".+", "{split}/": "(?:.+/)?", "{split}": ".+"}  # a split's folder may be ""


def label_reader_of(definition: DatasetDefinition) -> LabelReader:
    """Reader of a dataset's label files, whatever layout they lie in.

    Args:
        definition: the dataset. Its files need not be there yet.
    """
    first = definition.layouts[0].encoding
    if first.names_file is None and all(layout.encoding == first for layout in definition.layouts):
        return _make_reader(definition, first)
    return LayoutLabelReader(
        label_ids=first.label_ids,
        ignore_label=definition.ignore_label,
        other_ids_ignored=first.other_ids_ignored,
        channel=first.channel,
        source=definition.source,
        definition=definition,
    )


@dataclass(frozen=True)
class LayoutLabelReader(LabelReader):
    """Reads label files of several encodings, or of one that a file of the dataset tells.

    The path of a label says which layout it belongs to; the attributes of the base are those of the first.

    Attributes:
        definition: the dataset.
    """

    definition: DatasetDefinition = field(kw_only=True, repr=False)
    _readers: dict[tuple[str, str], LabelReader] = field(init=False, repr=False, compare=False, default_factory=dict)

    def for_file(self, path: str | os.PathLike[str]) -> LabelReader:
        """The reader that knows the encoding of a file.

        Args:
            path: of a label.

        Raises:
            DatasetError: the path fits no layout, or the file that names the ids cannot be used.
        """
        root = self.definition.root_folder()
        template = self._template_of(os.fspath(path), root)
        key = (template, root)
        if key not in self._readers:
            encoding = next(layout.encoding for layout in self.definition.layouts if layout.labels == template)
            self._readers[key] = replace(_make_reader(self.definition, encoding), max_pixels=self.max_pixels)
        return self._readers[key]

    def _template_of(self, path: str, root: str) -> str:
        below = one_form(os.path.relpath(path, root).replace(os.sep, "/"))
        fitting = [layout.labels for layout in self.definition.layouts if _pattern_of(layout.labels).fullmatch(below)]
        if not fitting:
            expected = ", ".join(dict.fromkeys(layout.labels for layout in self.definition.layouts))
            raise DatasetError(
                f"Label {path} lies in no layout of {self.source}, so the meaning of its ids is unknown; expected a "
                f"path below {root} like {expected}."
            )
        # labels/{key}.png also fits labels/1_labelTrainIds.png: the template that says more of the path counts.
        return max(fitting, key=lambda template: len(_literal(template)))


def _make_reader(definition: DatasetDefinition, encoding: LabelEncoding) -> LabelReader:
    label_ids, highest_id, segments_file = encoding.label_ids, encoding.highest_id, None
    if encoding.names_file is not None:
        file = Path(as_on_disk(os.path.join(definition.root_folder(), encoding.names_file)))
        id_names = read_id_names(file)
        label_ids = ids_by_name(id_names, encoding.label_names, definition.ignore_label, file)
        highest_id = max(id_names) if highest_id is None else highest_id
        segments_file = file if encoding.is_panoptic else None
    return LabelReader(
        label_ids=label_ids,
        ignore_label=definition.ignore_label,
        other_ids_ignored=encoding.other_ids_ignored,
        channel=encoding.channel,
        source=definition.source,
        highest_id=highest_id,
        bits=encoding.bits,
        segments_file=segments_file,
    )


@lru_cache(maxsize=64)
def _pattern_of(template: str) -> re.Pattern[str]:
    stem, dot, extension = one_form(template).rpartition(".")
    pattern = f"{re.escape(f'{stem}{dot}')}(?i:{re.escape(extension)})" if dot else re.escape(extension)
    for placeholder, meaning in _PLACEHOLDERS.items():
        pattern = pattern.replace(re.escape(placeholder), meaning)
    return re.compile(pattern)


def _literal(template: str) -> str:
    return template.replace("{key}", "").replace("{split}", "")
