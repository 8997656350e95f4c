"""The command line of `collect` as settings, for its first process and its workers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from latentwire.settings_flags import origin_of
from latentwire_batch.config import CollectSettings
from latentwire_batch.flags import parse_settings
from latentwire_batch.shards.choice import ShardChoice, choose_shard


def collect_settings(args: Sequence[str]) -> CollectSettings:
    """Parse the command line after `latentwire collect`; raises like `parse_settings`."""
    return parse_settings(
        CollectSettings,
        args,
        prog="latentwire collect",
        description="Plan every task of a dataset, and store the plans with their latents.",
    )


def chosen_shard(settings: CollectSettings, args: Sequence[str]) -> ShardChoice:
    """Choose the shard of a command line; raises like `choose_shard`."""
    return choose_shard(settings.shard, os.environ, origin_of("shard", CollectSettings, args))
