"""Batch scripts: their text, what bash makes of it, and what is said to sbatch. No SLURM is needed here."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossmap.parallel import slurm
from lossmap.parallel.shards import Shard, sibling_shards
from lossmap.parallel.slurm import Job
from lossmap.parallel.slurm_site import Site, read_site

JOB = Job(("surface", "--x=-1:1:5"), Path("/data/s.h5"), Path("/data"))
AWKWARD = ["a b", "it's", 'say "x"', "$HOME", "`id`", "a\nb", "--x=-1:1:5", "*", "\\", "", "ü", "#", "%j", "@work@"]


def lines(job=JOB, site=None):
    return slurm.batch_script(job, site or Site()).splitlines()


def directives(job=JOB, site=None):
    return [line.removeprefix("#SBATCH ") for line in lines(job, site) if line.startswith("#SBATCH ")]


def test_the_template_in_the_package_is_the_one_that_people_read():
    root = Path(__file__).resolve().parents[2]
    assert (root / "slurm" / "job.sbatch").read_text() == slurm.TEMPLATE.read_text()


def test_a_script_has_no_placeholder_left_and_is_sound_bash():
    for job in (JOB, replace(JOB, nodes=2, array=3, requeue=True), Job(("health",), None, Path("/data"))):
        text = slurm.batch_script(job, Site())
        assert not re.search(r"@[a-z]+@", text)
        assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""


def test_the_directives_request_what_the_job_needs():
    job = replace(
        JOB, nodes=2, ranks_per_node=4, gpus_per_node=4, cpus_per_rank=8, minutes=90, memory="64G", requeue=True
    )
    site = Site(partition="gpu", account="abc", qos="long", constraint="a100", options=("--exclusive",))
    assert directives(job, site) == [
        "--job-name=lossmap",
        "--chdir=/data",
        "--output=/data/s.h5.log --open-mode=append",
        "--nodes=2 --ntasks-per-node=4",
        "--cpus-per-task=8",
        "--gpus-per-node=4",
        "--mem=64G",
        "--time=01:30:00",
        "--signal=B:USR1@120",
        "--requeue",
        "--partition=gpu",
        "--account=abc",
        "--qos=long",
        "--constraint=a100",
        "--exclusive",
    ]


def test_an_array_names_the_shard_of_each_task():
    job = replace(JOB, array=3)
    assert "--array=1-3" in directives(job)
    assert "--output=/data/s.shard-%a-of-3.h5.log --open-mode=append" in directives(job)
    assert bash(job, "SLURM_ARRAY_TASK_ID=2") == [
        "/data/s.shard-2-of-3.h5",
        "surface",
        "--x=-1:1:5",
        "--shard",
        "2/3",
    ]
    assert Shard(2, 3).file(job.result) == Path("/data/s.shard-2-of-3.h5")


def bash(job, *variables):
    """The result and the words that the script would run, as bash reads them."""
    text = slurm.batch_script(job, Site())
    begin, end = text.index("result="), text.index("# SLURM sends")
    program = text[begin:end] + 'printf \'%s\\0\' "$result" "${work[@]}"\n'
    environment = dict(os.environ, **dict(v.split("=", 1) for v in variables))
    done = subprocess.run(["bash", "-uc", program], capture_output=True, check=True, env=environment)
    return done.stdout.decode().split("\0")[:-1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(AWKWARD) | st.text("abc '\"$`\\\n@{}!*?~-", max_size=8), min_size=1, max_size=6))
def test_any_words_survive_bash(words):
    job = Job(("surface", *words), Path("/data") / 'it\'s a "test" $x.h5', Path("/data"))
    assert bash(job) == [str(job.result), "surface", *words]


def test_awkward_folders_are_quoted_as_sbatch_reads_them():
    job = replace(JOB, result=Path('/a b/it\'s "x" 5%.h5'), folder=Path("/a b"))
    assert '--chdir="/a b"' in directives(job)
    assert '--output="/a b/it\'s \\"x\\" 5%%.h5.log" --open-mode=append' in directives(job)


def test_a_path_that_sbatch_cannot_take_is_refused():
    with pytest.raises(ValueError, match="no path with a backslash or a line break"):
        slurm.batch_script(replace(JOB, folder=Path("/a\\b")), Site())


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (Site(), "srun --mpi=pmix "),
        (Site(mpi="pmi2", launcher_options=("--cpu-bind=cores",)), "srun --mpi=pmi2 --cpu-bind=cores "),
        (Site(launcher="mpirun"), 'mpirun -n "$SLURM_NTASKS" '),
        (Site(launcher="wheel"), f'{Path(sys.executable).with_name("mpirun")} -n "$SLURM_NTASKS" --with-ft ulfm '),
    ],
)
def test_each_launcher_has_its_words(site, words):
    assert f'{words}"${{program[@]}}" "${{work[@]}}" </dev/null &' in lines(replace(JOB, nodes=2), site)


def test_one_rank_needs_no_launcher():
    assert '"${program[@]}" "${work[@]}" </dev/null &' in lines()


def test_several_ranks_need_one():
    with pytest.raises(ValueError, match="runs one rank a job; 2 ranks need srun, mpirun or wheel"):
        slurm.batch_script(replace(JOB, nodes=2), Site(launcher="none"))


def test_modules_environment_and_lines_of_the_site_come_first_and_in_order():
    site = Site(modules=("gcc/12", "openmpi/5"), environment={"A": "b c"}, before=("source env/bin/activate",))
    text = lines(replace(JOB, cpus_per_rank=4), site)
    at = text.index("module load gcc/12 openmpi/5")
    assert text[at + 1 : at + 3] == ["export A='b c'", "source env/bin/activate"]
    assert text[at + 3].startswith('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"')
    assert at < next(i for i, line in enumerate(text) if line.startswith("program="))


def test_the_program_stands_in_its_container_or_is_the_sites():
    site = Site(container="/images/loss map.sif", container_options=("--nv",))
    assert slurm.program(site) == ["apptainer", "exec", "--nv", "/images/loss map.sif", "lossmap"]
    assert slurm.program(replace(site, python="python3"))[-3:] == ["python3", "-m", "lossmap.cli"]
    assert slurm.program(Site(python="python3")) == ["python3", "-m", "lossmap.cli"]
    own = slurm.program(Site())
    assert own in ([str(Path(sys.executable).with_name("lossmap"))], [sys.executable, "-m", "lossmap.cli"])
    assert f"program=({shlex.join(slurm.program(site))})" in lines(JOB, site)


def test_a_checkout_that_is_not_installed_finds_itself(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/py thon/bin/python3")
    text = lines()
    assert "program=('/opt/py thon/bin/python3' -m lossmap.cli)" in text
    assert f'export PYTHONPATH={Path(__file__).resolve().parents[2]}"${{PYTHONPATH:+:$PYTHONPATH}}"' in text
    assert not [line for line in lines(JOB, Site(python="python3")) if "PYTHONPATH" in line]


def test_the_warning_leaves_most_of_a_short_job():
    assert slurm.warning(replace(JOB, minutes=60), Site()) == 120
    assert slurm.warning(replace(JOB, minutes=3), Site()) == 60
    assert slurm.warning(replace(JOB, minutes=60), Site(warning=600)) == 600
    assert slurm.warning(JOB, Site()) == 120


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 1.5), ("2:00:00", 120), ("1-0", 1440), ("1-12:30", 2190), ("1-00:00:30", 1440.5)],
)
def test_time_limits_are_read_as_slurm_reads_them(text, minutes):
    assert slurm.minutes_of(text) == minutes
    assert slurm.minutes_of(slurm.time_text(minutes)) == minutes


@pytest.mark.parametrize(
    ("text", "said"), [("2h", "--time must be M, M:S"), ("", "--time must be M"), ("0", "--time must be > 0")]
)
def test_other_time_limits_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        slurm.minutes_of(text)


@pytest.mark.parametrize("flag", ["nodes", "ranks_per_node", "array", "chain"])
def test_nothing_of_something_is_refused(flag):
    with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')} must be >= 1; got 0"):
        replace(JOB, **{flag: 0})


def test_only_surveys_can_be_cut_or_repeated():
    with pytest.raises(ValueError, match="are for surveys; health writes none"):
        Job(("health",), None, Path("/data"), requeue=True)


def test_a_site_file_is_read(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('partition = "gpu"\nmodules = ["a", "b"]\nwarning = 300\n[environment]\nA = "1"\n')
    assert read_site(path) == Site(partition="gpu", modules=("a", "b"), warning=300, environment={"A": "1"})


def test_the_example_site_file_is_a_site_also_with_everything_uncommented(tmp_path):
    path = Path(__file__).resolve().parents[2] / "slurm" / "site.toml"
    assert read_site(path) == Site()
    whole = tmp_path / "site.toml"
    whole.write_text(re.sub(r"^# (?=[a-zA-Z_]+ = |\[)", "", path.read_text(), flags=re.MULTILINE))
    site = read_site(whole)
    assert all(getattr(site, f.name) for f in fields(Site))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partitoin = 'a'", "which no site has; did you mean partition"),
        ("colour = 'a'", "which no site has; it may hold partition, account"),
        ("partition = 3", "'partition' must be a string; got 3"),
        ("modules = 'a'", "must be a list of strings"),
        ("environment = 'a'", "must be a table of strings"),
        ("warning = 0", "must be an integer >= 1"),
        ("launcher = 'aprun'", "the launcher must be one of srun, mpirun, wheel, none; got 'aprun'"),
        ("=", "is not TOML"),
    ],
)
def test_an_invalid_site_file_is_refused(tmp_path, text, said):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_site(path)


def test_a_chain_waits_link_by_link_and_is_cancelled_by_one_command():
    asked = []

    def ask(command):
        asked.append(command)
        return f"{100 + len(asked)};cluster\n"

    sent = slurm.submit(Path("/data/s.h5.sbatch"), 3, ask)
    assert sent.jobs == ("101", "102", "103")
    assert sent.cancel == "scancel 101 102 103"
    assert asked[0] == ["sbatch", "--parsable", "/data/s.h5.sbatch"]
    assert asked[2] == ["sbatch", "--parsable", "--dependency=afterany:102", "/data/s.h5.sbatch"]


def test_what_sbatch_says_is_handed_on_with_the_jobs_already_sent():
    def ask(command):
        if len(command) == 3:
            return "7\n"
        raise subprocess.CalledProcessError(1, command, stderr="sbatch: error: Job violates\naccounting policy\n")

    with pytest.raises(RuntimeError, match=r"sbatch refused .*violates accounting policy; already in the queue: 7"):
        slurm.submit(Path("/data/s.sbatch"), 2, ask)


def test_without_sbatch_one_is_sent_to_a_login_node():
    def ask(command):
        raise FileNotFoundError

    with pytest.raises(RuntimeError, match="no sbatch here"):
        slurm.submit(Path("/data/s.sbatch"), 1, ask)


def test_the_largest_array_is_queried_from_the_cluster():
    assert slurm.largest_array(lambda command: "A = 1\nMaxArraySize            = 1001\n") == 1000
    assert slurm.largest_array(lambda command: "nothing") is None

    def fails(command):
        raise FileNotFoundError

    assert slurm.largest_array(fails) is None


def test_a_script_is_kept_beside_the_result(tmp_path):
    job = replace(JOB, result=tmp_path / "s.h5")
    assert slurm.write_script(job, "text") == tmp_path / "s.h5.sbatch"
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5.sbatch"]


def test_shards_share_out_every_point_once():
    for shape in ((7,), (5, 7), (2, 9), (1, 1)):
        for count in (1, 2, 3, 5):
            parts = [Shard(i, count).points(shape).tolist() for i in range(1, count + 1)]
            total = 1
            for n in shape:
                total *= n
            assert sorted(i for part in parts for i in part) == list(range(total))


def test_a_shard_of_a_plane_is_made_of_whole_rows():
    assert Shard(2, 3).points((4, 2)).tolist() == [2, 3]
    assert Shard(1, 3).points((4, 2)).tolist() == [0, 1, 6, 7]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/3/3", ""])
def test_other_shards_are_refused(text):
    with pytest.raises(ValueError, match="--shard must be I/N with I from 1 to N"):
        Shard.parse(text)


def test_shards_are_found_beside_their_result_also_those_that_have_only_a_journal(tmp_path):
    names = ["s.shard-2-of-3.h5", "s.shard-1-of-3.h5", "s.shard-3-of-3.h5.journal", "t.shard-1-of-3.h5", "s.h5"]
    for name in names:
        (tmp_path / name).touch()
    assert [p.name for p in sibling_shards(tmp_path / "s.h5")] == [f"s.shard-{i}-of-3.h5" for i in (1, 2, 3)]
    (tmp_path / "s.shard-1-of-2.h5").touch()
    with pytest.raises(ValueError, match=r"shards of 2 and 3 lie beside .*; name the files to merge"):
        sibling_shards(tmp_path / "s.h5")
