"""Common image corruptions in five severities (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019), with the parameters of ImageNet-C.

Left out are frost, which needs photographs, and elastic transform, which moves pixels away from their labels. Fog, snow and
glass blur draw their random fields differently, and JPEG is encoded by OpenCV; images differ from those of ImageNet-C, but
not in strength. Float images (H, W, 3) are RGB with values in [0, 1].
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Effect = Callable[[Image, Any, np.random.Generator], NDArray[Any]]

SEVERITIES = (1, 2, 3, 4, 5)

_GRAY = np.array([0.299, 0.587, 0.114], np.float32)


def corrupt(image: NDArray[np.uint8], kind: str, severity: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply a corruption to an RGB image (H, W, 3), uint8.

    Args:
        image: image, which stays unchanged.
        kind: key of `CORRUPTIONS`.
        severity: 1 (weak) to 5 (strong).
        rng: generator for all random draws.
    """
    effect, parameters = CORRUPTIONS[kind]
    changed = effect((image / np.float32(255)).astype(np.float32), parameters[severity - 1], rng)
    return np.asarray((np.clip(changed, 0, 1) * 255).round().astype(np.uint8))


def _gaussian_noise(image: Image, scale: float, rng: np.random.Generator) -> NDArray[Any]:
    return image + rng.normal(0, scale, image.shape)


def _shot_noise(image: Image, photons: float, rng: np.random.Generator) -> NDArray[Any]:
    return rng.poisson(image * photons) / photons


def _impulse_noise(image: Image, amount: float, rng: np.random.Generator) -> NDArray[Any]:
    draw = rng.random(image.shape)
    return np.where(draw < amount / 2, 0, np.where(draw < amount, 1, image))


def _defocus_blur(image: Image, parameters: tuple[int, float], rng: np.random.Generator) -> NDArray[Any]:
    radius, sigma = parameters
    reach = max(8, radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    size = 3 if radius <= 8 else 5
    return cv2.filter2D(image, -1, cv2.GaussianBlur(disk / disk.sum(), (size, size), sigma))


def _glass_blur(image: Image, parameters: tuple[float, int, int], rng: np.random.Generator) -> NDArray[Any]:
    sigma, reach, rounds = parameters
    blurred = cv2.GaussianBlur(image, (0, 0), sigma)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(rounds):
        shift_y, shift_x = rng.integers(-reach, reach, (2, height, width), endpoint=True).astype(np.float32)
        blurred = cv2.remap(blurred, x + shift_x, y + shift_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
    return cv2.GaussianBlur(blurred, (0, 0), sigma)


def _streak(image: Image, radius: int, sigma: float, angle: float) -> NDArray[Any]:
    """Blur in one direction with one half of a Gaussian; `angle` is in degrees."""
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
    steps = np.arange(radius + 1)
    columns = (radius + steps * math.cos(math.radians(angle))).round().astype(int)
    rows = (radius + steps * math.sin(math.radians(angle))).round().astype(int)
    np.add.at(kernel, (rows, columns), np.exp(-(steps**2) / (2 * sigma**2)))
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def _motion_blur(image: Image, parameters: tuple[int, float], rng: np.random.Generator) -> NDArray[Any]:
    return _streak(image, *parameters, angle=rng.uniform(-45, 45))


def _zoom(image: Image, factor: float) -> NDArray[Any]:
    """Enlarge the center of an image to the size of the image."""
    height, width = image.shape[:2]
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - rows) // 2, (width - columns) // 2
    return cv2.resize(image[top : top + rows, left : left + columns], (width, height), interpolation=cv2.INTER_LINEAR)


def _zoom_blur(image: Image, factors: Sequence[float], rng: np.random.Generator) -> NDArray[Any]:
    return np.mean([image, *(_zoom(image, factor) for factor in factors)], axis=0)


def _snow(image: Image, parameters: tuple[float, ...], rng: np.random.Generator) -> NDArray[Any]:
    mean, std, zoom, threshold, radius, sigma, share = parameters
    flakes = _zoom(rng.normal(mean, std, image.shape[:2]).astype(np.float32), zoom)
    flakes = np.where(flakes < threshold, 0, np.clip(flakes, 0, 1)).astype(np.float32)
    layer = _streak(flakes, int(radius), sigma, rng.uniform(-135, -45))[..., None]
    gray = (image @ _GRAY)[..., None]
    whitened = share * image + (1 - share) * np.maximum(image, 1.5 * gray + 0.5)
    return whitened + layer + np.rot90(layer, 2)


def _fog(image: Image, parameters: tuple[float, float], rng: np.random.Generator) -> NDArray[Any]:
    strength, decay = parameters
    height, width = image.shape[:2]
    octaves = math.ceil(math.log2(max(height, width)))
    field = np.zeros((height, width), np.float32)
    for octave in range(octaves + 1):  # from one cell per image to one per pixel
        noise = rng.uniform(-1, 1, (2**octave + 1, 2**octave + 1)).astype(np.float32)
        field += (
            np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR), np.float32) / decay**octave
        )
    field = (field - field.min()) / (field.max() - field.min())
    brightest = image.max()
    return (image + strength * field[..., None]) * brightest / (brightest + strength)


def _brightness(image: Image, added: float, rng: np.random.Generator) -> NDArray[Any]:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _contrast(image: Image, factor: float, rng: np.random.Generator) -> NDArray[Any]:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * factor + mean


def _pixelate(image: Image, factor: float, rng: np.random.Generator) -> NDArray[Any]:
    height, width = image.shape[:2]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))
    shrunk = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_NEAREST)


def _jpeg(image: Image, quality: int, rng: np.random.Generator) -> NDArray[Any]:
    pixels = np.rint(image[..., ::-1] * 255).astype(np.uint8)
    _, content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))[..., ::-1] / 255


def _steps(last: float, step: float) -> list[float]:
    return [1 + step * number for number in range(round((last - 1) / step) + 1)]


CORRUPTIONS: dict[str, tuple[Effect, Sequence[Any]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (_defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": (_glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": (_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": (_zoom_blur, (_steps(1.1, 0.01), _steps(1.15, 0.01), _steps(1.2, 0.02), _steps(1.24, 0.02), _steps(1.3, 0.03))),
    "snow": (
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "fog": (_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
}  # fmt: skip
"""Name -> effect, and its parameter for each severity."""
