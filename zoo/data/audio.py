"""Log-mel spectrograms from waveforms, as speech models read them (Radford et al. 2022, section 2.2).

Hann windows of 25 ms every 10 ms, power spectra, filters on Slaney's mel scale, log10 over a range of 8, scaled to
about [-1, 1]. Decoding of audio files and resampling are left out.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

_LINEAR_HERTZ = 1000.0
"""Slaney's scale is linear below this frequency and logarithmic above."""
_HERTZ_PER_MEL = 200.0 / 3
_MELS_PER_LOG = 27.0 / np.log(6.4)


@dataclass(frozen=True, kw_only=True)
class AudioFeatures:
    """How waveforms become spectrograms; the fields are those of preprocessor_config.json."""

    feature_size: int = 80
    """Mel bands."""
    sampling_rate: int = 16_000
    hop_length: int = 160
    """Samples between windows."""
    n_fft: int = 400
    """Samples of a window."""
    chunk_length: int = 30
    """Seconds that every waveform is padded or cut to."""
    padding_value: float = 0.0

    @classmethod
    def load(cls, folder: str | Path) -> "AudioFeatures":
        """Read a checkpoint folder's preprocessor_config.json; the defaults where there is none."""
        path = Path(folder) / "preprocessor_config.json"
        fields = json.loads(path.read_text()) if path.exists() else {}
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in fields.items() if name in names and value is not None})

    def __call__(
        self, waveforms: Float[np.ndarray, " samples"] | Sequence[np.ndarray], sampling_rate: int
    ) -> Float[np.ndarray, "B mels frames"]:
        """`input_features` of one waveform or several, mono, float, usually in [-1, 1].

        Raises ValueError for another sampling rate: the model hears pitches at its own.
        """
        if sampling_rate != self.sampling_rate:
            raise ValueError(f"sampling_rate is {sampling_rate}; resample the audio to {self.sampling_rate} Hz")
        if isinstance(waveforms, np.ndarray) and waveforms.ndim == 1:
            waveforms = [waveforms]
        return np.stack([self._spectrogram(np.asarray(wave, np.float32)) for wave in waveforms])

    def _spectrogram(self, wave: np.ndarray) -> np.ndarray:
        if wave.ndim != 1:
            raise ValueError(f"a waveform has shape {wave.shape}; give one channel, [samples]")
        length = self.chunk_length * self.sampling_rate
        wave = np.pad(wave[:length], (0, max(0, length - len(wave))), constant_values=self.padding_value)
        # Windows are centred on their times, so the ends are mirrored.
        wave = np.pad(wave, self.n_fft // 2, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(wave, self.n_fft)[:: self.hop_length][:-1]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.n_fft) / self.n_fft)
        power = np.abs(np.fft.rfft(windows * hann)) ** 2
        log = np.log10(np.maximum(power @ mel_filters(self.feature_size, self.n_fft, self.sampling_rate), 1e-10)).T
        return ((np.maximum(log, log.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


def mel_filters(num_mels: int, n_fft: int, sampling_rate: int) -> Float[np.ndarray, "bins mels"]:
    """Triangles of equal area, evenly spaced in mel from 0 to 8000 Hz (Slaney 1998, Auditory Toolbox)."""
    edges = _to_hertz(np.linspace(0.0, _to_mel(8000.0), num_mels + 2))
    bins = np.linspace(0.0, sampling_rate / 2, n_fft // 2 + 1)[:, None]
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (middle - left), (right - bins) / (right - middle))
    return np.maximum(triangles, 0.0) * (2.0 / (right - left))


def _to_mel(hertz: float) -> float:
    start = _LINEAR_HERTZ / _HERTZ_PER_MEL
    return start + np.log(hertz / _LINEAR_HERTZ) * _MELS_PER_LOG if hertz >= _LINEAR_HERTZ else hertz / _HERTZ_PER_MEL


def _to_hertz(mels: np.ndarray) -> np.ndarray:
    start = _LINEAR_HERTZ / _HERTZ_PER_MEL
    above = _LINEAR_HERTZ * np.exp((np.maximum(mels, start) - start) / _MELS_PER_LOG)
    return np.where(mels >= start, above, mels * _HERTZ_PER_MEL)
