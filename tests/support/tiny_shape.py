"""Sizes that the tiny models and the fake backend share; it imports no torch."""

EOS = 1
VOCAB_SIZE = 320
HIDDEN_SIZE = 48
MAX_MODEL_LEN = 512
