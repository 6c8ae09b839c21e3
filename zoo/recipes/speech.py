"""A WAV file to a waveform."""

import wave
from pathlib import Path

import numpy as np

_KINDS = {1: (np.uint8, 128, 128), 2: (np.dtype("<i2"), 0, 2**15), 4: (np.dtype("<i4"), 0, 2**31)}
"""For each number of bytes: the dtype, what silence is, and the largest value."""


def read_wave(path: str | Path, sampling_rate: int) -> np.ndarray:
    """Samples in [-1, 1], the mean of the channels. ValueError for what is no PCM file, or of another rate."""
    try:
        with wave.open(str(path)) as file:
            channels, size, rate, _, _, _ = file.getparams()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise ValueError(f"{path} is no WAV file that can be read: {error}") from None
    if size not in _KINDS or rate != sampling_rate:
        raise ValueError(
            f"{path} has {size} bytes a sample and {rate} samples a second; this model hears {sampling_rate} a second "
            f"of 1, 2 or 4 bytes: ffmpeg -i {path} -ar {sampling_rate} -ac 1 -c:a pcm_s16le OUT.wav"
        )
    dtype, silence, largest = _KINDS[size]
    samples = (np.frombuffer(data, dtype).astype(np.float32) - silence) / largest
    return samples[: len(samples) // channels * channels].reshape(-1, channels).mean(1)
