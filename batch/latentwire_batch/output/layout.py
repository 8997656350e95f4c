"""Names in the output directory. Opens no file except to recognise a README made here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DATA_NAME = "data.parquet"
HF_DATASET_NAME = "hf_dataset"
FAILURES_NAME = "failures.jsonl"
CARD_NAME = "README.md"
MANIFEST_NAME = "manifest.json"
# In the order of installation: the manifest comes last, so what it describes is already there.
FINAL_NAMES = (DATA_NAME, HF_DATASET_NAME, FAILURES_NAME, CARD_NAME, MANIFEST_NAME)
# Distinguishes a dataset card that was made here from one that a person wrote.
CARD_MARK = "<!-- made by latentwire -->"
_CARD_HEAD_BYTES = 1 << 13
PARTIAL_NAME = ".partial"
# Settings of an unfinished run, in an output directory and behind a URL.
CLAIM_NAME = f"{PARTIAL_NAME}/settings.json"
# Records of the run that writes to a folder behind a URL.
OWNERS_NAME = f"{PARTIAL_NAME}/owner"
# Rows of an unfinished run that replicas on other machines put there.
PARTS_NAME = f"{PARTIAL_NAME}/parts"


@dataclass(frozen=True)
class OutputLayout:
    """Where everything in one output directory is.

    Attributes:
        root: the output directory, or the directory in which a run works whose output goes
            elsewhere.
        is_remote: whether the finished files go elsewhere, so that `root` never holds them.
    """

    root: Path
    is_remote: bool = False

    @property
    def flag(self) -> str:
        """The flag that names `root`."""
        return "--work-dir" if self.is_remote else "--output-dir"

    @property
    def finished(self) -> Path:
        """Holds the finished output, or a copy of what a retry needs of it."""
        return self.partial / "previous" if self.is_remote else self.root

    @property
    def partial(self) -> Path:
        """Holds what an unfinished run needs to resume."""
        return self.root / PARTIAL_NAME

    @property
    def lock(self) -> Path:
        """Locked while a run writes here."""
        return self.partial / "lock"

    @property
    def owner_token(self) -> Path:
        """Identifies the run of this directory where its output goes elsewhere."""
        return self.partial / "owner"

    @property
    def settings(self) -> Path:
        """Settings of the unfinished run; exists from its first row on."""
        return self.root / CLAIM_NAME

    @property
    def log(self) -> Path:
        """Log of the settled rows; of rank 0 where there are several."""
        return self.partial / "rows.log"

    def rank_log(self, rank: int) -> Path:
        """Log of the rows that one rank settled."""
        return self.partial / f"rows-{rank}.log" if rank else self.log

    def part_log(self, name: str) -> Path:
        """Log of the rows that a replica on another machine settled; read as one of another rank.

        Args:
            name: of the replica's process.
        """
        return self.partial / f"rows-part-{name}.log"

    def logs_of_others(self, rank: int) -> list[Path]:
        """Logs of the other ranks, from this launch or an earlier one."""
        return sorted(set(self.partial.glob("rows*.log")) - {self.rank_log(rank)})

    @property
    def launch(self) -> Path:
        """Announcement of rank 0 to the others."""
        return self.partial / "launch.json"

    def rank_lock(self, rank: int) -> Path:
        """Locked while a rank takes part in the run."""
        return self.partial / f"rank-{rank}.lock"

    def rank_note(self, rank: int) -> Path:
        """Progress of a rank: running or done."""
        return self.partial / f"rank-{rank}.json"

    @property
    def staging(self) -> Path:
        """Final files while they are being made."""
        return self.partial / "final"

    @property
    def marker(self) -> Path:
        """Exists when the staged files are complete and are being moved into place."""
        return self.partial / "install.json"

    @property
    def upload_record(self) -> Path:
        """Which staged files have arrived where the output goes."""
        return self.partial / "upload.jsonl"

    @property
    def joined(self) -> Path:
        """Which final files a cluster has written whole."""
        return self.partial / "joined.jsonl"

    @property
    def placed(self) -> Path:
        """Names the final files that a cluster wrote to where the output goes, with their sizes."""
        return self.partial / "placed.json"

    @property
    def discarded(self) -> Path:
        """Names the splits whose files are being removed."""
        return self.partial / "discarded.json"

    @property
    def manifest(self) -> Path:
        """Exists when the output is complete."""
        return self.finished / MANIFEST_NAME

    @property
    def failures(self) -> Path:
        """Rows without a latent, one JSON object per line."""
        return self.finished / FAILURES_NAME

    @property
    def hf_dataset(self) -> Path:
        """The dataset as `datasets.load_from_disk` opens it."""
        return self.finished / HF_DATASET_NAME

    def has_final_files(self) -> bool:
        """Whether any file of a finished output exists."""
        return any((self.root / name).exists() for name in FINAL_NAMES if name != CARD_NAME)

    def is_replaceable(self, name: str) -> bool:
        """Whether a final file may be replaced or removed: a person's own README stays."""
        if name != CARD_NAME or not (self.root / name).exists():
            return True
        with (self.root / name).open("rb") as file:
            return CARD_MARK.encode() in file.read(_CARD_HEAD_BYTES)
