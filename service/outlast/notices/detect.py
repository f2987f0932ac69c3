"""Detects the cloud of this machine from its firmware (DMI), without network access."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from outlast.notices.aws import Aws
from outlast.notices.azure import Azure
from outlast.notices.base import Cloud
from outlast.notices.gce import Gce

DMI: Final = Path("/sys/class/dmi/id")
CLOUDS: Final[dict[str, type[Gce] | type[Aws] | type[Azure]]] = {
    "gce": Gce,
    "aws": Aws,
    "azure": Azure,
}
_AZURE_TAG: Final = "7783-7084-3265-9085-8269-3286-77"


def found_in(dmi: Path = DMI) -> str | None:
    """Return the name of the cloud whose firmware this is; None if it is none of these."""
    if (
        _says(dmi, "product_name") == "Google Compute Engine"
        or _says(dmi, "bios_vendor") == "Google"
    ):
        return "gce"
    vendors = {_says(dmi, name) for name in ("sys_vendor", "board_vendor", "bios_vendor")}
    if "Amazon EC2" in vendors or _says(dmi, "bios_version").endswith(".amazon"):
        return "aws"
    if _says(dmi, "chassis_asset_tag") == _AZURE_TAG:
        return "azure"
    return None


def choose(choice: str, dmi: Path = DMI) -> Cloud | None:
    """Return the cloud to watch. `choice`: a cloud's name, "none", or "auto" to detect it."""
    name = found_in(dmi) if choice == "auto" else choice
    return CLOUDS[name]() if name in CLOUDS else None


def _says(dmi: Path, name: str) -> str:
    try:
        return (dmi / name).read_text(errors="replace").strip()
    except OSError:
        return ""
