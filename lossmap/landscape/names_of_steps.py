"""What in a checkpoint's name is a number, and no step: metrics, seeds, versions, sizes of networks, dates, hashes."""

from __future__ import annotations

import re

METRICS = (
    *("acc(?:uracy)?", "loss", "val", "f1", "top[-_]?[15]", "ppl", "perplexity", "bleu", "rouge", "err(?:or)?", "auc"),
    *("m?ap", "m?iou", "r2", "mse", "mae", "score"),
)
SETTINGS = (
    "lr",
    "wd",
    "bs",
    "batch",
    "seed",
    "fold",
    "rank",
    "run",
    "v(?:er(?:sion)?)?",
    "fp",
    "bf",
    "int",
    "w(?:idth)?",
)
NETWORKS = ("resnet", "resnext", "densenet", "vgg", "bert", "gpt", "t", "llama", "mnist", "cifar", "imagenet")
VIT = r"(?<![a-z])(?:vit|swin|deit)[-_]?[a-z]{0,5}[-_]?\d+"
WITH_EXPONENT = r"\d+(?:\.\d+)?e[+-]\d+|\d+\.\d+e\d+"  # a loss of 1.2e-04 is no step 4
BEHIND_A_WORD = rf"(?<![a-z])(?:{'|'.join((*METRICS, *SETTINGS, *NETWORKS))})[=_: -]?\d+(?:\.\d+)?"
BARE_METRIC = r"(?<![a-z])(?:f1|top[-_]?[15]|r2)(?!\d)"  # `top1` without a number behind it
SIZE = r"(?<![a-z\d])\d+(?:\.\d+)?[bm](?![a-z\d])"  # 7b, 125m
DATE = r"(?:19|20)\d\d-[01]\d-[0-3]\d"
HASH = r"(?<![a-z\d])(?!e\d+(?![a-z\d]))(?=\d*[a-f])(?=[a-f]*\d)[a-f\d]{6,40}(?![a-z\d])"
NO_STEP = "|".join((DATE, WITH_EXPONENT, BEHIND_A_WORD, VIT, BARE_METRIC, SIZE, HASH))
WITH_COMMAS = r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])"
THOUSANDS = r"(?<![\d.])(\d+)k(?![a-z\d])"
EXPONENTS = r"(?<![a-z\d.,])(\d{1,2})e(\d)(?![a-z\d.])"  # step_1e3; a hash has more digits, a loss a sign or decimals
CERTAIN = r"(?:(?:checkpoint|ckpt|model|weights)[-_]?)?\d+"  # names whose number is nothing else


def without_other_numbers(name: str) -> str:
    """A name in small letters, whose numbers may be steps: 1,000, 1k and 1e3 written out, other numbers taken out."""
    plain = re.sub(WITH_COMMAS, lambda found: found[0].replace(",", ""), name.lower())
    plain = re.sub(EXPONENTS, lambda found: found[1] + "0" * int(found[2]), plain)
    return re.sub(THOUSANDS, r"\g<1>000", re.sub(NO_STEP, "~", plain))


def is_certain(name: str) -> bool:
    """Whether a name is a number, or a checkpoint's word and one."""
    return re.fullmatch(CERTAIN, name.lower()) is not None
