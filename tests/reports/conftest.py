import pytest

from run_factory import Workspace


@pytest.fixture(scope="package")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With the folder "run" of a training of one iteration: a bank of two style words, a checkpoint and scores."""
    workspace = Workspace(tmp_path_factory.mktemp("reports") / "space")
    workspace.run("run", "SOLVER.MAX_ITER", "1", "STYLE_MINING.STYLES", "['foggy', 'night']")
    return workspace
