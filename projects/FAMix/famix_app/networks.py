"""Networks that the page compares. They stay loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from famix.inference import Predictor
from famix.inference.hub import is_hub_name
from famix.inference.loading import LoadedModel, load_model
from famix.io.checkpointer import LAST_FILE
from famix.utils.errors import ConfigError

DEMO = Path("output/demo")


@dataclass(frozen=True, eq=False)
class Network:
    """Trained network."""

    name: str  # unique on the page
    loaded: LoadedModel
    predictor: Predictor


def find_demo_runs(folder: Path = DEMO) -> list[Path]:
    """Return the finished runs of the demo: without styles first, and those of several methods last.

    Raises:
        ConfigError: there are none.
    """
    runs = [path.parent for path in folder.glob(f"*/{LAST_FILE}")]
    if not runs:
        raise ConfigError(
            f"RUN is required because '{folder}' contains no finished runs. Pass run directories or checkpoints, or train the "
            "networks of the demo with famix-town (make demo in a clone)."
        )
    return sorted(runs, key=lambda run: (run.name != "baseline", "famix" in run.name, len(run.name), run.name))


def load_networks(runs: Sequence[Path], device: str | None = None) -> list[Network]:
    """Load networks.

    Args:
        runs: run directories, checkpoints, or names of published networks. One that is listed twice is loaded once.
        device: see `load_model`.

    Raises:
        ConfigError: see `load_model`.
        WeightsError: see `load_model`.
    """
    paths = list(dict.fromkeys(run if is_hub_name(str(run)) else run.resolve() for run in runs))
    networks = []
    for path, name in zip(paths, short_names(paths), strict=True):
        loaded = load_model(path, device=device)
        networks.append(Network(name, loaded, Predictor.from_loaded(loaded)))
    return networks


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name different paths by their last parts, as few as make the names different."""
    parts = [path.with_suffix("").parts if path.suffix == ".pth" else path.parts for path in paths]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
