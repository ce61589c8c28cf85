"""demo.py: images and videos of predictions, exit status and message of each error."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from command_workspace import Camera
from data_factory import forgotten_datasets
from error_matching import explains, line_of_mistake
from famix.inference import Predictor
from famix.inference.video import VideoReader, video_writer
from famix_cli.demo import main
from famix_cli.programs import demo
from inference.inference_factory import make_image, make_run
from run_factory import CONFIG

JPEG_LOSS = 15  # of images of noise, on average; wrong colors would be off by 80
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("demo"), CONFIG)


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    with forgotten_datasets():
        return Predictor.from_checkpoint(run, device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(make_image(seed=number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def video(tmp_path: Path) -> Path:
    write_frames(tmp_path / "drive.avi", 4)
    return tmp_path / "drive.avi"


@pytest.fixture
def loaded_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "load_predictor", lambda _: predictor)


def write_frames(path: Path, count: int) -> None:
    with video_writer(path, 12.5, (48, 64)) as write:
        for number in range(count):
            write(make_image(48, 64, seed=number))


def frames_of(path: Path) -> tuple[float, list[np.ndarray]]:
    with VideoReader(path) as reader:
        return reader.rate, list(reader)


def loss(image: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(image.astype(int) - expected).mean())


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_all_views_of_a_folder(
    run: Path, predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["--weights", str(run), "--input", str(photos), "--output", str(out), "--view", "all", "--alpha", "0.7"]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert len(list(out.iterdir())) == 3 * 4
    for number in range(3):
        image = make_image(seed=number)
        prediction = predictor(image)
        np.testing.assert_array_equal(read(out / f"{number}_labels.png"), prediction.labels)
        np.testing.assert_array_equal(read(out / f"{number}_color.png"), prediction.color_image())
        overlay, both = prediction.overlay(image, 0.7), read(out / f"{number}_side-by-side.jpg")
        assert loss(read(out / f"{number}_overlay.jpg"), overlay) < JPEG_LOSS
        assert loss(both[:, :112], image) < JPEG_LOSS and loss(both[:, -112:], overlay) < JPEG_LOSS
    monkeypatch.setattr(demo, "load_predictor", lambda _: predictor)
    command = ["--input", str(photos / "0.png"), "--output", str(tmp_path / "legend"), "--view", "color", "--legend"]
    assert main(command) == 0
    prediction, image = predictor(make_image()), read(tmp_path / "legend/0_color.png")
    np.testing.assert_array_equal(image[:72], prediction.color_image())
    shown = {tuple(color) for color in image[72:].reshape(-1, 3).tolist()}
    assert {tuple(color) for color in prediction.colors[prediction.visible_classes()].tolist()} <= shown


LABEL_IDS = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])  # by train id


@pytest.mark.usefixtures("loaded_once")
def test_label_ids_for_the_server_of_cityscapes(
    predictor: Predictor, photos: Path, video: Path, tmp_path: Path
) -> None:
    for city in ("berlin", "bonn"):
        (photos / city).mkdir()
        Image.fromarray(make_image(70, 93)).save(photos / city / f"{city}_000000_000019_leftImg8bit.png")
    out = tmp_path / "out"
    assert main(["--input", str(photos), "--output", str(out), "--view", "cityscapes-ids"]) == 0
    files = sorted(str(file.relative_to(out)) for file in out.rglob("*.*"))
    cities = [f"{city}/{city}_000000_000019_leftImg8bit.png" for city in ("berlin", "bonn")]
    assert files == ["0.png", "1.png", "2.png", *cities]
    expected = LABEL_IDS[predictor(make_image(70, 93)).labels]
    with Image.open(out / files[-1]) as written:
        assert written.mode == "L" and written.size == (93, 70)
        np.testing.assert_array_equal(np.asarray(written), expected)
    assert main(["--video-input", str(video), "--output", str(out), "--view", "cityscapes-ids"]) == 0
    assert len(list((out / "drive_cityscapes-ids").glob("*.png"))) == 4


def test_other_classes_have_no_label_ids(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:  # fmt: skip
    other = copy.copy(predictor)
    other.classes = replace(predictor.classes, names=("lane", *predictor.classes.names[1:]))
    monkeypatch.setattr(demo.Predictor, "from_checkpoint", lambda *_: other)
    command = ["--weights", "x", "--input", str(photos), "--output", str(tmp_path / "out"), "--view", "cityscapes-ids"]
    explains(line_of_mistake(capsys, main, *command), "--view cityscapes-ids", "lane", "--view labels")
    assert not list((tmp_path / "out").iterdir())


def test_weights_protocol_and_options_reach_the_network(run: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ["--input", str(photos / "0.png"), "--output", str(tmp_path / "0.png"), "--view", "labels"]
    options = ["MODEL.WEIGHTS", str(run / "model_final.pth"), "INPUT.FORMAT", "BGR"]
    assert main([*arguments, "--protocol", "flip", "--device", "cpu", "--opts", *options]) == 0
    predictor = Predictor.from_checkpoint(run, protocol="flip", device="cpu", opts=["INPUT.FORMAT", "BGR"])
    np.testing.assert_array_equal(read(tmp_path / "0.png"), predictor(make_image()).labels)


@pytest.mark.usefixtures("loaded_once")
def test_every_image_of_a_folder_is_predicted_or_reported(photos: Path, tmp_path: Path, capsys: Output) -> None:
    (photos / "1.png").rename(photos / "1.PnG")
    (photos / "linked.png").symlink_to(photos / "0.png")
    (photos / "broken.png").symlink_to(photos / "nowhere.png")
    (photos / "cut.png").write_bytes((photos / "0.png").read_bytes()[:100])
    (photos / "phone.heic").write_bytes(b"ftypheic")
    Image.fromarray(make_image(20, 20)).save(photos / "small.png")
    (tmp_path / "disk").mkdir()
    shutil.copy(photos / "2.png", tmp_path / "disk/3.png")
    (photos / "disk").symlink_to(tmp_path / "disk")
    assert main(["--input", str(photos), str(photos / "0.png"), "--output", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == f"5 of 9 images -> {tmp_path / 'out'}\n"
    for line, name in zip(err.splitlines(), ("broken.png", "cut.png", "phone.heic", "small.png"), strict=True):
        assert line.startswith("error: ")
        explains(line, key=str(photos / name))
    images = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.jpg")}
    assert images == {f"{name}_overlay.jpg" for name in ("0", "1", "2", "linked", "disk/3")}


@pytest.mark.usefixtures("loaded_once")
def test_video_keeps_its_rate_and_length(video: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = tmp_path / "out"
    assert main(["--video-input", str(video), "--output", str(out), "--view", "all"]) == 0
    rate, frames = frames_of(out / "drive_overlay.mp4")
    assert rate == 12.5 and len(frames) == 4
    for number, image in enumerate(frames_of(video)[1]):
        prediction = predictor(image)
        np.testing.assert_array_equal(read(out / f"drive_labels/{number:06d}_labels.png"), prediction.labels)
        assert loss(frames[number], prediction.overlay(image, 0.5)) < JPEG_LOSS


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
@pytest.mark.usefixtures("loaded_once")
def test_truncated_video_is_reported(tmp_path: Path, capsys: Output, suffix: str) -> None:
    path = tmp_path / f"drive{suffix}"
    write_frames(path, 20)
    data = path.read_bytes()
    if suffix == ".avi":
        path.write_bytes(data[: len(data) * 2 // 3])
    else:  # of an MP4 the header stands at the end
        half = data.index(b"moov") // 2
        path.write_bytes(data[:half] + bytes(data.index(b"moov") - 4 - half) + data[data.index(b"moov") - 4 :])
    assert main(["--video-input", str(path), "--output", str(tmp_path / "seen.avi")]) == 1
    out, err = capsys.readouterr()
    count = int(out.split()[0])
    assert 0 < count < 20 and len(frames_of(tmp_path / "seen.avi")[1]) == count
    (line,) = err.splitlines()
    explains(line, key=str(path), value=f"{count} of the 20 frames", remedy="ffmpeg")


@pytest.mark.parametrize("kind", ["image", "frames", "video"])
def test_inputs_larger_than_the_limit_are_refused(
    run: Path, video: Path, photos: Path, tmp_path: Path, kind: str, capsys: Output
) -> None:
    (photos / "0.png").unlink()
    source = {"image": ["--input", str(photos)], "frames": ["--video-input", str(photos)]}
    words = source.get(kind, ["--video-input", str(video)])
    limit = ["--opts", "INPUT.MAX_PIXELS", "1000"]
    assert main([*words, "--weights", str(run), "--output", str(tmp_path / "out"), *limit]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (2 if kind == "image" else 1)
    for line in lines:
        explains(line, key="INPUT.MAX_PIXELS", value=1000, remedy="Raise INPUT.MAX_PIXELS")
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


@pytest.mark.usefixtures("loaded_once")
def test_numbered_frames_become_a_video(tmp_path: Path, predictor: Predictor, capsys: Output) -> None:
    frames = tmp_path / "frames"
    (frames / "below").mkdir(parents=True)
    for number in (9, 10, 100):
        Image.fromarray(make_image(48, 64, seed=number)).save(frames / f"frame{number}.png")
    Image.fromarray(make_image(48, 64, seed=1)).save(frames / "below/frame1.png")
    arguments = ["--video-input", str(frames), "--output", str(tmp_path / "seen.avi"), "--rate", "12.5"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"3 frames at 12.5 per second -> {tmp_path / 'seen.avi'}\n"
    rate, seen = frames_of(tmp_path / "seen.avi")
    assert rate == 12.5
    for number, frame in zip((9, 10, 100), seen, strict=True):
        image = make_image(48, 64, seed=number)
        assert loss(frame, predictor(image).overlay(image)) < JPEG_LOSS


@pytest.mark.usefixtures("loaded_once")
def test_unreadable_videos_and_frames_are_one_error(photos: Path, tmp_path: Path, capsys: Output) -> None:
    Image.fromarray(make_image(48, 64)).save(photos / "2.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "drive.mp4").write_text("no video")
    for source, key in (
        (photos, f"Frame '{photos}/2.png'"),
        ("empty", f"Folder '{tmp_path}/empty'"),
        ("drive.mp4", f"Video '{tmp_path}/drive.mp4'"),
    ):
        assert main(["--video-input", str(tmp_path / source), "--output", str(tmp_path / "seen.avi")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        explains(line, key)
    assert not (tmp_path / "seen.avi").exists()


@pytest.mark.usefixtures("loaded_once")
def test_camera_is_recorded_until_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    of_file = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: Camera() if source == 0 else of_file(source))
    assert main(["--webcam", "--output", str(tmp_path / "live.avi")]) == 0
    assert capsys.readouterr().out == f"2 frames at 25 per second -> {tmp_path / 'live.avi'}\n"
    monkeypatch.undo()
    assert len(frames_of(tmp_path / "live.avi")[1]) == 2


@pytest.mark.usefixtures("loaded_once")
def test_stopped_video_leaves_nothing(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(predictor: Predictor, image: np.ndarray, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "__call__", stop)
    assert main(["--video-input", str(video), "--output", str(tmp_path / "seen.avi")]) == 130
    assert {file.name for file in tmp_path.iterdir()} == {"drive.avi"}


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize("source", ["images", "video"])
def test_images_are_shown_without_output(
    photos: Path, video: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    shown: list[tuple[int, ...]] = []
    waits: list[int] = []
    monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image.shape))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: waits.append(wait) or (-1 if len(waits) < 2 else 27))  # type: ignore[func-returns-value]
    assert main(["--input", str(photos)] if source == "images" else ["--video-input", str(video)]) == 0
    assert shown == ([(72, 112, 3)] * 2 if source == "images" else [(48, 64, 3)] * 2)  # Escape after the second
    assert waits == ([0, 0] if source == "images" else [1, 1])


@pytest.mark.parametrize(
    ("arguments", "key", "remedy"),
    [
        (["--input", "nowhere/*.png", "--output", "out"], "--input", "patterns"),
        (["--input", "PHOTOS", "--output", "PHOTOS/0.png/out"], "PHOTOS/0.png/out", "another"),
        (["--input", "PHOTOS", "--output", "out", "--alpha", "2"], "--alpha", "another"),
        (["--input", "PHOTOS", "--view", "labels"], "--view", "--output"),
        (["--input", "PHOTOS", "--output", "out"], "--weights", "--weights"),
        (["--input", "PHOTOS", "--output", "out", "--weights", "gone.pth"], "gone.pth", "path"),
        (["--input", "PHOTOS", "--output", "out", "--weights", "RUN", "--protocol", "quarter"], "'quarter'", ""),
        (
            ["--input", "PHOTOS", "--output", "out", "--weights", "RUN/model_final.pth", "--config-file", "OTHER"],
            "RUN/model_final.pth",
            "config",
        ),
        (["--webcam", "77", "--output", "out.avi"], "Camera 77", "Connect"),
        (["--video-input", "VIDEO", "--output", "VIDEO"], "--output", "another"),
        (["--input", "PHOTOS", "--output", "out.mp4"], "--output", "--video-input"),
        (["--video-input", "VIDEO", "--output", "out.mp4", "--rate", "5"], "--rate", "--rate"),
        (["--video-input", "PHOTOS", "--output", "out.mp4", "--rate", "0"], "--rate", "--rate"),
        (["--video-input", "VIDEO", "--output", "out.mkv"], "--output", "Rename"),
    ],
)
def test_mistakes_end_with_one_line(
    run: Path, photos: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Output, arguments: list[str], key: str, remedy: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    other = (run / "config.yaml").read_text().replace("ASPP_CHANNELS: 8", "ASPP_CHANNELS: 16")
    (tmp_path / "other.yaml").write_text(other)
    places = {"PHOTOS": photos, "RUN": run, "VIDEO": video, "OTHER": tmp_path / "other.yaml"}
    for word, place in places.items():
        *arguments, key = (text.replace(word, str(place)) for text in (*arguments, key))
    explains(line_of_mistake(capsys, main, *arguments), key, remedy=remedy)
