"""Reading configs: every mistake in a file or on the command line has its message."""

import pytest
import yaml

from famix.engine import load_config
from famix.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write_config(text, name="config.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_config


def test_the_command_line_overrides_the_file_which_overrides_its_base(write):
    write("SOLVER: {BASE_LR: 0.3, MAX_ITER: 30}\nSEED: 3", "base.yaml")
    cfg = load_config(write("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 20}\nVERSION: 2"), ["SEED", "1"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.3, 20, 1)


def test_defaults_without_a_file():
    cfg = load_config("")
    assert (cfg.MODEL.CLIP.OUTPUT_STRIDE, cfg.MODEL.STYLE.GRID, cfg.STYLE_MINING.STEPS) == (16, [3, 3], 100)


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("SOLVER.BASELR", r"Did you mean .*SOLVER\.BASE_LR"),
        ("MODEL.STYLES.GRID", r"Did you mean .*MODEL\.STYLE\.GRID"),
        ("QWERTZ", "See the key table in projects/FAMix/README"),
    ],
)
def test_unknown_keys(write, key, suggestion):
    message = rf"unknown config key {key}\. {suggestion}"
    with pytest.raises(ConfigError, match=message):
        load_config("", [key, "1"])
    entry = 1
    for part in reversed(key.split(".")):
        entry = {part: entry}
    if key == "MODEL.STYLES.GRID":  # of a file, the first part that does not exist is named
        message = r"unknown config key MODEL\.STYLES"
    with pytest.raises(ConfigError, match=message):
        load_config(write(yaml.safe_dump({**entry, "VERSION": 2})))


@pytest.mark.parametrize("key", ["SOLVER", "SOLVER.BASE_LR.FACTOR"])
def test_keys_that_hold_no_value(key):
    with pytest.raises(ConfigError, match=rf"unknown config key {key}. (Did you mean|See)"):
        load_config("", [key, "1"])


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml.* does not exist"):
        load_config(str(tmp_path / "none.yaml"))


def test_a_missing_base(write):
    with pytest.raises(ConfigError, match=r"config file .*none\.yaml does not exist"):
        load_config(write("_BASE_: none.yaml"))


@pytest.mark.parametrize("text", ["SOLVER: {BASE_LR: 0.1", "SOLVER:\n\tBASE_LR: 1", "a: b: c"])
def test_malformed_yaml(write, text):
    with pytest.raises(ConfigError, match=r"(?s)config\.yaml is not valid YAML: .*line"):
        load_config(write(text))


@pytest.mark.parametrize("text", ["", "- SOLVER", "just words"])
def test_yaml_without_settings(write, text):
    with pytest.raises(ConfigError, match=r"config\.yaml does not hold settings in the form KEY: value"):
        load_config(write(text))


def test_yaml_that_would_run_code_is_refused_and_runs_none(write, tmp_path):
    trace = tmp_path / "trace"
    text = f"SEED: !!python/object/apply:os.mkdir ['{trace}']"
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(write(text))
    assert not trace.exists()
    yaml.unsafe_load(text)
    assert trace.exists(), "the attack itself does not work, so that the test proves nothing"


@pytest.mark.parametrize(
    ("opts", "key"),
    [(("SOLVER.BASE_LR", "fast"), r"SOLVER\.BASE_LR"), (("MODEL.STYLE.GRID", "3"), r"MODEL\.STYLE\.GRID")],
)
def test_values_of_another_type(write, opts, key):
    with pytest.raises(ConfigError, match=rf"the config cannot be read: Type mismatch .*{key}"):
        load_config("", opts)
    sections, _, name = opts[0].rpartition(".")
    entry = {name: int(opts[1]) if opts[1].isdigit() else opts[1]}
    for part in reversed(sections.split(".")):
        entry = {part: entry}
    with pytest.raises(ConfigError, match=rf"the config cannot be read: Type mismatch .*{key}"):
        load_config(write(yaml.safe_dump({**entry, "VERSION": 2})))


def test_a_key_without_value():
    with pytest.raises(ConfigError, match="the config cannot be read: Override list has odd length"):
        load_config("", ["SOLVER.BASE_LR"])
