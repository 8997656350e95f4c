"""`manifest.json`: what a finished output is, so that it can be told apart and made again.

Holds no host name, no address and no path.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from latentwire.protocol import latent_info
from latentwire_batch.assembly import Totals

_PACKAGES = ("latentwire", "numpy", "pyarrow")
FORMAT = 1


def build_manifest(
    run_settings: dict[str, Any], totals: Totals, elapsed_s: float, fleet: dict[str, Any]
) -> dict[str, Any]:
    """Put a manifest together.

    Args:
        run_settings: what was asked for, model included; compared by later runs.
        totals: what came out.
        elapsed_s: seconds of all runs that made it, assembly included.
        fleet: number, devices and versions of the replicas that answered last.
    """
    model = run_settings["model"]
    latent = latent_info(model["model"], model["revision"])
    return {
        "format": FORMAT,
        "model": model,
        "latent": latent.model_dump(include={"layer", "normed", "alignment"}),
        "settings": {key: value for key, value in run_settings.items() if key != "model"},
        "counts": {"rows": run_settings["data"]["num_rows"], **totals.as_json()},
        "replicas": fleet,
        "elapsed_s": round(elapsed_s, 3),
        "versions": {
            **{package: version(package) for package in _PACKAGES},
            "python": platform.python_version(),
        },
    }


def settings_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Give back the settings a finished output was made with, model included."""
    return {**manifest["settings"], "model": manifest["model"]}
