"""Places outside this machine: URLs, the file systems behind them, and the wording of their errors.

Knows nothing of datasets. `fsspec` opens the URLs and is imported when the first one is used.
"""

from latentwire_batch.locations.errors import LocationError, location_errors
from latentwire_batch.locations.folder import Folder
from latentwire_batch.locations.remote_path import (
    GivenDirectory,
    GivenOutput,
    GivenPlace,
    Place,
    RemotePath,
    place_of,
    relative_name,
)
from latentwire_batch.locations.urls import as_argument, is_url, local_path, shown, shown_path

__all__ = [
    "Folder",
    "GivenDirectory",
    "GivenOutput",
    "GivenPlace",
    "LocationError",
    "Place",
    "RemotePath",
    "as_argument",
    "is_url",
    "local_path",
    "location_errors",
    "place_of",
    "relative_name",
    "shown",
    "shown_path",
]
