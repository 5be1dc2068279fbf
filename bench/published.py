"""What the E2-CRF paper printed, to stand beside what is measured here.

Liu, Wang and Yu, "Accelerating Frequency Domain Diffusion Models with Error-Feedback Event-Driven Caching"
(arXiv 2604.22901), tables 2, 3 and 4, as the authors' repository prints them. There: models of the published size
trained for 200 epochs on all series, 10,000 samples of T = 1000 steps, distances to the training series, speed-ups on
16 cores of an Apple M3 Max at batch 1. Distances to other series or of other counts are not comparable digit for digit;
what can be compared is how much caching changes them.
"""

from dataclasses import dataclass

PAPER = "arXiv 2604.22901"


@dataclass(frozen=True)
class PublishedQuality:
    """Sliced Wasserstein distances of one data set (table 2), in data units."""

    data: str
    frequency: float  # uncached
    frequency_cached: float
    time: float
    time_cached: float


@dataclass(frozen=True)
class PublishedRow:
    """One setting on ECG (tables 3 and 4): its speed-up over no caching and its SW distance."""

    name: str
    speedup: float
    sw: float


QUALITY = (
    PublishedQuality("ecg", 0.012, 0.012, 0.015, 0.015),
    PublishedQuality("nasdaq", 45.812, 46.521, 43.602, 44.215),
    PublishedQuality("nasa/charge", 0.211, 0.214, 0.229, 0.232),
    PublishedQuality("nasa/discharge", 1.999, 2.028, 2.028, 2.056),
    PublishedQuality("usdroughts", 0.633, 0.641, 0.738, 0.746),
)

ABLATION = (
    PublishedRow("baseline", 1.00, 0.014),
    PublishedRow("fixed schedule", 1.03, 0.016),
    PublishedRow("no error feedback", 1.12, 0.017),
    PublishedRow("no energy weighting", 1.23, 0.016),
    PublishedRow("full", 1.72, 0.015),
)

GRID = (
    PublishedRow("K 1, R 100", 1.38, 0.016),
    PublishedRow("K 1, R 150", 1.72, 0.015),
    PublishedRow("K 1, R 200", 1.50, 0.016),
    PublishedRow("K 1, R 500", 1.29, 0.017),
    PublishedRow("K 1, R 1000", 1.28, 0.017),
    PublishedRow("K 3, R 100", 1.38, 0.016),
    PublishedRow("K 3, R 150", 1.38, 0.016),
    PublishedRow("K 3, R 200", 1.30, 0.016),
    PublishedRow("K 3, R 500", 1.29, 0.017),
    PublishedRow("K 3, R 1000", 1.28, 0.018),
    PublishedRow("K 5, R 100", 1.38, 0.016),
    PublishedRow("K 5, R 150", 1.30, 0.017),
)
