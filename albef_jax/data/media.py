"""Sounds and videos of files as arrays, and the mel spectrogram that SCALE reads."""

from __future__ import annotations

import functools
import io
import math
import os

import numpy as np
import scipy.signal
from PIL import Image

from albef_jax.data.images.pillow import decode, open_image
from albef_jax.errors import first_line, MISSING, UserError
from albef_jax.files import read_bytes

RATE, SECONDS = 16000, 12  # of M5Product's sounds: Hz, and how much of them is read
BANDS, WINDOW, HOP = 80, 1024, 256  # mel bands; samples
TINY = 1e-9  # beside a deviation
ZEROS, ROLLOFF = 6, 0.99  # zero crossings of the resampling filter, and where it cuts off
PICTURES = (".gif", ".webp", ".png", ".apng", ".tif", ".tiff")
FRAMES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # of a video that is a folder


def read_sound(contents: bytes) -> tuple[np.ndarray, int]:
    """Samples float32 [n, channels] in -1..1 and their rate in Hz, of any file soundfile reads.

    Raises:
        OSError: it is damaged, or of another format.
        UserError: soundfile is not installed.
    """
    try:
        import soundfile  # an extra
    except ImportError:
        raise UserError(MISSING.format("A sound", "soundfile", "audio")) from None
    try:
        return soundfile.read(io.BytesIO(contents), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise OSError(f"no sound that can be read ({first_line(error)})") from None


def sound_features(samples: np.ndarray, rate: int) -> np.ndarray:
    """What the public SCALE code stores of a sound: mel bands over time, float32 [80, 751].

    Channels are summed and halved, mono too; the first 12 s at 16 kHz are kept, or filled up with
    zeros; every frame is then centred and scaled by its mean and deviation over the bands.

    Args:
        samples: float [n, channels]. rate: of them, in Hz.
    """
    mono = resampled(samples.astype(np.float64).sum(axis=1) / 2, rate, RATE)[:RATE * SECONDS]
    mono = np.pad(mono, (0, RATE * SECONDS - len(mono)))
    return standardised(mel_spectrogram(mono, RATE, BANDS, WINDOW, HOP)).astype(np.float32)


def standardised(spectrogram: np.ndarray) -> np.ndarray:
    """[bands, frames] with mean 0 and deviation 1 (of the sample) over the bands of each frame."""
    mean, deviation = spectrogram.mean(axis=0), spectrogram.std(axis=0, ddof=1)
    return (spectrogram - mean) / (deviation + TINY)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples float [n] at another rate, by torchaudio's default filter: a Hann-windowed sinc."""
    shared = math.gcd(rate, wanted)
    up, down = wanted // shared, rate // shared
    if up == down:
        return samples
    cut = min(up, down) * ROLLOFF
    reach = math.ceil(ZEROS * up * down / cut)
    time = np.clip(np.arange(-reach, reach + 1) / (up * down) * cut, -ZEROS, ZEROS)
    filter_ = np.sinc(time) * np.cos(np.pi * time / ZEROS / 2) ** 2 * cut / down
    return scipy.signal.resample_poly(samples, up, down, window=filter_ / up)


def mel_spectrogram(samples: np.ndarray, rate: int, bands: int, window: int, hop: int):
    """Power in mel bands, float64 [bands, 1 + n // hop]; ends are mirrored, frames centred.

    Args:
        samples: float [n]. rate: in Hz. window: samples under a periodic Hann window. hop: samples
            between frames.
    """
    ended = np.pad(samples, window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(ended, window)[::hop]
    spectrum = np.fft.rfft(frames * scipy.signal.get_window("hann", window))
    return mel_filters(rate, bands, window) @ (np.abs(spectrum) ** 2).T


@functools.lru_cache(maxsize=8)
def mel_filters(rate: int, bands: int, window: int) -> np.ndarray:
    """Triangles [bands, 1 + window // 2] that are evenly spaced in mel (HTK's), of height 1."""
    hertz = np.linspace(0, rate / 2, 1 + window // 2)
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling))


def read_frames(path: str) -> list[Image.Image]:
    """The frames of a video as RGB images, in order.

    Args:
        path: a folder of images (in order of their names), an animation that Pillow reads, a .npy
            of uint8 [t, h, w, 3], or any video, for which PyAV is needed.

    Raises:
        OSError: it is damaged, or holds no frame.
        UserError: PyAV is not installed.
    """
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if name.lower().endswith(FRAMES))
        frames = [decode(open_image(read_bytes(os.path.join(path, name)))) for name in names]
    elif path.lower().endswith(".npy"):
        frames = _frames_of_array(path)
    elif path.lower().endswith(PICTURES):
        frames = _frames_of_animation(open_image(read_bytes(path)))
    else:
        frames = _frames_of_video(path)
    if not frames:
        raise OSError("no frames")
    return frames


def _frames_of_animation(animation: Image.Image) -> list[Image.Image]:
    frames = []
    for number in range(getattr(animation, "n_frames", 1)):
        animation.seek(number)
        frames.append(decode(animation))
    return frames


def _frames_of_array(path: str) -> list[Image.Image]:
    try:
        frames = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise OSError(f"no array ({error})") from None
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise OSError(f"frames {frames.dtype} {list(frames.shape)}, not uint8 [t, h, w, 3]")
    return [Image.fromarray(frame) for frame in frames]


def _frames_of_video(path: str) -> list[Image.Image]:
    try:
        import av  # an extra
    except ImportError:
        raise UserError(MISSING.format(f"The video {path}", "av", "video") + " A folder of frames, "
                        "a GIF, a WebP or a .npy of frames needs none.") from None
    try:
        with av.open(path) as container:
            return [frame.to_image() for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise OSError(f"no video that can be read ({first_line(error)})") from None
