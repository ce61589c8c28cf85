"""Style words that are far from each other, and the command that selects them."""

import re
import shlex

import pytest
import torch
import torch.nn.functional as F

from error_matching import expect_error, line_of_mistake
from famix.clip import PromptEncoder
from famix.engine import load_config
from famix.mining.words import coverage, embed_phrases, read_phrases, select_diverse
from famix.utils.errors import ConfigError
from famix_cli.bank import main
from famix_minitown.rendering.looks import LOOKS, WEATHER
from run_factory import ROOT

VOCABULARY = ROOT / "projects/FAMix/configs/vocabularies/minitown.txt"


def on_circle(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_each_word_is_the_farthest_from_those_before():
    embeddings = on_circle(10, 170, 80, 100, 5)
    selected, distances = select_diverse(embeddings, 4, start=on_circle(0)[0])
    assert selected == [1, 2, 3, 0]  # 170 from 0; 80; 20 (from 80), 10 (from 0)
    gaps = torch.deg2rad(torch.tensor([170.0, 80.0, 20.0, 10.0], dtype=torch.float64))
    assert distances == pytest.approx((1 - gaps.cos()).tolist())


def test_equal_words_are_selected_once():
    embeddings = on_circle(90, 90, 90)
    assert sorted(select_diverse(embeddings, 3, start=on_circle(0)[0])[0]) == [0, 1, 2]


def test_coverage_counts_the_nearest_selected_word_or_none():
    embeddings = on_circle(90, 60, 10)
    mean, largest = coverage(embeddings, [0], start=on_circle(0)[0])
    gaps = 1 - torch.deg2rad(torch.tensor([0.0, 30.0, 10.0], dtype=torch.float64)).cos()
    assert (mean, largest) == pytest.approx((float(gaps.mean()), float(gaps.max())))


def test_no_other_choice_of_two_on_a_line_covers_better_than_twice():
    """Farthest-point sampling covers at most twice as badly, in angles, as the best selection."""
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(12, 3, generator=generator, dtype=torch.float64), dim=1)
    start = embeddings[0]

    def radius(selected):
        return torch.arccos(torch.tensor(1 - coverage(embeddings, selected, start)[1])).item()

    best = min(radius([i, j]) for i in range(12) for j in range(i))
    assert radius(select_diverse(embeddings, 2, start)[0]) <= 2 * best + 1e-9


@pytest.mark.parametrize("count", [0, 4])
def test_count_is_limited_by_the_phrases(count):
    with expect_error(ConfigError, key="count", value=count, remedy="3"):
        select_diverse(on_circle(0, 1, 2), count, on_circle(0)[0])


def test_embeddings_are_means_over_the_prompts_of_the_classes():
    table = {"red car": [1.0, 0, 0], "red sky": [0, 1.0, 0], "car": [0, 0, 1.0], "sky": [0, 1.0, 0]}
    phrases, plain = embed_phrases(lambda texts: torch.tensor([table[text] for text in texts]), ["red"], ["car", "sky"])
    torch.testing.assert_close(phrases, torch.tensor([[1.0, 1, 0]]) / 2**0.5)
    torch.testing.assert_close(plain, torch.tensor([0, 1.0, 1]) / 2**0.5)


# The command


def test_town_vocabulary_has_all_looks_but_weather():
    lines = [line for line in VOCABULARY.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == [phrase for look in LOOKS.values() if look.family != WEATHER for phrase in look.phrases]


def test_words_of_wordnet_are_distinct_phrases():
    phrases = read_phrases(VOCABULARY.with_name("wordnet.txt"), ["white", "Fog"])
    assert len(phrases) > 600 and {"foggy", "milk-white", "time exposure"} <= set(phrases)
    assert "white" not in phrases and all(phrase == phrase.strip() and "#" not in phrase for phrase in phrases)


COMMAND = ("select", "--config-file", "famix://minitown/famix.yaml", "--vocabulary")


def run(capsys, *arguments, vocabulary="famix://vocabularies/minitown.txt"):
    assert main([*COMMAND, str(vocabulary), *arguments]) == 0
    return capsys.readouterr().out


def test_selection_is_diverse_and_covers_better_than_chance(capsys):
    out = run(capsys, "--count", "19", "--exclude", "neon", "Dark")
    key, value = shlex.split(out.splitlines()[-1])
    cfg = load_config("", [key, value])  # as on a command line
    chosen = cfg.STYLE_MINING.STYLES
    assert len(set(chosen)) == 19 and not {"neon", "dark"} & set(chosen)
    distances = [float(value) for value in re.findall(r"^ *\d+ .* (\d\.\d{3})$", out, flags=re.MULTILINE)]
    assert len(distances) == 19 and distances == sorted(distances, reverse=True)
    (mean, largest), (random_mean, random_largest) = re.findall(r"(\d\.\d{3}) +(\d\.\d{3})$", out, flags=re.MULTILINE)
    assert float(mean) < float(random_mean) and float(largest) < float(random_largest)
    phrases = VOCABULARY.read_text().splitlines()
    assert set(chosen) <= set(phrases)


def test_config_has_the_selection_of_its_command(capsys):
    chosen = load_config("famix://minitown/famix_diverse.yaml").STYLE_MINING.STYLES
    assert len(chosen) == len(load_config("famix://minitown/famix.yaml").STYLE_MINING.STYLES), "as many words"
    out = run(capsys, "--count", str(len(chosen)), "--exclude", "hazy")
    assert chosen == load_config("", shlex.split(out.splitlines()[-1])).STYLE_MINING.STYLES


def test_phrases_with_quotes_reach_the_config(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(PromptEncoder, "unknown_words", lambda encoder, texts: [])
    path = tmp_path / "words.txt"
    path.write_text('blue\nblue\'s "pink"\n')
    out = run(capsys, "--count", "2", vocabulary=path)
    assert set(load_config("", shlex.split(out.splitlines()[-1])).STYLE_MINING.STYLES) == {"blue", 'blue\'s "pink"'}


def test_bad_vocabularies_are_explained(tmp_path, capsys):
    def message(content, *arguments):
        path = tmp_path / "words.txt"
        if content is not None:
            path.write_bytes(content)
        return line_of_mistake(capsys, main, *COMMAND, path, *arguments)

    assert "words.txt" in message(None) and "--vocabulary" in message(None)
    assert "--vocabulary" in message(b"\xff\xfe\xff")
    assert "--exclude" in message(b"# only a comment\n\nblue  # excluded\n", "--exclude", "blue")
    assert "--count" in message(b"blue\npink\nblue\n", "--count", "3") and "2" in message(None, "--count", "3")
    assert "--count" in message(b"blue\nzebraic stripes\n", "--count", "2"), "one of them has unknown words"
    assert "--count" not in message(b"zebraic stripes\n", "--count", "1"), "no count would be accepted"


def test_phrases_with_unknown_words_are_skipped(capsys, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("zebraic stripes\nblue\nxylophone\nfoggy\n")
    first, *_, last = run(capsys, "--count", "2", vocabulary=path).splitlines()
    assert "2 of 4 phrases" in first and first.endswith("zebraic stripes, xylophone")
    assert set(load_config("", shlex.split(last)).STYLE_MINING.STYLES) == {"blue", "foggy"}
    assert "skipping" not in run(capsys, "--count", "2")
