"""Published numbers that results are shown beside."""

from typing import NamedTuple

DTU_SCANS = (24, 37, 40, 55, 63, 65, 69, 83, 97, 105, 106, 110, 114, 118, 122)
"""The 15 scans of DTU on which surfaces from neural fields are compared."""


class ChamferRow(NamedTuple):
    """Chamfer distances of one method on `DTU_SCANS`, millimetres."""

    scans: tuple[float, ...]
    mean: float
    """As printed."""


CHAMFER: dict[str, ChamferRow] = {
    "Instant NGP": ChamferRow(
        (1.68, 1.93, 1.57, 1.16, 2.00, 1.56, 1.81, 2.33, 2.16, 1.88, 1.76, 2.32, 1.86, 1.80, 1.72), 1.84
    ),
    "NeRF": ChamferRow(
        (1.42, 1.61, 1.67, 0.80, 1.86, 1.29, 1.20, 1.60, 1.65, 1.11, 0.95, 2.10, 0.98, 1.30, 0.92), 1.36
    ),
    "IDR": ChamferRow((1.63, 1.87, 0.63, 0.48, 1.04, 0.79, 0.77, 1.33, 1.16, 0.76, 0.67, 0.90, 0.42, 0.51, 0.53), 0.90),
    "VolSDF": ChamferRow(
        (1.14, 1.26, 0.81, 0.49, 1.25, 0.70, 0.72, 1.29, 1.18, 0.70, 0.66, 1.08, 0.42, 0.61, 0.55), 0.86
    ),
    "HF-NeuS": ChamferRow(
        (1.11, 1.28, 0.61, 0.47, 0.97, 0.68, 0.62, 1.34, 0.91, 0.73, 0.53, 1.82, 0.38, 0.54, 0.51), 0.83
    ),
    "NeuS": ChamferRow(
        (0.93, 1.08, 0.56, 0.37, 1.13, 0.72, 0.61, 1.46, 1.00, 0.82, 0.52, 1.48, 0.36, 0.45, 0.49), 0.80
    ),
    "NeuS+CN": ChamferRow(
        (0.91, 0.86, 0.55, 0.37, 1.16, 0.67, 0.61, 1.43, 0.93, 0.78, 0.53, 1.22, 0.35, 0.42, 0.49), 0.75
    ),
}
"""Table VII of the paper on Cross Normalization; NeuS+CN is its row "Ours"."""

NEUS_WITH_MASKS_MEAN = 0.77
"""Mean of NeuS with masks as its own repository reports it, beside the 0.80 in the paper's table."""
