"""train_net as a user meets it: exit status and message of every mistake, and runs of several processes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clip_factory import save_tiny_clip
from data_factory import write_label
from famix.style import StyleBank
from robustness.faults import start_command, status_of
from run_factory import SIZE, Workspace, call_train_net, train_net

Break = Callable[[Workspace], tuple[str, ...]]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a mined bank, to be copied."""
    workspace = Workspace(tmp_path_factory.mktemp("pristine") / "space")
    workspace.run("bank", flags=("--mine-styles-only",))
    return workspace.folder


@pytest.fixture
def workspace(pristine: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may break."""
    shutil.copytree(pristine, tmp_path / "space")
    return Workspace.existing(tmp_path / "space")


def first_label(workspace: Workspace) -> Path:
    return workspace.folder / "data/labels/train/0.png"


def remove_data(workspace: Workspace) -> tuple[str, ...]:
    shutil.rmtree(workspace.folder / "data/images")
    return ()


def remove_label(workspace: Workspace) -> tuple[str, ...]:
    first_label(workspace).unlink()
    return ()


def shrink_label(workspace: Workspace) -> tuple[str, ...]:
    write_label(first_label(workspace), torch.zeros(SIZE[0] - 1, SIZE[1], dtype=torch.uint8).numpy())
    return ()


def write_foreign_id(workspace: Workspace) -> tuple[str, ...]:
    write_label(first_label(workspace), torch.full(SIZE, 77, dtype=torch.uint8).numpy())
    return ()


def truncate_image(workspace: Workspace) -> tuple[str, ...]:
    image = workspace.folder / "data/images/train/0.png"
    image.write_bytes(image.read_bytes()[:-2000])
    return ()


def remove_clip(workspace: Workspace) -> tuple[str, ...]:
    workspace.clip.unlink()
    return ()


def truncate_clip(workspace: Workspace) -> tuple[str, ...]:
    workspace.clip.write_bytes(workspace.clip.read_bytes()[:10000])
    return ()


def replace_clip_by_another_network(workspace: Workspace) -> tuple[str, ...]:
    torch.save({"fc.weight": torch.zeros(2, 2)}, workspace.clip)
    return ()


def use_bank_with_another_clip(workspace: Workspace) -> tuple[str, ...]:
    save_tiny_clip(workspace.clip, seed=1)
    return ("MODEL.STYLE.BANK", str(workspace.folder / "bank/style_bank.safetensors"))


def use_bank_with_another_stage(workspace: Workspace) -> tuple[str, ...]:
    return ("MODEL.STYLE.BANK", str(workspace.folder / "bank/style_bank.safetensors"), "MODEL.STYLE.STAGE", "res3")


def use_bank_of_other_classes(workspace: Workspace) -> tuple[str, ...]:
    path = workspace.folder / "bank/style_bank.safetensors"
    bank = StyleBank.load(path)
    bank.metadata["class_names"] = '["cat", "dog"]'
    bank.save(path)
    return ("MODEL.STYLE.BANK", str(path))


def write_output_below_a_file(workspace: Workspace) -> tuple[str, ...]:
    return ("OUTPUT_DIR", str(workspace.clip / "output"))


def give(*options: str) -> Break:
    return lambda workspace: options


MISTAKES: dict[str, tuple[Break, str]] = {
    "unknown key": (give("MODEL.STYLE.GIRD", "[2, 2]"), "MODEL.STYLE.GIRD.*MODEL.STYLE.GRID"),
    "missing folder": (remove_data, "data/images"),
    "image without label": (remove_label, r"images/train/0|labels/train/0"),
    "label of another size": (shrink_label, r"0\.png.*71"),
    "id outside the map": (write_foreign_id, r"0\.png.*77"),
    "corrupt image": (truncate_image, r"images/train/0\.png"),
    "missing CLIP": (remove_clip, r"clip\.pt"),
    "truncated CLIP": (truncate_clip, r"clip\.pt"),
    "foreign CLIP": (replace_clip_by_another_network, r"clip\.pt.*CLIPResNet"),
    "bank of another CLIP": (use_bank_with_another_clip, "clip_hash .*[0-9a-f]{64}.*[0-9a-f]{64}.*MODEL.CLIP.WEIGHTS"),
    "bank of another stage": (use_bank_with_another_stage, "stage .*res3.*res2.*MODEL.STYLE.STAGE"),
    "bank of other classes": (use_bank_of_other_classes, "class_names .*road.*cat"),
    "unwritable output": (write_output_below_a_file, "OUTPUT_DIR .*clip.pt/output"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_with_one_clear_error(
    mistake: str, workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    make, message = MISTAKES[mistake]
    options = make(workspace)
    with pytest.raises(SystemExit) as exit_info, workspace.registered():
        train_net().main(workspace.parse("run", *options))
    assert exit_info.value.code == 2
    output = capfd.readouterr()
    lines = [line for line in (output.out + output.err).splitlines() if "error: " in line]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in output.out + output.err
    assert not (workspace.folder / "run/model_final.pth").exists()
    assert not list(workspace.folder.glob("run/*.safetensors"))  # nothing half-written


def test_process_of_its_own_tells_the_mistake_in_one_line(workspace: Workspace) -> None:
    process = call_train_net(*workspace.arguments("run", "SOLVER.BASE_LRR", "1"))
    assert process.returncode == 2
    assert process.stderr.splitlines() == [
        "error: unknown config key SOLVER.BASE_LRR. Did you mean 'SOLVER.BASE_LR' or 'SOLVER.BASE_LR_END' or "
        "'SOLVER.BIAS_LR_FACTOR'?"
    ]  # fmt: skip


def test_two_processes_mine_the_bank_of_one_and_train(workspace: Workspace, tmp_path: Path) -> None:
    arguments = workspace.arguments("two", "SOLVER.MAX_ITER", "2", flags=("--num-gpus", "2"))
    status = status_of(start_command(arguments, log := tmp_path / "log"))
    assert status == 0, log.read_text()[-2000:]
    one = StyleBank.load(workspace.folder / "bank/style_bank.safetensors")
    two = StyleBank.load(workspace.folder / "two/style_bank.safetensors")
    assert torch.equal(one.class_ids, two.class_ids)
    for name in ("batch_id", "prompt_id"):
        assert torch.equal(one.annotations[name], two.annotations[name])
    torch.testing.assert_close(one.mean, two.mean, rtol=1e-4, atol=1e-5)
    weights = workspace.checkpoint("two")["model"]
    assert not [name for name in weights if name.startswith("module.")]
    # What two processes scored together is what their checkpoint scores.
    last = json.loads((workspace.folder / "two/metrics.json").read_text().splitlines()[-1])
    weights_file = str(workspace.folder / "two/model_final.pth")
    scores = workspace.run("scores", "MODEL.WEIGHTS", weights_file, flags=("--eval-only",))
    assert scores["tiny_val"]["sem_seg"]["mIoU"] == pytest.approx(last["tiny_val/sem_seg/mIoU"])


def test_two_processes_report_a_mistake_and_exit_with_its_status(workspace: Workspace, tmp_path: Path) -> None:
    first_label(workspace).unlink()
    status = status_of(start_command(workspace.arguments("two", flags=("--num-gpus", "2")), log := tmp_path / "log"))
    assert status == 2 and "Traceback" not in log.read_text()
    assert "error: " in log.read_text()


def test_several_machines_need_an_address(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["train_net.py", "--num-machines", "2", "--machine-rank", "0"])
    with pytest.raises(SystemExit) as stop:
        train_net().launch_from_command_line()
    assert stop.value.code == 2
    assert "--dist-url tcp://FIRST_MACHINE:PORT" in capsys.readouterr().err


def test_interrupted_run_says_how_to_continue(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = train_net()

    def interrupt(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "run", interrupt)
    with pytest.raises(SystemExit) as exit_info:
        script.main(workspace.parse("run"))
    assert exit_info.value.code == 130
    assert "--resume" in capfd.readouterr().err
