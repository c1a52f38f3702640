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
BEST_ROUND = "best-round"
"""Round whose student is the best on val so far; 0 before any."""
AS_OF_ROUND = "as-of-round"
"""In an evaluation: which of its own tensors a client shall use, those that it had then."""
AT_HOSPITALS = "at-hospitals"
"""The server counts on images that hospitals have of their own; absent means on the recipe's."""
PROXIMAL_MU = "proximal-mu"
"""Weight of the proximal term that strategy fedprox asks for; absent or 0 means none."""
SPLIT = "split"
"""In an evaluation: val or test."""
DESCRIBE = "describe"
"""In a roll call: whether hospitals with a folder of their own shall say what they have."""

# Keys of the metric record that a client replies with.
PARTITION_ID = "partition-id"
NUM_EXAMPLES = "num-examples"
"""Images that one local epoch sees: the client's weight in FedAvg."""
NUM_SEEN = "num-seen"
"""Images seen in all local epochs: the divisor of the sums."""
NUM_STEPS = "num-steps"
"""Optimiser steps of the local training."""
CLASS_COUNTS = "class-counts"
"""Training images per class; like all that is per class, not sent with objective moco."""
CLASS_SCORES = "class-scores"
"""Sum of the loss per example for each class, of the student as it was received."""
CLASS_LOSSES = "class-losses"
"""Sum of the loss per example for each class, while training. With balanced sampling, and of a
straggler, it is what the sum over the class's own images would be at the mean loss of those that
were drawn."""
PROBABILITIES = "probabilities"
"""Class probabilities on the client's own part of a held-out split, row by row: in a training
reply those of its own student on val, in an evaluation's those that were asked for."""
CONFUSION = "confusion"
"""Instead of ``PROBABILITIES``, from a hospital whose images the server does not have: the
confusion matrix (true, predicted) of its own student on its own val images, row by row."""
SECONDS = "seconds"
BYTES_DOWN = "bytes-down"
"""Noted by the server: bytes of the values that it sent to the client in a round."""
BYTES_UP = "bytes-up"
"""Noted by the server: bytes of the values that the client sent."""
SUM = "sum."
"""Prefix of sums over examples of a loss term, such as ``sum.loss``."""
MEAN = "mean."
"""Prefix of values that belong to a client alone and are never pooled, such as ``mean.prior``."""
WORK = MEAN + "work"
"""Of a simulated straggler, or who could have been one: fraction of its steps that were done."""
DELAY = MEAN + "delay"
"""How much longer it takes, in units of its usual time; 0 if it is not slow."""

# What a hospital with a folder of its own adds when the roll is called. Metric record:
TRAIN_COUNTS = "train-counts"
"""Its training images per class."""
VAL_COUNTS = "val-counts"
"""Its own val images per class."""
IMAGE_SIZE = "image-size"
"""Height and width of its images in pixels."""
# Config record:
SITE_NAME = "site-name"
CLASS_NAMES = "class-names"
RECIPE_SHA256 = "recipe-sha256"
"""``Recipe.hash`` of the recipe that it has opened."""
TEACHER_SHA256 = "teacher-sha256"
"""Of its teacher's weights and input normalisation; empty without a teacher."""

# Arrays that are not the student's.
PROMPTS = "prompts/"
"""Prefix of the prompt generator's arrays, where clients share it."""
