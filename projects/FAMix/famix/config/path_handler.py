"""famix:// in Detectron2's functions that open files, such as `CfgNode.merge_from_file`."""

import os
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from famix.utils.errors import ConfigError
from famix.utils.paths import config_file


class InstalledFiles(PathHandler):
    """Read access to the files that are installed with FAMix, by paths such as "famix://GTA5/famix_RN50.yaml"."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["famix://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return config_file(path)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        try:
            return os.path.isfile(config_file(path))
        except ConfigError:
            return False

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._isfile(path)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(config_file(path), mode, buffering, **kwargs)


PathManager.register_handler(InstalledFiles(), allow_override=True)
