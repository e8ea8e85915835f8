"""Pipes and pointers of Git LFS where files are meant: a sentence, and no command that waits for ever."""

import os
import threading

import pytest

from lossmap.cli.__main__ import main
from lossmap.special_files import POINTER, SPECIAL

SURFACE = ("surface", "--model=mlp", "--x=-1:1:3")
COMMANDS = [
    (*SURFACE, "--surf-file=p.h5"),
    (*SURFACE, "--config=p.toml"),
    (*SURFACE, "--model-file=p.pt"),
    (*SURFACE, "--loss=p.py:loss"),
    (*SURFACE, "--metric=p.py:error"),
    (*SURFACE, "--dataset=npz:p.npz"),
    (*SURFACE, "--dir-file=p.h5"),
    ("surface", "--model=p.py:net"),
    ("surface", "--model=hf:p.pt", "--dataset=hf:p.txt"),
    ("campaign", "p.toml", "plan"),
    ("campaign", "table.toml", "plan"),
    ("campaign", "inputs.toml", "plan"),
    ("submit", "--dry-run", "--site=p.toml", "--", *SURFACE),
    ("submit", "--dry-run", "--each=p.pt", "--", "surface", "--model=mlp", "--model-file={}"),
    ("draw", "p.h5"),
    ("topology", "p.h5"),
    ("connect", "p.pt", "p.pt", "--model=mlp"),
]


@pytest.fixture
def pipes(tmp_path, monkeypatch):
    """A folder of pipes, into which something is written at the end lest a command that waits wait for ever."""
    monkeypatch.chdir(tmp_path)
    names = ["p.toml", "p.csv", "p.pt", "p.py", "p.npz", "p.h5", "p.txt"]
    for name in names:
        os.mkfifo(name)
    (tmp_path / "table.toml").write_text('[table]\nfile = "p.csv"\n[surface]\nmodel = "mlp"\n')
    (tmp_path / "inputs.toml").write_text('[over]\nmodel_file = ["p.pt"]\n[surface]\nmodel = "mlp"\n')

    def end():
        for name in names:
            try:
                os.close(os.open(tmp_path / name, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # nobody waits for it
                continue

    waker = threading.Timer(20, end)
    waker.start()
    yield tmp_path
    waker.cancel()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command))
def test_a_pipe_is_named_where_a_file_is_meant(pipes, capsys, command):
    assert main(list(command)) == 2
    assert SPECIAL in capsys.readouterr().err


def test_pipes_in_the_folder_of_a_campaign_are_not_waited_for(pipes, capsys):
    (pipes / "c.toml").write_text('[surface]\nmodel = "mlp"\nx = "-1:1:3"\n')
    assert main(["campaign", "c.toml", "run"]) == 0
    for file in [pipes / "c" / "index.jsonl", *(pipes / "c" / "members").glob("*.done.json")]:
        file.unlink()
        os.mkfifo(file)
        capsys.readouterr()
        assert main(["campaign", "c.toml", "status"]) == 0
        assert "1        1" in capsys.readouterr().out
    os.mkfifo("q.h5.estimate.json")
    assert main([*SURFACE, "--surf-file=q.h5"]) == 0


@pytest.mark.parametrize(
    "flag", ["model-file=net.pt", "dataset=npz:net.npz", "dataset=hf:corpus.txt", "model=hf:folder"]
)
def test_a_pointer_of_git_lfs_is_named_and_never_read_as_data(tmp_path, monkeypatch, capsys, flag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("net.pt", "net.npz", "corpus.txt", "folder/model.safetensors"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 9\n")
    (tmp_path / "folder/config.json").write_text('{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}')
    data = ["--dataset=digits"] if "model=hf" in flag else []
    assert main([*SURFACE, f"--{flag}", *data]) == 2
    assert POINTER in capsys.readouterr().err
