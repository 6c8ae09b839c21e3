"""Log-mel spectrograms: equal to the reference's where it is installed, and what they must be by themselves."""

import json

import numpy as np
import pytest

from zoo.data.audio import AudioFeatures, mel_filters


def tone(hertz: float, seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(16_000 * seconds)) / 16_000)).astype(np.float32)


@pytest.mark.peers
@pytest.mark.parametrize("num_mels", [80, 128])
def test_equals_the_reference(num_mels):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    noise = np.random.default_rng(0).standard_normal(16_000 * 31).astype(np.float32) * np.float32(0.05)
    waves = [tone(440, 3), tone(900, 31) + noise]
    theirs = transformers.WhisperFeatureExtractor(feature_size=num_mels)(waves, sampling_rate=16_000)
    ours = AudioFeatures(feature_size=num_mels)(waves, 16_000)
    assert ours.shape == (2, num_mels, 3000) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs["input_features"], atol=1e-4)


def test_a_tone_is_in_its_band_and_silence_is_flat():
    features = AudioFeatures(chunk_length=1)
    filters = mel_filters(80, 400, 16_000)
    (spectrogram,) = features(tone(1000, 1), 16_000)
    assert spectrogram.shape == (80, 100)
    assert spectrogram[:, 50].argmax() == filters[1000 * 400 // 16_000].argmax()
    (silence,) = features(np.zeros(800, np.float32), 16_000)
    assert np.ptp(silence) == 0


def test_fields_come_from_the_folder(tmp_path):
    assert AudioFeatures.load(tmp_path) == AudioFeatures()
    fields = {"feature_size": 128, "n_fft": 400, "feature_extractor_type": "WhisperFeatureExtractor", "mel_filters": []}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    assert AudioFeatures.load(tmp_path) == AudioFeatures(feature_size=128)


def test_another_sampling_rate_is_refused():
    with pytest.raises(ValueError, match="sampling_rate is 44100"):
        AudioFeatures()(tone(440, 1), 44_100)
    with pytest.raises(ValueError, match="one channel"):
        AudioFeatures()([np.zeros((2, 800), np.float32)], 16_000)
