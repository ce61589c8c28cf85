import logging
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.events import TensorboardXWriter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clip_factory import tiny_clip
from error_matching import expect_error
from famix.clip import clip_weights_hash, load_clip_state_dict
from famix.engine import load_config
from famix.io.atomic import FileLock
from famix.mining import load_or_mine, obtain, obtain_style_bank, style_bank_path
from famix.style import StyleBank
from famix.utils.errors import BankError, ConfigError

NAMES = ["road", "sky", "car"]


def small_bank():
    bank = StyleBank({"seed": "1"})
    bank.add(torch.tensor([0, 2]), torch.rand(2, 3), torch.rand(2, 3))
    return bank


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "out" / "bank.safetensors")


class Calls:
    """Functions for load_or_mine that note their calls."""

    def __init__(self):
        self.names = []
        self.bank = small_bank()

    def mine(self):
        self.names.append("mine")
        return self.bank

    def check(self, bank):
        self.names.append("check")


def test_mines_once_then_loads(path, caplog):
    calls = Calls()
    with caplog.at_level(logging.INFO, logger="famix"):
        mined = load_or_mine(path, mine=calls.mine, check=calls.check)
        assert mined is calls.bank and calls.names == ["mine"]
        loaded = load_or_mine(path, mine=calls.mine, check=calls.check)
    assert calls.names == ["mine", "check"]
    assert torch.equal(loaded.mean, mined.mean)
    assert [record.getMessage() for record in caplog.records] == [
        f"No style bank at {path} yet: mining one",
        f"Saved 2 styles of 2 classes to {path}",
        f"Loaded 2 styles of 2 classes from {path}",
    ]


def test_runs_that_share_a_bank_mine_it_once(path, monkeypatch, caplog):
    """The second waits while the first mines, and takes what that has saved."""
    lock, calls, attempts = Path(path).with_name(".bank.safetensors.lock"), Calls(), []
    lock.parent.mkdir()
    other = FileLock(lock)  # flock keeps out other descriptors of the same process, too

    def wait(seconds):
        attempts.append(seconds)
        if len(attempts) == 2:
            small_bank().save(path)
            other.close(remove=True)

    monkeypatch.setattr(obtain.time, "sleep", wait)
    with caplog.at_level(logging.INFO, logger="famix"):
        load_or_mine(path, mine=calls.mine, check=calls.check)
    assert calls.names == ["check"] and len(attempts) == 2
    assert caplog.text.count("Another run mines") == 1
    assert [file.name for file in lock.parent.iterdir()] == ["bank.safetensors"]


def test_the_next_run_mines_where_the_first_died(path, monkeypatch):
    calls = Calls()
    Path(path).parent.mkdir()
    other = FileLock(Path(path).with_name(".bank.safetensors.lock"))
    monkeypatch.setattr(obtain.time, "sleep", lambda seconds: other.close())
    load_or_mine(path, mine=calls.mine, check=calls.check)
    assert calls.names == ["mine"]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_bank_that_does_not_fit_or_is_damaged_is_neither_used_nor_mined_over(path, damaged):
    small_bank().save(path)
    content = Path(path).read_bytes()[: 50 if damaged else None]
    Path(path).write_bytes(content)

    def refuse(bank):
        raise BankError("other grid")

    calls = Calls()
    with pytest.raises(BankError, match=r"\.safetensors" if damaged else "other grid"):
        load_or_mine(path, mine=calls.mine, check=refuse)
    assert calls.names == [] and Path(path).read_bytes() == content


def test_a_failed_mining_leaves_no_file(path, tmp_path):
    def fail():
        raise BankError("styles must be finite")

    with pytest.raises(BankError, match="finite"):
        load_or_mine(path, mine=fail, check=Calls().check)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_the_first_process_decides_and_writes(path, monkeypatch, tmp_path):
    """This is the second process, and the first one has not seen the file that is there for this one."""
    small_bank().save(path)
    before = (tmp_path / "out" / "bank.safetensors").read_bytes()
    of_the_first = iter([False, True, False])  # is there a bank, has it the lock, is there a bank now
    monkeypatch.setattr(comm, "all_gather", lambda seen: [next(of_the_first), seen])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    calls = Calls()
    assert load_or_mine(path, mine=calls.mine, check=calls.check) is calls.bank
    assert calls.names == ["mine"]
    assert (tmp_path / "out" / "bank.safetensors").read_bytes() == before


class TwoBatches(list):
    """In place of MiningBatches."""

    remaining = frozenset({0, 1})


@pytest.fixture
def cfg(tmp_path, clip_file, make_samples, monkeypatch):
    """Two batches of two crops, one optimiser step and short prompts."""
    cfg = load_config("")
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.DATASETS.TRAIN = ("bank_source_town",)
    cfg.MODEL.DEVICE, cfg.MODEL.CLIP.WEIGHTS, cfg.MODEL.STYLE.GRID = "cpu", clip_file, [2, 3]
    cfg.STYLE_MINING.STEPS, cfg.STYLE_MINING.TEMPLATES, cfg.STYLE_MINING.STYLES = 1, ["{}"], ["Foggy style"]
    MetadataCatalog.get("bank_source_town").set(stuff_classes=NAMES)
    labels = [[0, 1, 1], [255, 0, 2]], [[1, 1, 0], [0, 0, 0]]
    batches = [(0, make_samples(*labels)), (1, make_samples(labels[1], labels[1], seed=1))]
    monkeypatch.setattr(obtain, "build_mining_batches", lambda cfg, group, skip: TwoBatches(batches))
    yield cfg
    MetadataCatalog.remove("bank_source_town")


def test_the_bank_lies_in_the_output_folder_or_where_the_config_says(cfg):
    assert style_bank_path(cfg) == f"{cfg.OUTPUT_DIR}/style_bank.safetensors"
    cfg.MODEL.STYLE.BANK = "elsewhere.safetensors"
    assert style_bank_path(cfg) == "elsewhere.safetensors"


def test_the_text_tower_of_the_prompts_must_be_known(cfg, tmp_path):
    torch.save(tiny_clip().state_dict(), tmp_path / "unmarked.pt")
    cfg.MODEL.CLIP.WEIGHTS = str(tmp_path / "unmarked.pt")
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", "", "open_clip:RN50"):
        obtain_style_bank(cfg)
    banks = {}
    for name in ("RN50", "open_clip:RN50"):
        cfg.MODEL.CLIP.ARCHITECTURE, cfg.MODEL.STYLE.BANK = name, str(tmp_path / f"{name}.safetensors")
        banks[name] = obtain_style_bank(cfg)
    assert not torch.equal(banks["RN50"].mean, banks["open_clip:RN50"].mean), "the prompts' embeddings differ"
    with expect_error(BankError, str(tmp_path / "RN50.safetensors"), remedy="MODEL.CLIP.ARCHITECTURE"):
        cfg.MODEL.STYLE.BANK = str(tmp_path / "RN50.safetensors")
        obtain_style_bank(cfg)


def test_the_channels_are_those_of_the_stage(cfg, clip_file):
    cfg.MODEL.STYLE.STAGE = "res3"
    mined, loaded = obtain_style_bank(cfg), obtain_style_bank(cfg)
    assert mined.num_channels == loaded.num_channels == 64
    assert mined.class_ids.tolist() == [0, 1, 2, 255, 0, 1] and torch.equal(mined.mean, loaded.mean)
    assert mined.metadata["clip_hash"] == clip_weights_hash(load_clip_state_dict(clip_file))


def test_a_bank_serves_without_clip_where_the_architecture_has_its_channels(cfg):
    obtain_style_bank(cfg)
    cfg.MODEL.CLIP.WEIGHTS = ""
    with expect_error(BankError, style_bank_path(cfg), 256, "MODEL.CLIP.WEIGHTS"):
        obtain_style_bank(cfg)


def test_no_bank_and_no_clip(cfg):
    cfg.MODEL.CLIP.WEIGHTS = ""
    with expect_error(ConfigError, "MODEL.CLIP.WEIGHTS", style_bank_path(cfg), "MODEL.STYLE.BANK"):
        obtain_style_bank(cfg)


def test_scalars_are_in_the_event_file_when_mining_is_done(cfg, monkeypatch):
    closed = []
    close = TensorboardXWriter.close
    monkeypatch.setattr(TensorboardXWriter, "close", lambda writer: closed.append(close(writer)))
    obtain_style_bank(cfg)
    assert len(closed) == 1, "what is not flushed is lost when the process ends"
    events = EventAccumulator(cfg.OUTPUT_DIR).Reload()
    assert [event.step for event in events.Scalars("style_mining/final_loss")] == [0, 1]
    assert [event.value for event in events.Scalars("style_mining/styles")] == [4, 2]
    assert {tag for tag in events.Tags()["scalars"] if "styles_of" in tag} == {
        f"style_mining/styles_of/{name}" for name in (*NAMES, "unlabelled")
    }
