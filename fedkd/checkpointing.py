"""What a run writes as it goes, so that it can be resumed: settings."""

from pydantic import Field

from fedkd.config import Section


class CheckpointConfig(Section):
    """What a run writes as it goes, so that `fedkd resume` can go on with it. Changes no number."""

    every: int = Field(default=1, ge=0)
    """After every so many rounds all that the rest of the run depends on is written; 0 writes
    nothing, and the run cannot be resumed."""
    every_s: float = Field(default=600.0, ge=0)
    """Within a round, after so many seconds, also what clients have finished and how far those in
    training are; 0 waits for the end of the round."""
    keep: int = Field(default=2, ge=1, le=1000)
    """Checkpoints that stay, the latest ones; the best student stays beside them."""
