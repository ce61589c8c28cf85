"""The command that inspects banks, and its page."""

import json
import re
from pathlib import Path

import pytest
import torch

from clip_factory import save_tiny_clip
from error_matching import explains
from famix.clip import clip_weights_hash, load_clip_state_dict
from famix.reports.bank import class_groups, group_statistics
from famix.reports.bank_page import BankView, principal_plane, render_bank
from famix.style import StyleBank
from reports.banks import make_bank, measured_bank
from reports.pages import assert_sound
from run_factory import load_tool

Output = pytest.CaptureFixture[str]


@pytest.fixture
def bank_file(tmp_path: Path) -> Path:
    make_bank(24).save(tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


def run(*arguments: object) -> int:
    """Run the command; returns its exit status."""
    try:
        load_tool("inspect_bank").main([str(word) for word in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_show_prints_tables_and_metadata(bank_file: Path, tmp_path: Path, capsys: Output) -> None:
    assert run(bank_file) == 0
    text, bank = capsys.readouterr().out, StyleBank.load(bank_file)
    road = group_statistics(bank, class_groups(bank)["road"])
    for pattern in (
        "road +8 +{loss before:.3f} +{after:.3f} +{spread:.2f} +0$".format(**road),
        "foggy +12 ",
        "class names +road, sky, traffic sign$",
    ):
        assert re.search(f"^{pattern}", text, flags=re.MULTILINE)
    assert "problem" not in text
    for column in ("loss before", "after", "spread", "negative"):
        assert re.search(rf"^{column}: .{{10}}", text, flags=re.MULTILINE), "columns are explained"
    assert "photo: " not in text
    for bank, words in (
        (make_bank(clip_hash=None), "problem: its metadata lacks 'clip_hash'"),
        (make_bank(0), "no styles"),
        (
            make_bank(class_names=["road", "sky"], prompts=["foggy road", "photo"] * 4),
            "photo: prompt of patches without",
        ),
        (make_bank(rectified="true"), "rectified: whether"),
    ):
        bank.save(tmp_path / "b.safetensors")
        assert run(tmp_path / "b.safetensors") == 0
        assert words in capsys.readouterr().out


def test_page_with_all_options(bank_file: Path, tmp_path: Path, capsys: Output) -> None:
    clip = save_tiny_clip(tmp_path / "clip.pt")
    bank = make_bank(24, channels=32, clip_hash=clip_weights_hash(load_clip_state_dict(str(clip))))
    for file in (bank_file, tmp_path / "own.safetensors"):
        bank.save(file)
    arguments = ["--clip", clip, "--own", tmp_path / "own.safetensors", "--most-styles", 10]
    assert run(bank_file, "--html", tmp_path / "pages/bank.html", *arguments) == 0
    html, printed = (tmp_path / "pages/bank.html").read_text(), capsys.readouterr().out
    page = assert_sound(html)
    assert html.count("<circle") == 24 + 24, "styles and source patches"
    assert page.column("styles") == {"road": "8", "sky": "8", "traffic sign": "8"}
    assert page.column("styles", 1) == {"foggy": "12", "night": "12"}
    for column in ("from source", "recognized", "most often nearest"):
        assert re.search(rf"^{column}: .{{10}}", printed, flags=re.MULTILINE)
    for name, distance in page.column("from source").items():
        assert re.search(rf"^{name} .* {distance} ", printed, flags=re.MULTILINE)
    for words in ("nearest foggy", "distance from the source", "loss 0.80 → 0.20"):
        assert words in html


def test_map_changes_its_colors_without_script() -> None:
    html = render_bank(BankView("b", make_bank(24)))
    for choice in ("by-class", "by-prompt"):
        assert f'id="{choice}"' in html and f'for="{choice}"' in html
    assert 'id="by-prompt" checked' in html
    dots = re.findall(r'<circle class="c(\d) p(\d)"[^>]*><title>style (\d+): (\w+) ([a-z ]+);', html)
    assert len(dots) == 24
    colors = dict(re.findall(r"^\.([cp]\d) \{ --\w+: (.*?); \}", html, flags=re.MULTILINE))
    assert len(set(colors.values())) == len(colors) == 5, "no color of a prompt is that of a class"
    words, classes = {(place, word) for _, place, _, word, _ in dots}, {(place, name) for place, *_, name in dots}
    assert (len(words), len(classes)) == (2, 3)
    for place, word in words:
        assert f'style="background:{colors[f"p{place}"]}"></i>{word}<' in html


def test_page_of_measured_and_large_banks() -> None:
    html = render_bank(BankView("b", measured_bank(0, 0, 255, stage="res2", measured="x")))
    page = assert_sound(html)
    assert page.tables[0][0] == ["class", "styles", "spread", "negative"]
    assert len(page.tables) == 1 and 'id="by-prompt"' not in html
    assert set(page.column("styles")) == {"0", "unlabelled"}
    html = render_bank(BankView("b", measured_bank(*[0] * 5000, channels=2)))
    assert html.count("<circle") == 4000 and "4000 of 5000 styles are drawn" in html


def test_page_escapes_names() -> None:
    evil = "<script>alert(1)</script>"
    bank = make_bank(class_names=["<b>", "sky", "x"], source=[evil], prompts=[f"{evil} <b>"] * 7)
    html = render_bank(BankView("<i>", bank))
    assert assert_sound(html).text.count(evil) > 12
    assert "<b>" not in html and evil not in html


def test_merge_and_filter_commands(bank_file: Path, tmp_path: Path, capsys: Output) -> None:
    metadata = {key: value for key, value in make_bank().metadata.items() if key != "prompts"}
    measured_bank(0, **metadata).save(tmp_path / "measured.safetensors")
    merged, filtered = tmp_path / "merged.safetensors", tmp_path / "filtered.safetensors"
    assert run("merge", bank_file, tmp_path / "measured.safetensors", "--output", merged) == 0
    assert len(StyleBank.load(merged)) == 25 and not StyleBank.load(merged).annotations
    assert "without batch_id, final_loss, initial_loss, prompt_id" in capsys.readouterr().out
    options = ["--class", "sky", "--prompt", "night", "--max-loss", "0.35"]
    assert run("filter", bank_file, *options, "--output", filtered) == 0
    kept = StyleBank.load(filtered)
    assert kept.counts() == {1: 3} and json.loads(kept.metadata["history"])[0]["max_loss"] == 0.35
    assert "wrote 3 of 24 styles" in capsys.readouterr().out


def test_validate_command(bank_file: Path, tmp_path: Path, capsys: Output) -> None:
    assert run("validate", bank_file) == 0
    assert capsys.readouterr().out == f"{bank_file}: sound\n"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(bank_file.read_bytes()[:-7])
    assert run("validate", bank_file, broken, tmp_path / "none.safetensors") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": sound") and "not found" in lines[2]
    explains(lines[1], str(broken), remedy="mine the bank again")
    assert run("validate", bank_file, "--clip", save_tiny_clip(tmp_path / "clip.pt")) == 1
    assert "clip_hash" in capsys.readouterr().out


def test_principal_plane_has_the_largest_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(500, 4, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 3.0]) + 7
    places, shares = principal_plane(points)
    centered = points - points.mean(dim=0)
    assert torch.allclose(places[:, 0].abs(), centered[:, 1].abs(), atol=0.6)
    assert torch.corrcoef(torch.stack([places[:, 1], centered[:, 3]]))[0, 1] > 0.99
    assert shares == pytest.approx((25 / 35, 9 / 35), abs=0.05)
    assert torch.allclose(principal_plane(points.flip(0))[0].flip(0), places, atol=1e-4)
    places, shares = principal_plane(torch.ones(3, 4))
    assert places.abs().max() == 0 and shares == (0, 0)
