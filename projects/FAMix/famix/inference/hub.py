"""Networks published on a model hub (Hugging Face): hf://OWNER/NAME, or hf://OWNER/NAME@REVISION.

Published files: the checkpoint, which includes config and classes, and `famix.json` with its SHA-256. Downloads go to the
cache of huggingface_hub, whose environment variables (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE) apply.
"""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from famix.io import file_sha256, read_json
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.messages import first_line

HUB = "hf://"
CHECKPOINT_FILE, FACTS_FILE = "model.pth", "famix.json"
FORMAT_VERSION = 1  # of famix.json

_SCHEME = re.compile(r"hf:/+")  # Path("hf://...") has a single slash
_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_MAX_BYTES = 1 << 20  # for famix.json


def is_hub_name(path: str) -> bool:
    """Return whether a path names a published network, e.g. "hf://owner/name"."""
    return _SCHEME.match(path) is not None


def require_hub() -> ModuleType:
    """Import huggingface_hub. Raises ConfigError if it is not installed."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(
            f"The model hub requires huggingface_hub, which cannot be imported ({first_line(error)}). Install it with pip "
            "install 'famix[hub]'."
        ) from error


def split_name(name: str, key: str = "the name of a published network") -> tuple[str, str | None]:
    """Split "OWNER/NAME@REVISION", with or without hf://, into "OWNER/NAME" and the revision, if any.

    Raises:
        ConfigError: the name has a different form. The message starts with `key`.
    """
    found = _NAME.fullmatch(_SCHEME.sub("", name))
    if found is None:
        raise ConfigError(f"{key} must be OWNER/NAME or OWNER/NAME@REVISION, got {name!r}. Correct the name.")
    return found["name"], found["revision"]


def download_checkpoint(name: str) -> Path:
    """Download the checkpoint of a published network, unless the cache has it, and return its path.

    Args:
        name: "OWNER/NAME" or "OWNER/NAME@REVISION", where a revision is a branch, tag or commit; with or without hf://.

    Raises:
        ConfigError: the name is malformed, or huggingface_hub is not installed.
        WeightsError: the network or revision does not exist, the hub cannot be reached, or the files are damaged or were
            not published by FAMix.
    """
    hub = require_hub()
    repository, revision = split_name(name)
    with explain_hub_errors(repository, f"Network '{repository}' cannot be downloaded"):
        download = hub.HfApi().hf_hub_download
        facts_file = Path(download(repository, FACTS_FILE, revision=revision))
        checkpoint = Path(download(repository, CHECKPOINT_FILE, revision=revision))
    try:
        expected = str(read_json(facts_file, _MAX_BYTES)["sha256"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{FACTS_FILE} of '{repository}' is malformed ({error}). Publish the network again."
        ) from error
    found = file_sha256(checkpoint)
    if found != expected:
        raise WeightsError(
            f"The checkpoint of '{repository}' must have the SHA-256 {expected[:12]} of its {FACTS_FILE}, got {found[:12]}. "
            f"Delete '{checkpoint.resolve()}', to which the cache links, and download it again."
        )
    return checkpoint


def upload_folder(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a folder as a network's files, in one commit, and return the address of its page.

    Args:
        folder: files to upload.
        name: "OWNER/NAME". The network is created if it does not exist.
        private: whether a new network is visible to its owner only.

    Raises:
        ConfigError: the name is malformed, or huggingface_hub is not installed.
        WeightsError: the hub cannot be reached or refuses the upload.
    """
    hub = require_hub()
    with explain_hub_errors(name, f"Network '{name}' cannot be uploaded"):
        api = hub.HfApi()
        page = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Publish with FAMix")
    return str(page)


@contextmanager
def explain_hub_errors(repository: str, fact: str) -> Iterator[None]:
    """Raise WeightsError, whose message starts with a fact, for an error of huggingface_hub."""
    errors = importlib.import_module("huggingface_hub.errors")
    endpoint = importlib.import_module("huggingface_hub.constants").ENDPOINT
    try:
        yield
        return
    except errors.GatedRepoError as error:
        cause, remedy = error, f"Request access at {endpoint}/{repository}, then run hf auth login."
    except errors.RevisionNotFoundError as error:
        cause, remedy = error, f"The revision does not exist. List the revisions at {endpoint}/{repository}."
    except errors.RepositoryNotFoundError as error:
        cause, remedy = error, "It does not exist or is private. Check the name, or run hf auth login."
    except errors.LocalEntryNotFoundError as error:
        offline = f"{endpoint} cannot be reached, and the cache has no copy."
        copy = f"On a machine with access, run hf download {repository} {CHECKPOINT_FILE}, and pass that file here."
        cause, remedy = error, f"{offline} {copy}"
    except errors.EntryNotFoundError as error:
        cause, remedy = error, f"It has no {FACTS_FILE} or {CHECKPOINT_FILE}. Use a network published by famix-publish."
    except errors.LocalTokenNotFoundError as error:
        cause, remedy = error, "Run hf auth login first."
    except Exception as error:  # huggingface_hub and its HTTP libraries raise many types
        cause, remedy = (
            error,
            f"{first_line(error).rstrip('.')}. Check the connection to {endpoint} and the access rights.",
        )
    raise WeightsError(f"{fact}. {remedy}") from cause
