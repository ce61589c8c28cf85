import hashlib
import importlib.util
import io
import zipfile
from pathlib import Path

import pytest
import torch

from clip_factory import save_tiny_clip, tiny_clip
from error_matching import expect_error, explains
from famix.clip import openai as clip_package
from famix.clip.architecture import ARCHITECTURES, CLIPArchitecture
from famix.clip.export import save_clip
from famix.clip.weights import clip_weights_hash, load_clip_state_dict
from famix.utils.errors import ConfigError, WeightsError

FORMS = ("state_dict", "torchscript", "safetensors")
TOOL = Path(__file__).parents[2] / "projects/FAMix/tools/make_random_clip.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights in each form, all with the same suffix: the content tells."""
    folder = tmp_path_factory.mktemp("clip")
    return {form: save_tiny_clip(folder / f"{form}.pt", form) for form in FORMS}


@pytest.fixture
def tensors():
    return tiny_clip().state_dict()


def save(content, path):
    torch.save(content, path)
    return str(path)


# Loading


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_silently_to_the_models_values(files, form, recwarn):
    model = tiny_clip()
    clip_package.convert_weights(model)
    expected = {name: tensor.float() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    got = load_clip_state_dict(str(files[form]))
    assert got.keys() == expected.keys()
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert clip_weights_hash(got) == clip_weights_hash(model.state_dict())
    assert not recwarn.list


def test_the_archive_is_like_openais(files):
    raw = torch.jit.load(str(files["torchscript"])).state_dict()
    assert [int(raw[name]) for name in ("input_resolution", "context_length", "vocab_size")] == [64, 77, 49408]
    assert raw["visual.conv1.weight"].dtype == torch.float16
    assert "visual.bn1.num_batches_tracked" in raw


@pytest.mark.parametrize("zipped", [True, False])
def test_nested_and_prefixed_state_dict(tensors, zipped, tmp_path):
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    content = {"state_dict": wrapped, "epoch": 3}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert clip_weights_hash(load_clip_state_dict(str(tmp_path / "a.pt"))) == clip_weights_hash(tensors)


# Hash


def test_hash_sees_values_names_and_shapes(tensors):
    base = clip_weights_hash(tensors)
    assert len(base) == 64 and clip_weights_hash(dict(reversed(tensors.items()))) == base
    changed = {**tensors, "logit_scale": tensors["logit_scale"] + 1e-4}
    renamed = {("scale" if name == "logit_scale" else name): tensor for name, tensor in tensors.items()}
    reshaped = {**tensors, "logit_scale": tensors["logit_scale"].reshape(1)}
    assert len({base, *map(clip_weights_hash, (changed, renamed, reshaped))}) == 4


def test_hash_of_a_view_is_that_of_its_values():
    matrix = torch.arange(6.0).reshape(2, 3)
    assert clip_weights_hash({"a": matrix.T}) == clip_weights_hash({"a": matrix.T.contiguous()})
    assert clip_weights_hash({"a": matrix}) != clip_weights_hash({"a": matrix.T})


# Errors


def test_missing_file(tmp_path):
    with expect_error(WeightsError, str(tmp_path / "absent.pt"), remedy="path"):
        load_clip_state_dict(str(tmp_path / "absent.pt"))


def code_zeroed(content):
    """The archive without the signature of its first code entry."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start = next(entry.header_offset for entry in archive.infolist() if entry.filename.endswith(".py"))
    return content[:start] + bytes(4) + content[start + 4 :]


@pytest.mark.parametrize(
    ("form", "damage"),
    [(form, damage) for form in FORMS for damage in (lambda _: b"", lambda content: content[: len(content) // 2])]
    + [("torchscript", code_zeroed)],
)
def test_damaged_file(files, form, damage, tmp_path):
    (tmp_path / "a.pt").write_bytes(damage(files[form].read_bytes()))
    with expect_error(WeightsError, str(tmp_path / "a.pt"), "a damaged file", "copy it again"):
        load_clip_state_dict(str(tmp_path / "a.pt"))


def test_code_of_an_archive_is_never_run(files, tmp_path):
    """Modules that define what is to happen when they are loaded, and code that would crash torch's compiler."""
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(files["torchscript"]) as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(".py"):
                content = content.replace(
                    b"  def forward", b"  def __setstate__(self, state):\n    ...\n  def forward", 1
                )
                content += b"(" * 100_000
            archive.writestr(name, content)
    assert clip_weights_hash(load_clip_state_dict(str(path))) == clip_weights_hash(
        load_clip_state_dict(str(files["safetensors"]))
    )


@pytest.mark.parametrize(
    ("content", "key", "what", "remedy"),
    [
        ([torch.zeros(1)], "a.pt", "list", "state_dict()"),
        ({"model": {"a": torch.zeros(1)}}, "a.pt", "dict", "state_dict()"),
        ({"a": 1}, "a.pt", "dict", "state_dict()"),
        (b"<html>404</html>", "a.pt", None, "state_dict()"),
        ({"visual.class_embedding": torch.zeros(1)}, "CLIPResNet", "1 tensors (visual.class_embedding, ...)", "RN50"),
        ({"b": torch.zeros(1), "a": torch.zeros(1)}, "CLIPResNet", "2 tensors (a, b, ...)", "RN50"),
        ({}, "CLIPResNet", "0 tensors (...)", "RN50"),
    ],
)
def test_other_content(content, key, what, remedy, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with expect_error(WeightsError, str(path) if key == "a.pt" else key, what, remedy):
        load_clip_state_dict(str(path))


def test_image_tower_alone(tensors, tmp_path):
    visual = {name: tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    with expect_error(WeightsError, str(tmp_path / "a.pt"), "token_embedding.weight", "complete CLIP weights"):
        load_clip_state_dict(save(visual, tmp_path / "a.pt"))


def test_layout_that_differs(tensors, tmp_path):
    tensors["visual.layer2.0.conv2.weight"] = torch.zeros(16, 16, 1, 1)
    tensors["extra"] = torch.zeros(1)
    del tensors["visual.bn1.bias"]
    with expect_error(WeightsError, str(tmp_path / "a.pt"), "3", "unmodified") as caught:
        load_clip_state_dict(save(tensors, tmp_path / "a.pt"))
    for name in (
        "extra",
        "visual.bn1.bias: missing",
        "visual.layer2.0.conv2.weight: (16, 16, 1, 1) instead of (16, 16, 3, 3)",
    ):
        explains(str(caught.value), name)


# Published names


@pytest.fixture
def published(files, tmp_path, monkeypatch):
    """Pretend that OpenAI publishes the tiny CLIP as RN50, at a URL that is a file; returns (URL's file, cached file)."""
    content = files["torchscript"].read_bytes()
    remote = tmp_path / "remote" / hashlib.sha256(content).hexdigest() / "RN50.pt"
    remote.parent.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setitem(clip_package._clip._MODELS, "RN50", remote.as_uri())
    return remote, tmp_path / "home/.cache/clip/RN50.pt"


def test_name_is_downloaded_once(files, published):
    remote, cached = published
    remote.write_bytes(files["torchscript"].read_bytes())
    load_clip_state_dict("RN50")
    remote.unlink()
    assert cached.is_file()
    got = load_clip_state_dict("RN50")
    assert clip_weights_hash(got) == clip_weights_hash(load_clip_state_dict(str(files["safetensors"])))


@pytest.mark.filterwarnings("ignore:.*SHA256 checksum does not match")
@pytest.mark.parametrize("state", ["no network", "damaged cache", "other checksum"])
def test_a_name_that_cannot_be_had(published, state):
    remote, cached = published
    if state == "damaged cache":
        cached.parent.mkdir(parents=True)
        cached.write_bytes(b"half a file")
    elif state == "other checksum":
        remote.write_bytes(b"something else")
    got = "checksum" if state == "other checksum" else remote.as_uri()
    with expect_error(WeightsError, "MODEL.CLIP.WEIGHTS", got, str(cached)):
        load_clip_state_dict("RN50")


def test_models_of_unknown_families_are_refused(monkeypatch):
    monkeypatch.setattr(clip_package, "model_urls", lambda: {"Mixer-B/32": "https://example.com/abc/Mixer.pt"})
    with expect_error(WeightsError, "MODEL.CLIP.WEIGHTS", "Mixer-B/32"):
        load_clip_state_dict("Mixer-B/32")


# Architectures and random weights


def test_published_architectures_are_all_resnets_of_the_clip_package():
    assert set(ARCHITECTURES) == {name for name in clip_package.model_urls() if name.startswith("RN")}
    assert [architecture.heads for architecture in ARCHITECTURES.values()] == [32, 32, 40, 48, 64]


def test_unknown_form_of_a_file(tmp_path):
    with expect_error(ConfigError, "form", "onnx"):
        save_clip(tiny_clip(), tmp_path / "a", "onnx")


# The tool


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_random_clip", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tool_writes_a_loadable_clip(tool, tmp_path):
    sizes = ["--width", "8", "--layers", "1", "2", "1", "1", "--resolution", "32", "--embed-dim", "8"]
    tool.main(["--output", str(tmp_path / "a"), "--format", "torchscript", "--seed", "3", *sizes])
    weights = load_clip_state_dict(str(tmp_path / "a"))
    assert CLIPArchitecture.from_state_dict(weights) == CLIPArchitecture((1, 2, 1, 1), 8, 8, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "7"], "4 positive layers"),
        (["--architecture", "RN50", "--resolution", "64"], "--architecture is mutually exclusive"),
    ],
)
def test_tool_says_what_is_wrong_in_one_line(tool, arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main(["--output", str(tmp_path / "a"), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
