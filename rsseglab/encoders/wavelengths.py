"""Wavelengths of bands, which DOFA makes its patch embedding from."""

import re
from collections.abc import Sequence

import numpy as np

from rsseglab.errors import UserError

#: Band centres in micrometres: colours as Sentinel-2 has them, then the names of Sentinel-2's bands.
CENTRES_UM = {
    "coastal": 0.443, "blue": 0.490, "green": 0.560, "red": 0.665, "red_edge": 0.705, "nir": 0.842,
    "swir1": 1.610, "swir2": 2.190,
    "b01": 0.443, "b02": 0.490, "b03": 0.560, "b04": 0.665, "b05": 0.705, "b06": 0.740, "b07": 0.783,
    "b08": 0.842, "b8a": 0.865, "b09": 0.945, "b10": 1.375, "b11": 1.610, "b12": 2.190,
}  # fmt: skip

#: What imaging spectrometers such as AVIRIS and EnMAP cover, in micrometres.
SPECTRUM_UM = (0.4, 2.5)


def band_wavelengths(names: Sequence[str]) -> tuple[float, ...] | None:
    """Centres of named bands.

    Args:
        names: colours (``red``, ``nir``, ``swir1``, ...), bands of Sentinel-2 (``B02``, ``B8A``, ...) or wavelengths
            with their unit (``665nm``, ``0.665um``), upper or lower case.

    Returns:
        Micrometres, one a band; ``None`` where any name says nothing (``band_7``).
    """
    centres = [_centre(name) for name in names]
    return None if None in centres else tuple(c for c in centres if c is not None)


def _centre(name: str) -> float | None:
    number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(nm|um|µm)", name.strip(), flags=re.IGNORECASE)
    if number:
        return float(number[1]) / (1000 if number[2].lower() == "nm" else 1)
    return CENTRES_UM.get(name.lower().replace(" ", "_"))


def check_wavelengths(wavelengths_um: Sequence[float] | None, bands: int) -> tuple[float, ...]:
    """The wavelengths to build with: those given, or else the default for this number of bands.

    The default is red, green, blue for three bands, these and near infrared for four, and for any other number
    bands evenly spaced over `SPECTRUM_UM`, both ends included.

    Raises:
        UserError: not one wavelength a band, or not in micrometres.
    """
    if wavelengths_um is None:
        colours = {3: ("red", "green", "blue"), 4: ("red", "green", "blue", "nir")}.get(bands)
        even = np.linspace(*SPECTRUM_UM, bands)
        return tuple(CENTRES_UM[c] for c in colours) if colours else tuple(float(w) for w in even)
    if len(wavelengths_um) != bands:
        raise UserError(f"{len(wavelengths_um)} wavelengths for {bands} bands; give one a band, in micrometres.")
    if not all(0.1 < w < 20 for w in wavelengths_um):
        raise UserError(f"wavelengths {min(wavelengths_um)} to {max(wavelengths_um)}; give micrometres, as 0.665.")
    return tuple(float(w) for w in wavelengths_um)
