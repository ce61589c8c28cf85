import logging
import re
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
from famix.mining import obtain, obtain_style_bank, style_bank_path
from famix.style import StyleBank
from famix.utils.errors import BankError, ConfigError

NAMES = ["road", "sky", "car"]


class TwoBatches(list):
    """In place of MiningBatches."""

    remaining = frozenset({0, 1})


@pytest.fixture
def cfg(tmp_path, clip_file, make_samples, monkeypatch):
    """Two batches of two crops, one optimizer step and short prompts."""
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


@pytest.fixture
def calls(monkeypatch):
    """Names of the calls of mine_bank and check_bank; mining returns a small bank, and every bank fits."""
    names = []

    def mine(miner, load_batches, metadata, partial, output_dir):
        names.append("mine")
        return small_bank()

    monkeypatch.setattr(obtain, "mine_bank", mine)
    monkeypatch.setattr(obtain, "check_bank", lambda *arguments: names.append("check"))
    return names


def small_bank(class_ids=(0, 2), prompt_ids=(0, 2)):
    bank, values = StyleBank({"seed": "1"}), torch.ones(len(class_ids), 3)
    losses = {"initial_loss": torch.full((len(class_ids),), 0.6), "final_loss": torch.full((len(class_ids),), 0.3)}
    bank.add(torch.tensor(class_ids), values, values, {"prompt_id": torch.tensor(prompt_ids), **losses})
    return bank


@pytest.mark.parametrize(
    ("words_by_class", "missing"),
    [
        ({0: "a", 1: "a", 2: "c", 255: ""}, {"b"}),
        ({0: "ab", 1: "ab"}, {"c"}),
        ({0: "a", 1: "b", 2: "c"}, set()),  # each class has one style for three words
        ({0: "abc", 1: "a"}, None),
        ({0: "aba", 1: "c"}, None),
        ({255: ""}, {"a", "b", "c"}),
    ],
)
def test_warns_once_about_few_styles(cfg, monkeypatch, caplog, words_by_class, missing):
    """Prompts are numbered class by class; the last one is that of unlabeled patches."""
    words = cfg.STYLE_MINING.STYLES = ["a", "b", "c"]
    pairs = [(key, key * 3 + words.index(word)) for key, found in words_by_class.items() for word in found]
    pairs += [(255, 9)] if 255 in words_by_class else []
    bank = small_bank(*zip(*pairs, strict=True))
    monkeypatch.setattr(obtain, "mine_bank", lambda *arguments: bank)
    with caplog.at_level(logging.WARNING, logger=obtain.__name__):
        obtain_style_bank(cfg)
    texts = [record.getMessage() for record in caplog.records if record.name == obtain.__name__]
    assert len(texts) == (missing is not None)
    if texts:
        labeled = sum(key != 255 for key, _ in pairs)
        assert f"{labeled} style" in texts[0] and f"{len(words_by_class.keys() - {255})} class" in texts[0]
        assert "STYLE_MINING.IMS_PER_BATCH" in texts[0]
        named = re.search(r"without a style: ([^.]*)\.", texts[0])
        assert set(named[1].split(", ") if named else []) == missing


@pytest.mark.parametrize(("rising", "warns"), [(0, False), (1, False), (2, True)])
def test_warns_if_mining_raised_losses(cfg, monkeypatch, caplog, rising, warns):
    bank = small_bank([0] * 10, [0] * 10)  # one in ten may rise
    bank.annotations["final_loss"][:rising] = 0.7
    cfg.STYLE_MINING.STYLES = ["a"]
    monkeypatch.setattr(obtain, "mine_bank", lambda *arguments: bank)
    with caplog.at_level(logging.WARNING, logger=obtain.__name__):
        obtain_style_bank(cfg)
    texts = [record.getMessage() for record in caplog.records if record.name == obtain.__name__]
    assert len(texts) == warns
    if warns:
        assert "2 of 10 styles" in texts[0] and "STYLE_MINING.LR" in texts[0]


def test_mines_once_then_loads(cfg, calls, caplog):
    path = style_bank_path(cfg)
    assert path == f"{cfg.OUTPUT_DIR}/style_bank.safetensors"
    with caplog.at_level(logging.INFO, logger="famix"):
        mined, loaded = obtain_style_bank(cfg), obtain_style_bank(cfg)
    assert calls == ["mine", "check"] and torch.equal(loaded.mean, mined.mean)
    messages = [record.getMessage() for record in caplog.records if record.name == obtain.__name__]
    assert messages == [
        f"No style bank at {path} yet: mining one",
        f"Saved 2 styles of 2 classes to {path}",
        f"Loaded 2 styles of 2 classes from {path}",
    ]


@pytest.mark.parametrize("finishes", [True, False])
def test_runs_that_share_a_bank_mine_it_once(cfg, calls, monkeypatch, caplog, finishes):
    """The second run waits for the first, and loads its bank, or mines it if the first run dies."""
    path, attempts = Path(style_bank_path(cfg)), []
    path.parent.mkdir()
    first_run = FileLock(path.with_name(f".{path.name}.lock"))  # flock also excludes other descriptors of one process

    def wait(seconds):
        attempts.append(seconds)
        if len(attempts) == 2:
            if finishes:
                small_bank().save(path)
            first_run.close(remove=finishes)

    monkeypatch.setattr(obtain.time, "sleep", wait)
    with caplog.at_level(logging.INFO, logger="famix"):
        obtain_style_bank(cfg)
    assert calls == (["check"] if finishes else ["mine"]) and len(attempts) == 2
    assert caplog.text.count("Another run is mining") == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damaged", [False, True])
def test_rejected_banks_are_not_overwritten(cfg, damaged):
    path = Path(style_bank_path(cfg))
    small_bank().save(path)
    content = path.read_bytes()[: 50 if damaged else None]
    path.write_bytes(content)
    with expect_error(BankError, str(path)):
        obtain_style_bank(cfg)
    assert path.read_bytes() == content


def test_failed_mining_leaves_no_file(cfg, monkeypatch, tmp_path):
    def fail(*arguments):
        raise BankError("styles must be finite")

    monkeypatch.setattr(obtain, "mine_bank", fail)
    with pytest.raises(BankError, match="finite"):
        obtain_style_bank(cfg)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_first_process_decides_and_writes(cfg, calls, monkeypatch):
    """In the second process, which sees a file that the first one did not see."""
    path = Path(style_bank_path(cfg))
    small_bank().save(path)
    before = path.read_bytes()
    of_the_first = iter([False, True, False])  # is there a bank, has it the lock, is there a bank now
    monkeypatch.setattr(comm, "all_gather", lambda seen: [next(of_the_first), seen])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    obtain_style_bank(cfg)
    assert calls == ["mine"] and path.read_bytes() == before


def test_requires_a_known_text_tower(cfg, tmp_path):
    torch.save(tiny_clip().state_dict(), tmp_path / "unmarked.pt")
    cfg.MODEL.CLIP.WEIGHTS = str(tmp_path / "unmarked.pt")
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", "", "open_clip:RN50"):
        obtain_style_bank(cfg)
    banks = {}
    for name in ("RN50", "open_clip:RN50"):
        cfg.MODEL.CLIP.ARCHITECTURE, cfg.MODEL.STYLE.BANK = name, str(tmp_path / f"{name}.safetensors")
        banks[name] = obtain_style_bank(cfg)
    assert not torch.equal(banks["RN50"].mean, banks["open_clip:RN50"].mean), "the embeddings of the prompts differ"
    with expect_error(BankError, str(tmp_path / "RN50.safetensors"), remedy="MODEL.CLIP.ARCHITECTURE"):
        cfg.MODEL.STYLE.BANK = str(tmp_path / "RN50.safetensors")
        obtain_style_bank(cfg)


def test_mines_at_the_stage_and_writes_scalars(cfg, clip_file, monkeypatch):
    closed, close = [], TensorboardXWriter.close
    monkeypatch.setattr(TensorboardXWriter, "close", lambda writer: closed.append(close(writer)))
    cfg.MODEL.STYLE.STAGE = "res3"
    mined, loaded = obtain_style_bank(cfg), obtain_style_bank(cfg)
    assert mined.num_channels == loaded.num_channels == 64
    assert mined.class_ids.tolist() == [0, 1, 2, 255, 0, 1] and torch.equal(mined.mean, loaded.mean)
    assert mined.metadata["clip_hash"] == clip_weights_hash(load_clip_state_dict(clip_file))
    assert len(closed) == 1, "scalars that are not flushed would be lost"
    events = EventAccumulator(cfg.OUTPUT_DIR).Reload()
    assert [event.step for event in events.Scalars("style_mining/final_loss")] == [0, 1]
    assert [event.value for event in events.Scalars("style_mining/styles")] == [4, 2]
    assert {tag for tag in events.Tags()["scalars"] if "styles_of" in tag} == {
        f"style_mining/styles_of/{name}" for name in (*NAMES, "unlabelled")
    }


def test_banks_of_signed_features_are_rejected(cfg):
    path, bank = style_bank_path(cfg), obtain_style_bank(cfg)
    bank.metadata["rectified"] = "false"
    bank.save(path)
    for weights in (cfg.MODEL.CLIP.WEIGHTS, ""):
        cfg.MODEL.CLIP.WEIGHTS = weights
        with expect_error(BankError, path, "signed", "MODEL.CLIP.WEIGHTS"):
            obtain_style_bank(cfg)


def test_without_clip_the_bank_must_exist_and_fit(cfg):
    weights, cfg.MODEL.CLIP.WEIGHTS = cfg.MODEL.CLIP.WEIGHTS, ""
    with expect_error(ConfigError, "MODEL.CLIP.WEIGHTS", style_bank_path(cfg), "MODEL.STYLE.BANK"):
        obtain_style_bank(cfg)
    cfg.MODEL.CLIP.WEIGHTS = weights
    obtain_style_bank(cfg)
    cfg.MODEL.CLIP.WEIGHTS = ""
    with expect_error(BankError, style_bank_path(cfg), 256, "MODEL.CLIP.WEIGHTS"):
        obtain_style_bank(cfg)
