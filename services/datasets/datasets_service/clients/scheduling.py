"""The scheduling service behind `ports.Jobs`."""

from __future__ import annotations

from servicekit import job_client
from servicekit.channels import LOOP_PATIENCE_SECONDS, Channels


class JobsClient(job_client.JobsClient):
    """Jobs of the scheduling service; only a loop deletes them here."""

    def __init__(self, channels: Channels) -> None:
        super().__init__(channels, "datasets", delete_patience_seconds=LOOP_PATIENCE_SECONDS)
