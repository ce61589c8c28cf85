import logging
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

from clip_factory import tiny_clip
from error_matching import expect_error
from famix.clip import CLIPResNet, PromptEncoder, load_clip_state_dict
from famix.engine import load_config
from famix.mining import MinedBatch, MiningSettings, build_miner, mine, mine_bank
from famix.mining.mine import batches_per_group
from famix.mining.partial_results import PartialResults
from famix.utils.errors import BankError
from famix.utils.plugins import load_plugins

LABELS = [[[0, 1, 1], [255, 0, 2]], [[1, 1, 1], [1, 1, 1]], [[2, 0, 0], [0, 0, 0]], [[255, 255, 0], [0, 0, 1]]]


class NumberedMiner:
    """A miner without a network: one style per sample, whose values are the number of the batch."""

    def __init__(self, group=1):
        self.group = group
        self.groups = []

    def mine_batches(self, batches):
        self.groups.append([index for index, _ in batches])
        return [self.mine(index, len(samples)) for index, samples in batches]

    def mine(self, index, number):
        values = torch.full((number,), float(index))
        ids = torch.arange(number)
        return MinedBatch(index, ids, values[:, None], values[:, None] + 1, ids + 50, values / 10, values / 20)


class Batches(list):
    """In place of MiningBatches: numbered batches, all of which are to be mined."""

    @property
    def remaining(self):
        return {index for index, _ in self}


def mine_all(miner, batches, metadata=None, **options):
    return mine_bank(miner, lambda group, finished: Batches(batches), metadata or {}, **options)


class Recorder(EventWriter):
    def __init__(self):
        self.seen = []

    def write(self):
        storage = get_event_storage()
        self.seen.append((storage.iter, {k: v for k, (v, i) in storage.latest().items() if i == storage.iter}))


@pytest.mark.parametrize("split", [[[0, 1, 2, 3]], [[0, 2], [1, 3]], [[2, 3], [0, 1]], [[0, 1, 2, 3], []]], ids=str)
def test_bank_is_the_same_for_any_number_of_processes(make_miner, make_samples, monkeypatch, split):
    batches = [(index, make_samples(labels, seed=index)) for index, labels in enumerate(LABELS)]
    miner, gathered = make_miner(), []
    expected = mine_all(miner, batches, {"seed": "1"})
    for share in split:
        monkeypatch.setattr(comm, "all_gather", lambda data: gathered.append(data) or [data])
        try:
            mine_all(miner, [batches[index] for index in share])
        except BankError:
            assert not share, "a process without batches finds nothing alone"
    monkeypatch.setattr(comm, "all_gather", lambda data: gathered)
    for share in split:
        bank = mine_all(miner, [batches[index] for index in share], {"seed": "1"})
        assert bank.metadata == {"seed": "1"}
        for name in ("class_ids", "mean", "std"):
            assert torch.equal(getattr(bank, name), getattr(expected, name))
        assert all(torch.equal(bank.annotations[name], values) for name, values in expected.annotations.items())


def test_styles_are_in_the_order_of_the_batches():
    bank = mine_all(NumberedMiner(), [(6, ["a", "b"]), (2, ["a"]), (4, ["a", "b", "c"])], {"stage": "res2"})
    assert bank.annotations["batch_id"].tolist() == [2, 4, 4, 4, 6, 6]
    assert bank.class_ids.tolist() == [0, 0, 1, 2, 0, 1]
    assert bank.mean[:, 0].tolist() == [2, 4, 4, 4, 6, 6] and bank.std[:, 0].tolist() == [3, 5, 5, 5, 7, 7]
    assert bank.annotations["prompt_id"].tolist() == [50, 50, 51, 52, 50, 51]
    assert bank.annotations["initial_loss"].tolist() == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.6, 0.6])
    assert bank.annotations["final_loss"].tolist() == pytest.approx([0.1, 0.2, 0.2, 0.2, 0.3, 0.3])
    assert bank.metadata == {"stage": "res2"}


@pytest.mark.parametrize(
    ("images", "patches", "classes", "values", "expected"),
    [
        (16, 9, 19, 256 * 56 * 56, 1),  # RN50: a batch is enough work
        (4, 9, 19, 64 * 16 * 16, 6),  # the miniature town: 20 styles at most
        (1, 2, 19, 64 * 16 * 16, 64),  # two patches give two styles at most
        (16, 9, 19, 2**30, 1),
    ],
)
def test_small_networks_get_large_groups(images: int, patches: int, classes: int, values: int, expected: int) -> None:
    assert batches_per_group(images, patches, classes, values) == expected


def test_groups_are_fixed_and_finished_batches_are_read(tmp_path):
    """Batches 0 to 3 of nine are finished, in groups of three: 3, 4 and 5 are mined together."""
    partial, asked, miner = PartialResults(tmp_path / "bank", {}), [], NumberedMiner(group=3)
    for index in range(4):
        partial.write(miner.mine(index, 1))

    def load(group, finished):
        asked.append((group, finished))
        return Batches((n, ["a", "b"]) for n in (3, 4, 5, 6, 8))

    bank = mine_bank(miner, load, {}, partial)
    assert asked == [(3, {0, 1, 2, 3})] and miner.groups == [[3, 4, 5], [6, 8]]
    assert bank.annotations["batch_id"].tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 8, 8]
    assert partial.indices() == [*range(7), 8]


def test_rejects_a_pass_without_batches():
    with expect_error(BankError, "Mining", remedy="STYLE_MINING.IMS_PER_BATCH"):
        mine_all(NumberedMiner(), [])


@pytest.mark.parametrize("full", [False, True])
def test_non_finite_styles_stop_the_pass_and_save_the_samples(tmp_path, monkeypatch, full):
    class Diverging(NumberedMiner):
        def mine(self, index, number):
            batch = super().mine(index, number)
            batch.std[1:] = float("nan") if index == 3 else 1.0
            return batch

    folder, partial = tmp_path / "run", PartialResults(tmp_path / "bank", {})
    folder.touch() if full else folder.mkdir()
    monkeypatch.setattr(mine, "TensorboardXWriter", lambda folder: Recorder())
    batches = [(n, [{"file_name": f"{n}{place}.png", "image": torch.ones(1)} for place in "ab"]) for n in range(5)]
    with expect_error(BankError, "styles", [1], "STYLE_MINING.LR") as error:
        mine_all(Diverging(2), batches, partial=partial, output_dir=str(folder))
    says = "cannot be written" if full else "are saved in"
    assert all(part in str(error.value) for part in ("batch 3", "3a.png, 3b.png", "000003.pth", says))
    assert partial.indices() == [0, 1, 2], "earlier batches are saved"
    if not full:
        saved = torch.load(folder / "not_finite_mining_000003.pth", weights_only=True)
        assert [sample["file_name"] for sample in saved["samples"]] == ["3a.png", "3b.png"] and saved["batch"] == 3


def test_scalars_go_to_the_event_file(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(mine, "TensorboardXWriter", lambda folder: recorder)
    mine_all(NumberedMiner(), [(4, ["a"]), (8, ["a", "b"])], {"class_names": '["road"]'}, output_dir="run")
    names = ("style_mining/initial_loss", "style_mining/final_loss", "style_mining/styles")
    assert recorder.seen == [
        (0, dict(zip(names, (pytest.approx(0.4), pytest.approx(0.2), 1), strict=True))),
        (1, dict(zip(names, (pytest.approx(0.8), pytest.approx(0.4), 2), strict=True))),
        (2, {"style_mining/styles_of/road": 2, "style_mining/styles_of/1": 1}),
    ]


def test_progress_is_logged_at_intervals(caplog, monkeypatch):
    """The clock shows 0 at the start; batches are done after 8, 16, 20 and 24 seconds. Losses are means over all styles."""
    clock = iter([0.0, 8.0, 16.0, 20.0, 24.0])
    monkeypatch.setattr(mine, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with caplog.at_level(logging.INFO, logger="famix"):
        mine_all(NumberedMiner(), [(index, ["a", "b"]) for index in range(1, 5)])
    assert [record.getMessage() for record in caplog.records] == [
        "Mining: batch 1/4, 2 styles, cosine loss 0.100 -> 0.050, 8.00 s/batch, ETA 0:00:24",
        "Mining: batch 3/4, 6 styles, cosine loss 0.200 -> 0.100, 6.67 s/batch, ETA 0:00:07",
        "Mining: batch 4/4, 8 styles, cosine loss 0.250 -> 0.125, 6.00 s/batch, ETA 0:00:00",
    ]


@pytest.fixture(scope="module")
def clip_state_dict():
    return tiny_clip().state_dict()


@pytest.fixture
def cfg():
    cfg = load_config("")
    cfg.MODEL.DEVICE = "cpu"
    cfg.STYLE_MINING.TEMPLATES = ["a {}.", "the {}."]
    return cfg


def test_build_miner_reads_the_config(cfg, clip_state_dict):
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    cfg.MODEL.STYLE.STAGE, cfg.MODEL.STYLE.GRID = "res3", [2, 4]
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 11
    mining = cfg.STYLE_MINING
    mining.STEPS, mining.LR, mining.MOMENTUM, mining.WEIGHT_DECAY, mining.SEED = 7, 0.5, 0.25, 0.125, 9
    mining.STYLES = ["Foggy style"]
    miner = build_miner(cfg, clip_state_dict, ("road", "sky"))
    assert miner.settings == MiningSettings(
        pixel_mean=(1.0, 2.0, 3.0), pixel_std=(4.0, 5.0, 6.0), stage="res3", grid=(2, 4), ignore_label=11, steps=7, lr=0.5,
        momentum=0.25, weight_decay=0.125, seed=9,
    )  # fmt: skip
    assert miner.pool_size == 8
    assert miner.prompts.prompts == ["Foggy style road", "Foggy style sky", "photo"]
    texts = ["Foggy style sky", "photo"]
    expected = PromptEncoder(clip_state_dict)(texts, templates=["a {}.", "the {}."])
    torch.testing.assert_close(miner.encode_prompts(texts), expected)
    images = torch.rand(1, 3, 64, 64)
    reference = CLIPResNet.from_state_dict(clip_state_dict).eval()
    with torch.no_grad():
        torch.testing.assert_close(miner.clip.encode_image(images), reference.encode_image(images))
    cfg.STYLE_MINING.POOL_SIZE, cfg.STYLE_MINING.DTYPE = 9, "bfloat16"
    other = build_miner(cfg, clip_state_dict, ("road",))
    assert (other.pool_size, other.settings.dtype) == (9, torch.bfloat16)


def test_unknown_words_are_reported_by_their_place(cfg, caplog):
    """The town's CLIP knows the words of its captions only."""
    load_plugins()
    weights = load_clip_state_dict("minitown")

    def warnings(styles, class_names, templates):
        caplog.clear()
        cfg.STYLE_MINING.STYLES, cfg.STYLE_MINING.TEMPLATES = styles, templates
        build_miner(cfg, weights, class_names)
        return [record.getMessage() for record in caplog.records]

    assert warnings(["foggy", "night,"], ["road", "sky"], ["a photo of the {}."]) == []
    (text,) = warnings(["zebra", "foggy"], ["road"], ["a {}."])
    assert "zebra" in text and "STYLE_MINING.STYLES" in text and "TEMPLATES" not in text and "foggy" not in text
    (text,) = warnings(["foggy"], ["road", "xylophone"], ["a {}."])
    assert "xylophone" in text and "definition" in text and "STYLE_MINING" not in text
    (text,) = warnings(["foggy"], ["road"], [])  # OpenAI's 80 templates
    assert "sculpture" in text and len(text) < 400 and "STYLE_MINING.STYLES" not in text
    suggested = yaml.safe_load(re.search(r'STYLE_MINING.TEMPLATES.*"(.*)"', text)[1])
    assert len(suggested) > 2 and warnings(["foggy"], ["road"], suggested) == []
    (text,) = warnings(["foggy"], ["road"], ["a {} in a game."])
    assert "game" in text
    assert len(warnings(["zebra"], ["xylophone"], ["a {} in a game."])) == 3


def test_embeddings_do_not_depend_on_texts_encoded_before(clip_state_dict):
    """Otherwise rounding would give a resumed pass a different bank."""
    cfg = load_config("")
    cfg.MODEL.DEVICE = "cpu"
    names = [f"class {number}" for number in range(6)]
    texts = [f"Foggy style {name}" for name in names]

    def encode(*parts):
        miner = build_miner(cfg, clip_state_dict, names)
        return torch.cat([miner.encode_prompts(part) for part in parts])

    whole = encode(texts)
    assert torch.equal(encode(texts[-3:]), whole[-3:])
    assert torch.equal(encode(texts[:2], texts[2:]), whole)
