"""Suggestions that several rules make, each with its source and its caveat."""

from __future__ import annotations

from lossmap.health.finding import Suggestion

RETRAINING = "requires retraining"

CLIP = Suggestion(
    "clip the gradient norm",
    "Pascanu et al. 2013, arXiv:1211.5063; Zhang et al. 2020, arXiv:1905.11881",
    "hides the cause; the threshold is one more hyperparameter",
)
SECOND_ORDER = Suggestion(
    "a second-order optimizer (K-FAC, Shampoo)",
    "Martens and Grosse 2015, arXiv:1503.05671; Gupta et al. 2018, arXiv:1802.09568",
    "more expensive per step; its gain over well-tuned momentum varies between problems",
)
NORMALIZE = Suggestion(
    "a normalization after the layer",
    "Ioffe and Szegedy 2015, arXiv:1502.03167; Ba et al. 2016, arXiv:1607.06450",
    f"changes the network: {RETRAINING}; batch norm couples the samples of a batch",
)
INITIALIZE = Suggestion(
    "an initialization that preserves signal magnitudes",
    "He et al. 2015, arXiv:1502.01852",
    f"acts at the start of training; {RETRAINING}",
)
SMALLER_STEP = Suggestion(
    "a smaller learning rate, or a warm-up",
    "Goyal et al. 2017, arXiv:1706.02677; Gilmer et al. 2022, arXiv:2110.04369",
    "slower; a large initial step was seen to generalize better once it is reduced (Li et al. 2019, arXiv:1907.04595)",
)
