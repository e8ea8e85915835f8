"""Names of results: different surveys have different ones, the same command the same one."""

import re

import pytest

from lossmap.cli.output_path import MAX_NAME_LENGTH, result_path
from lossmap.cli.surface import COMMAND


def name(line):
    return str(result_path(COMMAND.parse(line.split())))


def test_the_surveys_of_the_original_scripts_have_a_name_each():
    nets = "cifar10/trained_nets/{}/model_300.t7"
    runs = [
        nets.format(f"resnet56_sgd_lr=0.1_bs={size}_wd={decay}_save_epoch=1")
        for size in (128, 4096)
        for decay in (0.0, 0.0005)
    ]
    lines = [
        f"--model resnet56 --model_file {run} --x=-1:1:51 {more}" for run in runs for more in ("", "--dir_type states")
    ]
    lines += [f"{line} --xnorm layer" for line in lines] + [f"{line} --y=-1:1:51" for line in lines]
    lines += [f"--model resnet56 --model_file {a} --model_file2 {b} --x=0:1:5" for a in runs for b in runs]
    lines += [
        f"--model resnet56 --x=0:1:5 {more}" for more in ("--seed 1", "--idx 1", "--xdir hessian:max", "--xdir pca:2")
    ]
    names = [name(line) for line in lines]
    assert len(set(names)) == len(lines) and [name(line) for line in lines] == names
    assert all(re.fullmatch(r"[\w.+-]+\.h5", n) for n in names)
    assert names[0] == "resnet56_sgd_lr-0.1_bs-128_wd-0.0_save_epoch-1_model_300_random_s0_-1to1x51.h5"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--model mlp --x=0:1:3", "mlp_random_s0_0to1x3.h5"),
        ("--model-file net.pt --x=0:1:3 --y=0:2:2 --ynorm none", "net_random-random-none_s0_0to1x3_0to2x2.h5"),
        ("--model-file a.pt --xdir to:run/b.pt --x=0:1:3", "a_to-run_b_s0_0to1x3.h5"),
        ("--problem own.py:make --dir-file planes/p.h5 --x=0:1:3", "own.py-make_p_s0_0to1x3.h5"),
        ("--surf-file line", "line.h5"),
        ("--surf-file line.nc", "line.nc"),
        ("--surf-file run.1", "run.1.h5"),
    ],
)
def test_a_result_is_named_after_what_it_holds(line, expected):
    assert name(line) == expected


def test_a_long_name_is_cut_and_stays_its_own():
    long = [f"--model-file {'x' * 150}/{'y' * 60}{i}.pt --x=0:1:3" for i in range(2)]
    names = [name(line) for line in long]
    assert names[0] != names[1] and all(len(n) == MAX_NAME_LENGTH + 3 for n in names)
