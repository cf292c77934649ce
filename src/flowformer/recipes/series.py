"""Time-series classification: the paper's ten UEA subsets, and series of one's own.

Settings: the published scripts (RAdam, learning rate 1e-3, batches of 16, 100 epochs, gradient norm
at most 4, learned positions, no clamp of the conserved source) and the classifier they build.
Accuracies: Flowformer (ICML 2022), the table of UEA results. The published scripts report the best
test accuracy over epochs, which is `protocol="published"`.
"""

from collections.abc import Callable, Mapping

from flowformer.train.config import EpochsConfig, OptimizerConfig
from flowformer.train.series.config import OWN, PRESETS, SeriesConfig, SeriesDataConfig

SOURCE = "Flowformer (Wu et al., ICML 2022), UEA table"
PAPER_AVERAGE = 0.730
FIGURES = (
    f"paper: of series, test accuracy in percent, {SOURCE};",
    f"average {100 * PAPER_AVERAGE:.1f}, the best over epochs on the test set, as "
    "--training.protocol published measures.",
)


def ethanol_concentration() -> SeriesConfig:
    """EthanolConcentration: spectra of bottled spirits, 4 classes, 3 channels, 1751 steps."""
    return _published("ethanol-concentration", "EthanolConcentration", 1751, 0.338)


def face_detection() -> SeriesConfig:
    """FaceDetection: magnetoencephalography, face or scrambled face, 144 channels, 62 steps."""
    return _published("face-detection", "FaceDetection", 62, 0.676)


def handwriting() -> SeriesConfig:
    """Handwriting: a wrist writing one of 26 letters, 3 accelerations, 152 steps."""
    return _published("handwriting", "Handwriting", 152, 0.338)


def heartbeat() -> SeriesConfig:
    """Heartbeat: spectrograms of heart sounds, normal or not, 61 channels, 405 steps."""
    return _published("heartbeat", "Heartbeat", 405, 0.776)


def japanese_vowels() -> SeriesConfig:
    """JapaneseVowels: two vowels by nine speakers, 12 cepstral coefficients, 7 to 29 steps."""
    return _published("japanese-vowels", "JapaneseVowels", 29, 0.989)


def pems_sf() -> SeriesConfig:
    """PEMS-SF: occupancy of car lanes over a day, 7 weekdays, 963 channels, 144 steps."""
    return _published("pems-sf", "PEMS-SF", 144, 0.838, epochs=400)


def self_regulation_scp1() -> SeriesConfig:
    """SelfRegulationSCP1: slow cortical potentials, cursor up or down, 6 channels, 896 steps."""
    return _published("self-regulation-scp1", "SelfRegulationSCP1", 896, 0.925)


def self_regulation_scp2() -> SeriesConfig:
    """SelfRegulationSCP2: as SCP1, from a person with ALS, 7 channels, 1152 steps."""
    return _published("self-regulation-scp2", "SelfRegulationSCP2", 1152, 0.561)


def spoken_arabic_digits() -> SeriesConfig:
    """SpokenArabicDigits: ten digits, 13 cepstral coefficients, up to 93 steps; with Adam."""
    adam = OptimizerConfig(name="adam")
    return _published("spoken-arabic-digits", "SpokenArabicDigits", 93, 0.988, optimizer=adam)


def uwave_gesture_library() -> SeriesConfig:
    """UWaveGestureLibrary: a hand making one of 8 gestures, 3 accelerations, 315 steps."""
    return _published("uwave-gesture-library", "UWaveGestureLibrary", 315, 0.866)


def time_series() -> SeriesConfig:
    """Series of your own: give --data.train-file (a table, .ts, …), or --data.dataset."""
    return SeriesConfig(name="time-series", data=OWN)


def time_series_small() -> SeriesConfig:
    """Series of your own with a model for few of them, which trains in a minute or two."""
    return SeriesConfig(name="time-series-small", **vars(PRESETS["small"]))


RECIPES: Mapping[str, Callable[[], SeriesConfig]] = {
    "ethanol-concentration": ethanol_concentration,
    "face-detection": face_detection,
    "handwriting": handwriting,
    "heartbeat": heartbeat,
    "japanese-vowels": japanese_vowels,
    "pems-sf": pems_sf,
    "self-regulation-scp1": self_regulation_scp1,
    "self-regulation-scp2": self_regulation_scp2,
    "spoken-arabic-digits": spoken_arabic_digits,
    "uwave-gesture-library": uwave_gesture_library,
    "time-series": time_series,
    "time-series-small": time_series_small,
}


def _published(
    name: str,
    dataset: str,
    max_length: int,
    accuracy: float,
    *,
    epochs: int = 100,
    optimizer: OptimizerConfig | None = None,
) -> SeriesConfig:
    return SeriesConfig(
        name=name,
        data=SeriesDataConfig(dataset=dataset, max_length=max_length),
        optimizer=optimizer or OptimizerConfig(),
        training=EpochsConfig(epochs=epochs),
        paper_dataset=dataset,
        paper_accuracy=accuracy,
        paper_source=SOURCE,
    )
