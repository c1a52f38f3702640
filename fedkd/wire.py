"""What travels between server and clients: names of records, metrics and arrays.

Clients and strategies never import each other; they agree here. Counts and sums travel, never
ratios: the server divides, once, over all clients.
"""

# Records of a message.
ARRAYS = "arrays"
METRICS = "metrics"
CONFIG = "config"

# Keys of the config record that the server sends with a round.
ROUND = "server-round"
SCORE_CLASSES = "score-classes"

# Keys of the metric record that a client replies with.
PARTITION_ID = "partition-id"
NUM_EXAMPLES = "num-examples"
"""Images that one local epoch sees: the client's weight in FedAvg."""
NUM_SEEN = "num-seen"
"""Images seen in all local epochs: the divisor of the sums."""
CLASS_COUNTS = "class-counts"
"""Training images per class."""
CLASS_SCORES = "class-scores"
"""Sum of the loss per example for each class, of the student as it was received."""
CLASS_LOSSES = "class-losses"
"""Sum of the loss per example for each class, while training."""
SECONDS = "seconds"
SUM = "sum."
"""Prefix of sums over examples of a loss term, such as ``sum.loss``."""
MEAN = "mean."
"""Prefix of values that belong to a client alone and are never pooled, such as ``mean.prior``."""

# Arrays that are not the student's.
PROMPTS = "prompts/"
"""Prefix of the prompt generator's arrays, where clients share it."""
