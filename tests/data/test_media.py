"""Sounds and videos as arrays: the mel recipe beside sums written out, resampling, frames."""

import io
import sys

import numpy as np
from PIL import Image
import pytest

from albef_jax.data import media
from albef_jax.errors import UserError

RNG = np.random.default_rng(0)


def written_out(samples, rate, bands, window, hop):
    """The power in mel bands by the definition: one sum per frame and frequency."""
    half = window // 2
    at = np.abs(np.arange(-half, len(samples) + half))  # mirrored at both ends
    at = np.where(at >= len(samples), 2 * (len(samples) - 1) - at, at)
    samples, n = samples[at], np.arange(window)
    hann = np.sin(np.pi * n / window) ** 2
    waves = np.exp(-2j * np.pi * np.outer(np.arange(half + 1), n) / window)
    power = np.stack([np.abs(waves @ (hann * samples[start:start + window])) ** 2
                      for start in range(0, len(samples) - window + 1, hop)], axis=1)
    mel = np.linspace(0, 2595 * np.log10(1 + rate / 1400), bands + 2)
    edge = 700 * (10 ** (mel / 2595) - 1)
    out = np.zeros((bands, power.shape[1]))
    for band in range(bands):
        low, middle, high = edge[band:band + 3]
        for row in range(half + 1):
            hertz = row * rate / window
            if low < hertz <= middle:
                out[band] += power[row] * (hertz - low) / (middle - low)
            elif middle < hertz < high:
                out[band] += power[row] * (high - hertz) / (high - middle)
    return out


@pytest.mark.parametrize("length, window, hop", [(500, 64, 16), (511, 64, 20), (300, 128, 128)])
def test_the_spectrogram_is_that_of_the_definition(length, window, hop):
    samples = RNG.normal(size=length)
    ours = media.mel_spectrogram(samples, 8000, 7, window, hop)
    theirs = written_out(samples, 8000, 7, window, hop)
    assert ours.shape == (7, 1 + length // hop) == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-9 * theirs.max())


def test_the_recipe_of_the_public_code():
    sound = RNG.normal(size=(16000, 2)).astype(np.float32)
    features = media.sound_features(sound, 16000)
    assert features.shape == (80, 751) and features.dtype == np.float32
    mono = np.zeros(192000)
    mono[:16000] = sound.astype(np.float64).sum(axis=1) / 2
    power = written_out(mono[:20000], 16000, 80, 1024, 256)[:, :60]
    expected = (power - power.mean(0)) / (power.std(0, ddof=1) + 1e-9)
    np.testing.assert_allclose(features[:, :60], expected, atol=1e-4)
    assert not features[:, 70:].any()  # silence
    np.testing.assert_array_equal(  # halved, mono too
        media.sound_features(sound[:, :1], 16000),
        media.sound_features(np.repeat(sound[:, :1] / 2, 2, axis=1), 16000))
    long = RNG.normal(size=(16000 * 13, 1))
    np.testing.assert_allclose(media.sound_features(long, 16000)[:, :700],
                               media.sound_features(long[:192000], 16000)[:, :700])


@pytest.mark.parametrize("rate, wanted", [(44100, 16000), (8000, 16000), (22050, 16000)])
def test_resampling_is_a_windowed_sinc(rate, wanted):
    samples = RNG.normal(size=rate // 50)
    ours = media.resampled(samples, rate, wanted)
    assert len(ours) == -(-len(samples) * wanted // rate)
    cut = min(rate, wanted) * 0.99
    time = np.arange(len(samples)) / rate - (np.arange(len(ours)) / wanted)[:, None]
    reach = np.clip(time * cut, -6, 6)
    expected = (np.sinc(reach) * np.cos(np.pi * reach / 12) ** 2 * cut / rate) @ samples
    np.testing.assert_allclose(ours, expected, atol=1e-9)
    assert media.resampled(samples, rate, rate) is samples


def test_sound_files_are_read_and_broken_ones_told():
    soundfile = pytest.importorskip("soundfile")
    samples, file = 0.1 * RNG.normal(size=(800, 2)), io.BytesIO()
    soundfile.write(file, samples, 8000, format="FLAC")
    read, rate = media.read_sound(file.getvalue())
    np.testing.assert_allclose(read, samples, atol=1e-3)
    assert rate == 8000 and read.dtype == np.float32
    with pytest.raises(OSError, match="no sound that can be read"):
        media.read_sound(b"nothing")


def test_videos_are_read_and_broken_ones_told(tmp_path):
    """Whole, frame by frame, in the colours that they were written in."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=64, height=48, pix_fmt="yuv420p")
        for number in range(12):
            pixels = np.full((48, 64, 3), (20 * number, 100, 200), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    frames = media.read_frames(str(tmp_path / "a.mp4"))
    assert len(frames) == 12 and {frame.size for frame in frames} == {(64, 48)}
    means = np.array([np.asarray(frame).mean(axis=(0, 1)) for frame in frames])
    np.testing.assert_allclose(means, [(20 * number, 100, 200) for number in range(12)], atol=6)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(OSError, match="no video that can be read"):
        media.read_frames(str(tmp_path / "b.mp4"))


@pytest.mark.parametrize("name, extra, read", [
    ("soundfile", "audio", lambda: media.read_sound(b"")),
    ("av", "video", lambda: media.read_frames("a.mp4")),
])
def test_what_is_not_installed_is_named(monkeypatch, name, extra, read):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"needs the package {name}; .*albef_jax\[{extra}\]"):
        read()


def test_frames_of_folders_animations_and_arrays(tmp_path):
    frames = RNG.integers(0, 256, (3, 4, 5, 3), np.uint8)
    images = [Image.fromarray(frame) for frame in frames]
    np.save(tmp_path / "a.npy", frames)
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:])
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], lossless=True)
    (tmp_path / "a").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "a" / f"{number}.png")
    for name in ("a", "a.npy", "a.png", "a.webp"):
        read = media.read_frames(str(tmp_path / name))
        assert [image.mode for image in read] == ["RGB"] * 3, name
        np.testing.assert_array_equal(np.stack(read), frames, err_msg=name)


@pytest.mark.parametrize("name, contents, sentence", [
    ("a.gif", b"GIF89a", "not an image"), ("a.npy", b"x", "no array"), ("a", None, "no frames"),
])
def test_what_is_no_video(tmp_path, name, contents, sentence):
    if contents is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(OSError, match=sentence):
        media.read_frames(str(tmp_path / name))


def test_frames_of_another_shape(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(OSError, match=r"frames float64 \[2, 3\], not uint8"):
        media.read_frames(str(tmp_path / "a.npy"))
