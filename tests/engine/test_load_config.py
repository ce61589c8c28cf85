"""Reading configs: every mistake in a file or on the command line has its message."""

import pytest
import yaml

from error_matching import expect_error
from famix.config import PATH_KEYS, find_node
from famix.engine import load_config
from famix.utils.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write_config(text, name="config.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_config


def in_yaml(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return yaml.safe_dump({"VERSION": 2, **value})


def test_options_override_file_and_file_overrides_base(write):
    write("SOLVER: {BASE_LR: 0.3, MAX_ITER: 30}\nSEED: 3", "base.yaml")
    cfg = load_config(write("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 20}\nVERSION: 2"), ["SEED", "1"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.3, 20, 1)
    cfg = load_config("")
    assert (cfg.MODEL.CLIP.OUTPUT_STRIDE, cfg.MODEL.STYLE.GRID, cfg.STYLE_MINING.STEPS) == (16, [3, 3], 100)


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("SOLVER.BASELR", "SOLVER.BASE_LR"),
        ("MODEL.STYLES.GRID", "MODEL.STYLE.GRID"),
        ("QWERTZ", "docs/CONFIG.md"),
        ("SOLVER", "SOLVER.BASE_LR"),
        ("SOLVER.BASE_LR.FACTOR", "SOLVER.BASE_LR"),
    ],
)
def test_unknown_keys(write, key, suggestion):
    for load in (lambda: load_config("", [key, "1"]), lambda: load_config(write(in_yaml(key, 1)))):
        with expect_error(ConfigError, key, remedy="" if key == "SOLVER" else suggestion):
            load()


def test_missing_files(write, tmp_path):
    for file in (str(tmp_path / "none.yaml"), write("_BASE_: none.yaml")):
        with expect_error(ConfigError, "not found", tmp_path / "none.yaml", "Check the path"):
            load_config(file)


@pytest.mark.parametrize(
    ("text", "value", "remedy"),
    [(text, "YAML", "line") for text in ("SOLVER: {BASE_LR: 0.1", "SOLVER:\n\tBASE_LR: 1", "a: b: c")]
    + [(text, None, "KEY: value") for text in ("", "- SOLVER", "just words")],
)
def test_malformed_yaml(write, text, value, remedy):
    with expect_error(ConfigError, "config.yaml", value, remedy):
        load_config(write(text))


def test_malformed_yaml_names_the_line_and_the_expected_character(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write("SEED: 1\nSOLVER\nVERSION: 2"))
    message = str(caught.value)
    assert "line 2" in message and "expected ':'" in message and "unicode string" not in message


def test_yaml_with_code_is_refused(write, tmp_path):
    trace = tmp_path / "trace"
    text = f"SEED: !!python/object/apply:os.mkdir ['{trace}']"
    with expect_error(ConfigError, key="config.yaml", value="YAML", remedy="constructor"):
        load_config(write(text))
    assert not trace.exists()
    yaml.unsafe_load(text)
    assert trace.exists(), "the attack itself does not work, so that the test proves nothing"


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("SOLVER.BASE_LR", 1, "1.0"),
        ("SOLVER.BASE_LR", "fast", "0.001"),
        ("SOLVER.BASE_LR", True, "0.001"),
        ("SOLVER.BASE_LR", [0.1], "0.001"),
        ("SOLVER.MAX_ITER", 100.0, "100"),
        ("SOLVER.MAX_ITER", 0.5, "40000"),
        ("SOLVER.MAX_ITER", False, "40000"),
        ("SOLVER.AMP.ENABLED", 1, "True"),
        ("SOLVER.AMP.ENABLED", "off", "False"),
        ("MODEL.STYLE.MIX", "yes please", "True"),
        ("MODEL.STYLE.GRID", 3, "[3, 3]"),
        ("MODEL.STYLE.GRID", "3x3", "['3x3']"),
        ("MODEL.STYLE.GRID", "[2, 2", "['2', '2']"),
        ("DATASETS.TEST", "cityscapes_val", "('cityscapes_val',)"),
        ("DATASETS.TEST", "(acdc_night_val, cityscapes_val)", "('acdc_night_val', 'cityscapes_val')"),
        ("MODEL.CLIP.TRAINABLE", "layer4", "['layer4']"),
        ("MODEL.CLIP.WEIGHTS", ["RN50"], "RN50"),
        ("MODEL.DEVICE", 0, "\"'0'\""),
        ("SOLVER.WEIGHT_DECAY_BIAS", "none", "None"),
        ("MODEL.PIXEL_MEAN", ["a", 1.0, 2.0], "MODEL.PIXEL_MEAN"),  # an entry of a list
        ("SOLVER.STEPS", [100, "200"], "SOLVER.STEPS"),
        ("INPUT.CROP.SIZE", [64, None], "INPUT.CROP.SIZE"),
    ],
)
def test_values_of_wrong_type(write, key, value, remedy):
    odd = [entry for entry in value if not isinstance(entry, int | float)] if key in remedy else [value]
    with expect_error(ConfigError, key, odd[0], remedy):
        load_config("", [key, str(value)])
    with expect_error(ConfigError, key, odd[0], remedy) as caught:
        load_config(write(in_yaml(key, value)))
    assert "config.yaml" in str(caught.value), "several files may be merged"
    assert "class '" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "quoted", "remedy"),
    [
        *((key, None, "null", "") for key in ("OUTPUT_DIR", "SEED", "DATASETS.TEST", "SOLVER.BASE_LR")),
        *((key, 3, 3, "section") for key in ("SOLVER", "MODEL.CLIP")),
        ("VERSION", 1, 1, "VERSION"),
    ],
)
def test_wrong_values_in_files(write, key, value, quoted, remedy):
    with expect_error(ConfigError, key, quoted, remedy):
        load_config(write(in_yaml(key, value)))


def test_equivalent_forms_of_yaml_and_python(write):
    cfg = load_config(write("SOLVER: {BASE_LR: 1e-3}\nDATASETS: {TEST: [a, b]}\nMODEL: {STYLE: {GRID: '(2, 2)'}}"))
    assert (cfg.SOLVER.BASE_LR, cfg.DATASETS.TEST, cfg.MODEL.STYLE.GRID) == (0.001, ("a", "b"), [2, 2])
    assert load_config("", ["SOLVER.WEIGHT_DECAY_BIAS", "0.1"]).SOLVER.WEIGHT_DECAY_BIAS == 0.1
    assert load_config("", ["MODEL.CLIP.WEIGHTS", ""]).MODEL.CLIP.WEIGHTS == ""


@pytest.mark.parametrize(
    ("opts", "key", "value", "remedy"),
    [
        (["MODEL.DEVICE=cpu", "SEED=1"], "MODEL.DEVICE", "MODEL.DEVICE=cpu", "MODEL.DEVICE cpu"),
        (["SEED", "1", "MODEL.DEVICE:cpu"], "MODEL.DEVICE", "MODEL.DEVICE:cpu", "MODEL.DEVICE cpu"),
        (["MODEL.DEVICE:", "cpu"], "MODEL.DEVICE", "MODEL.DEVICE:", "MODEL.DEVICE cpu"),
        (["MODEL.DEVICE", "=", "cpu"], "MODEL.DEVICE", "=", "MODEL.DEVICE"),
        (["--MODEL.DEVICE", "cpu"], "MODEL.DEVICE", "--MODEL.DEVICE", "MODEL.DEVICE"),
        (["SEED", "1", "--MODEL.DEVICE=cpu"], "MODEL.DEVICE", "--MODEL.DEVICE=cpu", "MODEL.DEVICE"),
        (["SEED", "1", "--resume"], "options", "--resume", "Move"),
        (["MODEL.DEVICE"], "MODEL.DEVICE", None, "MODEL.DEVICE cuda"),
        (["SEED", "MODEL.DEVICE", "cpu"], "SEED", "MODEL.DEVICE", "SEED"),
        (["DATASETS.TEST", "acdc_val", "cityscapes_val"], "DATASETS.TEST", "cityscapes_val", "('first', 'second')"),
        (["model.device", "cpu"], "model.device", None, "MODEL.DEVICE"),
    ],
)
def test_malformed_pairs(opts, key, value, remedy):
    with expect_error(ConfigError, key, value, remedy):
        load_config("", opts)


# Paths


def as_value(key, path):
    return [path] if key == "DATASETS.FILES" else path


@pytest.mark.parametrize("key", PATH_KEYS)
def test_paths_expand_home_and_variables(key, write, tmp_path, monkeypatch):
    for name, value in {"HOME": str(tmp_path), "STORE": str(tmp_path), "HIDDEN": "$STORE"}.items():
        monkeypatch.setenv(name, value)
    for written in ("~/there", "$STORE/there", "${STORE}/there", "$HIDDEN/there"):
        value = as_value(key, written)
        for cfg in (load_config(write(in_yaml(key, value))), load_config("", [key, str(value)])):
            node, name = find_node(cfg, key)
            assert node[name] == as_value(key, str(tmp_path / "there"))


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize(
    ("written", "remedy"),
    [("$UNSET/there", "UNSET"), ("${UNSET}/there", "UNSET"), ("~nobody_here/there", "without"),
     ("http://localhost:1/there", "Copy"), ("detectron2://there.pkl", "Copy")],
)  # fmt: skip
def test_invalid_paths(key, written, remedy, monkeypatch):
    monkeypatch.delenv("UNSET", raising=False)
    with expect_error(ConfigError, key, written, remedy):
        load_config("", [key, str(as_value(key, written))])


def test_file_name_with_dollar_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cash$UNSET.pth").touch()
    assert load_config("", ["MODEL.WEIGHTS", "cash$UNSET.pth"]).MODEL.WEIGHTS == "cash$UNSET.pth"


def test_config_files_and_bases_expand_home_and_variables(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STORE", str(tmp_path))
    write("SEED: 3", "base.yaml")
    write("_BASE_: ['~/base.yaml', $STORE/base.yaml]\nSOLVER: {MAX_ITER: 7}")
    for name in ("~/config.yaml", "$STORE/config.yaml"):
        cfg = load_config(name)
        assert (cfg.SEED, cfg.SOLVER.MAX_ITER) == (3, 7)
    with expect_error(ConfigError, "--config-file", "$UNSET/config.yaml", "UNSET"):
        load_config("$UNSET/config.yaml")


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "detectron2", "file"])
def test_urls_are_not_fetched(scheme, write, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    address = f"{scheme}://localhost:1/base.yaml"
    write(f"_BASE_: {address}", "middle.yaml")
    for text in (f"_BASE_: {address}", f"_BASE_: [{address}]", "_BASE_: middle.yaml"):
        with expect_error(ConfigError, "_BASE_", address, "Copy"):
            load_config(write(text))
    with expect_error(ConfigError, "--config-file", address, "Copy"):
        load_config(address)


@pytest.mark.parametrize("base", ["null", "3", "{a: b}", "[[a]]"])
def test_base_must_be_path(base, write):
    with expect_error(ConfigError, "_BASE_"):
        load_config(write(f"_BASE_: {base}"))
