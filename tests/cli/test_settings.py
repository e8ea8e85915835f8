import subprocess
import sys

import pytest

from lossmap.cli.command_line import parse
from lossmap.cli.connect import COMMAND as CONNECT
from lossmap.cli.entry_point import guarded
from lossmap.cli.health import COMMAND as HEALTH
from lossmap.cli.setting_groups import DataSettings, DrawSettings, ModelSettings, PlaneSettings, RunSettings
from lossmap.cli.settings import UsageError
from lossmap.cli.spectrum import COMMAND as SPECTRUM
from lossmap.cli.train import COMMAND as TRAIN

ALL = (ModelSettings, DataSettings, PlaneSettings, RunSettings, DrawSettings)


def read(line, **more):
    return parse(ALL, line.split(), prog="lossmap surface", about="test", **more)


def test_hyphens_and_underscores_are_the_same():
    assert read("--model-file a.pt").model.model_file == read("--model_file a.pt").model.model_file == "a.pt"
    assert read("--dir_type=states").plane.dir_type == "states"


def test_ranges_that_begin_with_a_minus_are_taken_with_and_without_an_equals_sign():
    assert read("--x -1:1:51").plane.x == read("--x=-1:1:51").plane.x == "-1:1:51"
    assert read("--y -.5:1:3").plane.y == "-.5:1:3"


ORIGINAL = [  # command lines as its README and scripts have them
    "--mpi --cuda --model vgg9 --x=-0.5:1.5:401 --dir_type states --model_file a.t7 --model_file2 b.t7 --plot",
    "--mpi --cuda --model resnet56 --x=-1:1:51 --model_file m.t7 --dir_type weights --xnorm filter "
    "--xignore biasbn --plot",
    "--mpi --cuda --model resnet56 --x=-1:1:51 --y=-1:1:51 --model_file m.t7 --dir_type weights --xnorm filter "
    "--xignore biasbn --ynorm filter --yignore biasbn  --plot",
    "--x=-1:1:5 --threads 4 --ngpu 2 --batch_size 64 --dataset cifar10 --datapath cifar10/data --raw_data "
    "--data_split 2 --split_idx 1 --trainloader a --testloader b --model resnet56 --model_folder f --model_file a "
    "--model_file2 b --model_file3 c --loss_name mse --dir_file d --dir_type states --y=-1:1:5 --xnorm layer "
    "--ynorm weight --xignore biasbn --yignore biasbn --same_dir --idx 3 --surf_file s --proj_file p --loss_max 5 "
    "--vmax 10 --vmin 0.1 --vlevel 0.5 --show --log --plot",
]


@pytest.mark.parametrize("line", ORIGINAL)
def test_command_lines_of_the_original_tool_are_understood(line):
    settings = read(line)
    assert settings.draw.plot
    if "--cuda" in line:
        assert settings.run.device == "cuda"
    if "--mpi" in line:
        assert any("--mpi is not needed any more" in note for note in settings.notes)


def test_a_config_file_gives_defaults_and_flags_win(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('dataset = "digits32"\nseed = 4\n[run]\nbatch-size = 32\n[model]\nmodel-args = {depth = 20}\n')
    settings = read(f"--config {config} --seed 5")
    assert (settings.data.dataset, settings.plane.seed, settings.run.batch_size) == ("digits32", 5, 32)
    assert settings.model.model_args == '{"depth": 20}'
    assert {"dataset", "seed", "batch_size"} <= settings.explicit


def test_settings_make_themselves_again_from_what_a_file_holds():
    settings = read("--model mlp --x 0:1:3 --overwrite --stop-after 5")
    again = read("", defaults=settings.resolved())
    assert again.resolved() == settings.resolved()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--modle a", "unknown flag --modle; did you mean --model"),
        ("--yas", "unknown flag --yas; see --help"),  # `--abs` is as like it as dashes make it
        ("--seed one", "--seed must be a whole number; got 'one'"),
        ("--split all", "--split must be one of train, test, both; got 'all'"),
        ("--model", "--model needs a value"),
        ("--stop-after soon", "--stop-after must be a number; got 'soon'"),
        ("--batch-size 0", "--batch-size must be >= 1; got 0"),
        ("--threads=-2", "--threads must be >= 1; got -2"),
        ("--split-idx=-1", "--split-idx must be >= 0; got -1"),
        ("--config /nowhere.toml", "--config /nowhere.toml: No such file or directory"),
    ],
)
def test_each_mistake_is_one_message(line, text):
    with pytest.raises(UsageError) as error:
        read(line)
    assert text in str(error.value)


def test_the_other_end_of_a_line_is_named_to_whom_names_it_otherwise(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('model_file2 = "b.pt"')
    for words, said in (
        (["--config", str(config)], "unknown setting 'model_file2'; did you mean other?"),
        (["--model-file2", "b.pt"], "unknown flag --model-file2; did you mean --other?"),
        (["--model-file", "b.pt", "--othr", "a.pt"], "unknown flag --othr; did you mean --other"),
    ):
        with pytest.raises(UsageError) as error:
            CONNECT.parse(words)
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede = 1", "unknown setting 'sede'; did you mean seed"),
        ("seed = 'one'", "seed must be a whole number; got 'one'"),
        ("overwrite = 1", "overwrite must be true or false; got 1"),
        ("split = 'all'", "split must be one of train, test, both; got 'all'"),
        ("= 3", "is not TOML"),
    ],
)
def test_mistakes_in_a_config_file_are_one_sentence_too(tmp_path, text, message):
    config = tmp_path / "run.toml"
    config.write_text(text)
    with pytest.raises(UsageError) as error:
        read(f"--config {config}")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("command", "line", "notes"),
    [
        (SPECTRUM, "--no-density --density-steps 8", ["--density-steps has no effect: it needs --density"]),
        (SPECTRUM, "--fisher-draws 2", ["--fisher-draws has no effect: it needs --matrix mc-fisher"]),
        (SPECTRUM, "--trace none --trace-error 0.1", ["--trace-error has no effect: it needs --trace"]),
        (CONNECT, "a b --curve-steps 9", ["--curve-steps has no effect: it needs --curve bezier or polygon"]),
        (
            HEALTH,
            "--momentum 0.9 --nesterov",
            [f"--{n} has no effect: it needs --lr" for n in ("momentum", "nesterov")],
        ),
        (SPECTRUM, "--density-steps 8 --l2 0.1 --l2-retrain 2 --matrix mc-fisher --fisher-draws 2", []),
        (CONNECT, "a b --curve polygon --curve-steps 9 --bn-samples 4", []),
        (HEALTH, "--momentum 0.9 --nesterov --lr 0.1", []),
        (TRAIN, "--milestones 0.5", ["--milestones has no effect: it needs --schedule step"]),
        (TRAIN, "--optimizer adam --momentum 0.5", ["--momentum has no effect: it needs --optimizer sgd"]),
        (TRAIN, "--schedule step --milestones 0.5 --momentum 0.5", []),
    ],
)
def test_a_flag_that_changes_nothing_says_so(command, line, notes):
    assert list(command.parse(line.split()).notes) == notes


def test_what_a_file_or_a_default_sets_is_not_reported(tmp_path):
    stored = SPECTRUM.parse(["--density-steps", "8"]).resolved()
    assert SPECTRUM.parse(["--no-density"], stored).notes == ()
    config = tmp_path / "c.toml"
    config.write_text("density_steps = 8")
    notes = SPECTRUM.parse(["--no-density", "--config", str(config)]).notes
    assert notes == ("--density-steps has no effect: it needs --density",)


def test_help_names_each_flag_and_its_default(capsys):
    with pytest.raises(SystemExit) as leave:
        read("--help")
    assert leave.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--model-file2", "--xignore", "--stop-after", "--vlevel", "--no-store-directions", "--config"):
        assert flag in text
    assert "(default: resnet20-w8)" in text


def test_a_command_turns_errors_into_one_message_and_exit_code_2(capsys, monkeypatch):
    @guarded
    def command():
        raise ValueError("this is wrong")

    @guarded
    def blind():
        raise PermissionError(13, "Permission denied", "net.pt")

    assert command() == blind() == 2
    assert capsys.readouterr().err == "lossmap: this is wrong\nlossmap: net.pt: Permission denied\n"
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert command() == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOSSMAP_DEBUG", "1")
    with pytest.raises(ValueError, match="is wrong"):
        command()


def test_a_closed_pipe_is_no_error():
    code = (
        "import sys\nfrom lossmap.cli.entry_point import guarded\n"
        "@guarded\ndef command():\n    for i in range(100_000):\n        print(i)\n    return 0\n"
        "sys.exit(command())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_reading_options_does_not_import_torch():
    code = "import sys, lossmap.cli.settings, lossmap.cli.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
