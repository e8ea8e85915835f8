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

from lossmap.parallel import slurm, slurm_queue
from lossmap.parallel.shards import Shard, sibling_shards
from lossmap.parallel.slurm import Job
from lossmap.parallel.slurm_site import Site, read_site

JOB = Job(("surface", "--x=-1:1:5"), Path("/data/s.h5"), Path("/data"))
AWKWARD = ["a b", "it's", 'say "x"', "$HOME", "`id`", "a\nb", "--x=-1:1:5", "*", "\\", "", "ü", "#", "%j", "@work@"]


def lines(job=JOB, site=None):
    return [line.strip() for line in slurm.batch_script(job, site or Site()).splitlines()]


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
        "--output=/data/s.h5.%j.log --open-mode=append",
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
    assert "--output=/data/s.shard-%a-of-3.h5.%A.log --open-mode=append" in directives(job)
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
    assert '--output="/a b/it\'s \\"x\\" 5%%.h5.%j.log" --open-mode=append' in directives(job)


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
    assert text[at - 1] == "set -e"
    assert text[at + 1 : at + 5] == ["export A='b c'", "source env/bin/activate", "set +e", "trap - ERR"]
    assert text[at + 5].startswith('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"')
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


def test_only_surveys_can_be_cut():
    with pytest.raises(ValueError, match="--array is for surveys, which can be cut; health cannot"):
        Job(("health",), None, Path("/data"), array=2)


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


@pytest.mark.parametrize("line", ["module load none", "false"])
def test_a_line_of_the_setup_that_fails_ends_the_job(line, tmp_path):
    site = Site(before=("true || true", line))
    text = slurm.batch_script(replace(JOB, result=tmp_path / "s.h5"), site)
    done = subprocess.run(["bash"], input=text, text=True, capture_output=True, timeout=30)
    assert done.returncode != 0 and done.stdout == ""
    assert f"the job ends, since this line failed: {line}" in done.stderr


FAKES = {
    # a lossmap that reads its state from files, of which the k-th attempt uses line k; and a scontrol
    "lossmap": """\
case "$1 $*" in
    "status "*--fingerprint*) cat progress ;;
    "status "*) exit "$(cat state)" ;;
    *) cp progress.after progress; exit "$(cat code)" ;;
esac
""",
    "scontrol": 'echo "scontrol $*" >>said; [ "$1" = requeue ] || cat job 2>/dev/null\n',
}


def ran(tmp_path, before="0 points", after="0 points", code=0, state=75, restart=0, job=None, few=None, site=None):
    """What the script of a job prints whose attempt does that, its exit code, and what scontrol was asked."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name, body in FAKES.items():
        (folder / name).write_text("#!/bin/bash\n" + body)
        (folder / name).chmod(0o755)
    for name, text in {"progress": before, "progress.after": after, "code": code, "state": state}.items():
        (tmp_path / name).write_text(f"{text}\n")
    if few is not None:
        (tmp_path / "s.h5.restarts-7").write_text(f"{few}\n")
    (tmp_path / "said").write_text("")
    text = slurm.batch_script(job or replace(JOB, result=tmp_path / "s.h5", requeue=True), site or Site())
    if site is None or site.before:
        text = re.sub(r"^program=.*", f"program=({folder}/lossmap)", text, flags=re.MULTILINE)
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restart)}
    done = subprocess.run(
        ["bash"], input=text, text=True, capture_output=True, timeout=30, cwd=tmp_path, env=os.environ | variables
    )
    return done.stdout, done.returncode, (tmp_path / "said").read_text().splitlines()


def test_an_attempt_that_got_something_done_requeues_the_job(tmp_path):
    _, code, said = ran(tmp_path, after="5 points by job 7")
    assert said == ["scontrol requeue 7"] and code == 75
    assert (tmp_path / "s.h5.restarts-7").read_text() == "0 itself\n"
    assert "SLURM requeued" not in ran(tmp_path, "5 points", "9 points", restart=1)[0]


@pytest.mark.parametrize(
    ("attempt", "sentence", "exit_code"),
    [
        ({"code": 2}, "not requeued: the command was refused", 2),  # such as Busy: another job has the result
        ({"code": 1}, "not requeued: this attempt made no progress", 75),
        (
            {"after": "1 points", "few": "4 itself"},
            "not requeued: 5 attempts in a row brought at most one",
            75,
        ),
        ({"after": "9 points", "state": 0}, "the result has state 0", 0),
    ],
)
def test_other_attempts_do_not_requeue_it(tmp_path, attempt, sentence, exit_code):
    out, code, said = ran(tmp_path, **attempt)
    assert sentence in out and not said and code == exit_code
    assert not (tmp_path / "s.h5.restarts-7").exists()


@pytest.mark.parametrize("few", [None, "4 itself"])
def test_a_signal_while_a_job_is_set_up_begins_nothing_and_leaves_the_job_to_come_back(tmp_path, few):
    """The script had no handler then, so that it was killed: a failed job, and nothing of it requeued."""
    early = Site(before=("kill -USR1 $$",))
    out, code, said = ran(tmp_path, state=2, after="9 points", few=few, site=early)
    assert "nothing was begun: a signal to stop came first" in out and code == 75
    assert said == (["scontrol requeue 7"] if few is None else [])
    assert (few is None) == ("brought at most one new point" not in out)  # it does not do so for ever
    assert ran(tmp_path, state=0, site=early)[1:] == (0, [])  # another job has completed it meanwhile
    job = Job(("health",), None, tmp_path, about=tmp_path / "net_health")
    assert ran(tmp_path, job=job, site=early)[1:] == (75, [])


def test_two_new_points_end_the_count_of_fruitless_attempts(tmp_path):
    for few, after, kept in [("2 itself", "1 points", "3 itself"), ("4 itself", "2 points", "0 itself")]:
        assert ran(tmp_path, after=after, few=few)[2] == ["scontrol requeue 7"]
        assert (tmp_path / "s.h5.restarts-7").read_text() == f"{kept}\n"


def test_a_job_that_slurm_started_again_says_so(tmp_path):
    out, _, _ = ran(tmp_path, after="9 points", restart=1)
    assert out.startswith("SLURM requeued this job: another one took its place (preemption), or its node failed\n")
    assert "SLURM requeued" in ran(tmp_path, after="9 points", restart=2, few="0 SLURM")[0]


def test_a_command_without_a_result_hands_on_the_exit_code_that_it_noted_at_its_end(tmp_path, monkeypatch):
    job = Job(("health",), None, tmp_path, about=tmp_path / "net_health", requeue=True)
    # as lossmap, it notes the end of any command, the looks at its progress too
    note = 'end=${LOSSMAP_ENDED:-/dev/null}; [ "$1" != status ] || { echo 9 >"$end"; exit; }; cat noted >"$end"'
    monkeypatch.setitem(FAKES, "lossmap", f'{note}; exit "$(cat code)"\n')
    (tmp_path / "noted").write_text("3\n")
    assert ran(tmp_path, code=0, job=job)[1:] == (3, [])  # the launcher says 0
    (tmp_path / "noted").write_text("")  # all ranks were killed
    for code, exit_code in ((0, 1), (137, 137)):
        out, *rest = ran(tmp_path, code=code, job=job)
        assert rest == [exit_code, []] and "the command did not come to its end: its ranks were killed" in out
    assert not list(tmp_path.glob("*.ended*"))
    for kind in ("pyxis", "enroot"):
        apart = lines(job, Site(container="/images/lossmap.sqsh", container_kind=kind))
        assert "unset LOSSMAP_ENDED" in apart and "export LOSSMAP_ENDED" not in apart
    assert f"--output={tmp_path}/net_health.%j.log --open-mode=append" in directives(job)


def test_the_exit_code_is_noted_from_within_a_container_that_sees_the_folder(tmp_path, monkeypatch):
    job = Job(("health",), None, tmp_path, about=tmp_path / "net_health")
    apptainer = 'shift; [ "$1" != --cleanenv ] || { unset LOSSMAP_ENDED; shift; }; shift; exec "$@"'
    monkeypatch.setitem(FAKES, "apptainer", apptainer)
    note = '[ ! -s noted ] || cat noted >"${LOSSMAP_ENDED:-/dev/null}"'
    monkeypatch.setitem(FAKES, "lossmap", f'[ "$1" != health ] || {{ {note}; exit "$(cat code)"; }}\n')
    seen, apart = Site(container="/images/l.sif"), Site(container="/images/l.sif", container_options=("--cleanenv",))
    (tmp_path / "noted").write_text("3\n")
    assert ran(tmp_path, code=0, job=job, site=seen)[1] == 3
    assert ran(tmp_path, code=4, job=job, site=apart)[1] == 4
    (tmp_path / "noted").write_text("")
    assert ran(tmp_path, code=0, job=job, site=seen)[1] == 1
    assert ran(tmp_path, code=0, job=job, site=apart)[1] == 0  # all that is known there
    assert not list(tmp_path.glob("*.ended*"))


def test_containers_of_pyxis_are_started_by_srun_also_for_a_look_at_the_result():
    site = Site(container="/images/lossmap.sqsh", container_kind="pyxis", container_options=("--container-writable",))
    inside = (
        "--container-image=/images/lossmap.sqsh --container-mounts=/data:/data --container-workdir=/data "
        "--container-writable"
    )
    text = lines(replace(JOB, nodes=2), site)
    assert f'srun --mpi=pmix {inside} "${{program[@]}}" "${{work[@]}}" </dev/null &' in text
    assert f"alone=(srun --nodes=1 --ntasks=1 --overlap {inside})" in text and "program=(lossmap)" in text
    assert f'srun --ntasks=1 {inside} "${{program[@]}}" "${{work[@]}}" </dev/null &' in lines(JOB, site)
    enroot = replace(site, container_kind="enroot", container_options=("--mount", "/data"))
    assert slurm.program(enroot) == ["enroot", "start", "--mount", "/data", "/images/lossmap.sqsh", "lossmap"]
    assert "alone=()" in lines(JOB, enroot)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partitoin = 'a'", "which no site has; did you mean partition"),
        ("colour = 'a'", "which no site has; it may hold partition, account"),
        ("partition = 3", "'partition' must be a string; got 3"),
        ("modules = 'a'", "must be a list of strings"),
        ("environment = 'a'", "must be a table of strings"),
        ("warning = 0", "must be an integer >= 1"),
        ("container_kind = 'docker'", "the container_kind must be one of apptainer, pyxis, enroot; got 'docker'"),
        ("container = 'a'\ncontainer_kind = 'pyxis'\nlauncher = 'mpirun'", "pyxis needs the launcher srun"),
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

    sent = slurm_queue.submit(Path("/data/s.h5.sbatch"), 3, ask)
    assert sent.jobs == ("101", "102", "103")
    assert sent.cancel == "scancel 101 102 103"
    assert asked[0] == ["sbatch", "--parsable", "/data/s.h5.sbatch"]
    assert asked[2] == ["sbatch", "--parsable", "--dependency=afterany:102", "/data/s.h5.sbatch"]


def test_what_sbatch_says_is_handed_on_with_the_jobs_already_sent():
    def ask(command):
        if len(command) == 3:
            return "7\n"
        raise subprocess.CalledProcessError(1, command, stderr="sbatch: error: Job violates\naccounting policy\n")

    with pytest.raises(RuntimeError) as refusal:
        slurm_queue.submit(Path("/data/s.sbatch"), 2, ask)
    assert str(refusal.value).splitlines() == [
        "sbatch refused /data/s.sbatch; it says:",
        "  sbatch: error: Job violates",
        "  accounting policy",
        "  already in the queue: 7",
    ]


def test_without_sbatch_one_is_sent_to_a_login_node():
    def ask(command):
        raise FileNotFoundError

    with pytest.raises(RuntimeError, match="no sbatch here"):
        slurm_queue.submit(Path("/data/s.sbatch"), 1, ask)


def test_the_largest_array_is_queried_from_the_cluster():
    assert slurm_queue.largest_array(lambda command: "A = 1\nMaxArraySize            = 1001\n") == 1000
    assert slurm_queue.largest_array(lambda command: "nothing") is None

    def fails(command):
        raise FileNotFoundError

    assert slurm_queue.largest_array(fails) is None


def test_a_script_is_kept_beside_the_result(tmp_path):
    job = replace(JOB, result=tmp_path / "s.h5")
    assert slurm_queue.write_script(job, "text") == tmp_path / "s.h5.sbatch"
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


# ---- the queue


def test_jobs_are_known_by_their_script_and_say_why_they_wait(tmp_path):
    script = tmp_path / "a b.h5.sbatch"
    script.touch()

    def ask(command):
        assert command[0] == "squeue"
        return (
            f"12 PENDING PartitionDown {script}\n12 RUNNING None {script}\n13 PENDING (ReqNodeNotAvail, "
            f"UnavailableNodes:node[1-2]) {script}\n14 RUNNING None /elsewhere/a b.h5.sbatch\n15 RUNNING None (null)\n"
        )

    first, second = slurm_queue.jobs_of(script, ask)
    assert first.sentence == "job 12 is running"
    assert second.sentence.startswith("job 13 is pending (ReqNodeNotAvail, UnavailableNodes:node[1-2]): nodes that it")
    reason = slurm_queue.QueuedJob("3", "PENDING", "QOSMaxCpuPerUserLimit", "")
    assert reason.sentence == "job 3 is pending (QOSMaxCpuPerUserLimit): a limit of the QOS is reached"
    assert len(slurm_queue.queued_jobs(ask)) == 4


def test_a_refused_script_is_not_left_and_an_earlier_one_comes_back(tmp_path):
    job = replace(JOB, result=tmp_path / "s.h5")

    def refuse(command):
        raise subprocess.CalledProcessError(1, command, stderr="sbatch: error: invalid partition specified: nowhere\n")

    for earlier in (None, "earlier"):
        if earlier:
            job.script.write_text(earlier)
        with pytest.raises(RuntimeError, match="invalid partition"):
            slurm_queue.submit_script(job, "new", run=refuse)
        assert (job.script.read_text() if job.script.exists() else None) == earlier


def test_a_job_without_a_result_is_followed_by_another_only_where_it_failed(tmp_path):
    commands = []

    def ask(command):
        commands.append(command)
        return f"sbatch: warning: slow\n{len(commands)}\n"

    job = Job(("health",), None, tmp_path, about=tmp_path / "h", chain=2)
    sent = slurm_queue.submit_script(job, "text", "afterok:5", ask)
    assert (sent.jobs, sent.notes) == (("1", "2"), ("sbatch: warning: slow",))
    assert commands[0][2:] == ["--dependency=afterok:5", str(tmp_path / "h.sbatch")]
    assert commands[1][2:] == ["--dependency=afternotok:1", "--kill-on-invalid-dep=yes", str(tmp_path / "h.sbatch")]
