"""Defaults that are reported: the data and the checkpoint that were not named."""

import pytest
import torch

from lossmap.cli import load_problem
from lossmap.cli.surface import COMMAND


def completed(line, **given):
    said = []
    settings = COMMAND.parse(line.split(), given)
    return load_problem.with_default_problem(settings, said.append), said


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--mpi --cuda --model vgg9 --x=-1:1:51 --model_file a.t7 --dir_type states", "cifar10"),
        ("--model resnet56_noshort --model_file a.t7", "cifar10"),
        ("--model resnet56 --model_file a.t7 --dataset digits32", "digits32"),
        ('--model resnet20 --model-file a.t7 --model-args {"channels":1}', "digits"),
        ("--model mlp --model-file a.pt", "digits"),
        ("--model resnet20-w8 --model-file a.pt", "digits"),
        ("--model net.py:vgg9 --model-file a.pt", "digits"),
    ],
)
def test_models_of_the_papers_use_cifar10_by_default(line, expected):
    settings, said = completed(line)
    assert settings.data.dataset == expected
    assert [text.startswith("no --dataset: cifar10, for which") for text in said] == [True] * (expected == "cifar10")


def test_data_that_a_result_names_are_kept():
    assert completed("--model vgg9 --model-file a.t7", dataset="digits32")[0].data.dataset == "digits32"


def test_the_last_checkpoint_of_a_folder_is_used_and_a_model_without_any_is_reported(tmp_path):
    for name in ("step_2.pt", "step_10.pt"):
        torch.save({"w": torch.ones(1)}, tmp_path / name)
    settings, said = completed(f"--model mlp --model-folder {tmp_path}")
    assert settings.model.model_file == str(tmp_path / "step_10.pt") and "the run's last checkpoint" in said[0]
    assert completed("--model mlp")[1] == ["no --model-file: the weights are as mlp initializes them"]
    with pytest.raises(ValueError, match="no net is named 'mpl'; nearest: mlp"):
        completed("--model mpl")
