"""Members are known by their contents: what changes a digest, what does not, what a cache of digests may believe."""

import os
import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossmap.campaign import digests as digests_module
from lossmap.campaign.digests import DigestCache, file_digest
from lossmap.campaign.folder import CampaignFolder
from lossmap.campaign.member import Member, member_digest
from lossmap.cli.campaign_file import CampaignFile, campaign_members
from lossmap.cli.settings import UsageError

PLAIN = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=5)))


@given(PLAIN, PLAIN)
def test_digests_are_equal_just_where_settings_are(a, b):
    assert (member_digest("surface", a, []) == member_digest("surface", b, [])) == (repr_of(a) == repr_of(b))
    assert member_digest("surface", a, []) == member_digest("surface", dict(reversed(a.items())), [])


def repr_of(values):
    return sorted((key, repr(value)) for key, value in values.items())


def test_a_file_counts_by_its_contents_and_not_by_its_name(tmp_path):
    names = []
    for name, text in (("a.pt", "1"), ("b.pt", "1"), ("c.pt", "2")):
        (tmp_path / name).write_text(text)
        names.append(str(tmp_path / name))
    one, same, other = (Member("m", print, {"seed": 0}, (name,)) for name in names)
    assert one.digest == same.digest != other.digest
    assert pickle.loads(pickle.dumps(one)) == one


def later(monkeypatch):
    """Let files that are written now be old."""
    monkeypatch.setattr(digests_module.time, "time", lambda now=time.time: now() + 2 * digests_module.RACY_SECONDS)


def test_the_cache_believes_size_and_time_and_nothing_young(tmp_path, monkeypatch):
    file, kept = tmp_path / "net.pt", tmp_path / "digests.json"
    file.write_text("one")
    with monkeypatch.context() as patch:
        later(patch)
        cache = DigestCache(kept)
        assert cache.of(file) == file_digest(file)
    cache.save()
    again = DigestCache(kept)
    assert again._entries == cache._entries != {}
    file.write_text("two")  # young: read each time, and not kept
    assert again.of(file) == file_digest(file)
    again.save()
    assert DigestCache(kept)._entries == cache._entries
    kept.write_text("{")
    assert DigestCache(kept).of(file) == file_digest(file)


def test_a_file_that_was_written_over_and_kept_its_age_has_another_digest(tmp_path, monkeypatch):
    file = tmp_path / "net.pt"
    file.write_text("one")
    later(monkeypatch)
    cache, before = DigestCache(), file.stat()
    assert cache.of(file) == file_digest(file) and cache._entries
    time.sleep(0.02)  # the clock of the disk ticks a few hundred times a second
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.of(file) == file_digest(file)


def test_a_folder_counts_by_the_names_and_contents_of_its_files(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_text("1")
    before = DigestCache().of(tmp_path / "run")
    (tmp_path / "run" / "a").rename(tmp_path / "run" / "b")
    assert DigestCache().of(tmp_path / "run") != before


# ---- the TOML file

SWEEP = """
[settings]
model = "mlp"
samples = 64
[over]
model_file = {glob = "runs/step_*.pt"}
seed = [0, 1]
[surface]
x = "-1:1:5"
[[spectrum]]
top = 2
over = {samples = [32, 64]}
"""


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "runs").mkdir()
    for step in (2, 10):
        (tmp_path / "runs" / f"step_{step}.pt").write_text(f"weights {step}")

    def write(text):
        (tmp_path / "sweep.toml").write_text(text)
        return tmp_path / "sweep.toml"

    return write


def test_the_members_are_every_combination_in_order(sweep):
    members = campaign_members(sweep(SWEEP))
    names = [member.name for member in members]
    assert len(members) == 2 * 2 * (1 + 2)
    assert names[:4] == [
        "surface: runs/step_2, seed 0",
        "spectrum: runs/step_2, seed 0, samples 32",
        "spectrum: runs/step_2, seed 0, samples 64",
        "surface: runs/step_2, seed 1",
    ]
    assert len({member.digest for member in members}) == len(members)
    assert members[0].settings == {
        "model": "mlp", "samples": 64, "model_file": "runs/step_2.pt", "seed": 0, "x": "-1:1:5",
    }  # fmt: skip


def test_members_of_two_measurements_by_one_command_are_told_apart_by_what_differs(sweep):
    twice = '[settings]\nmodel = "mlp"\n[over]\nseed = [0]\n' + "".join(
        f'[[surface]]\nsamples = 8\nx = "{x}"\n' for x in ("-1:1:5", "0:1:3")
    )
    names = [member.name for member in campaign_members(sweep(twice))]
    assert names == ["surface: seed 0, x -1:1:5", "surface: seed 0, x 0:1:3"]


def digests(path):
    return [member.digest for member in campaign_members(path)]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        (("samples = 64\n", "samples = 64\nsplit = 'train'\n"), True),  # a default
        (("samples = 64\n", "samples = 64\nthreads = 1\ndevice = 'cpu'\nbatch-size = 7\n"), True),  # how, not what
        (("[surface]", "[ surface ]"), True),
        (("top = 2", "top = 3"), False),
        (("samples = 64\n", "samples = 63\n"), False),
        (('"-1:1:5"', '"-1:1:6"'), False),
    ],
)
def test_what_changes_a_digest(sweep, change, is_same):
    before = digests(sweep(SWEEP))
    after = digests(sweep(SWEEP.replace(*change)))
    assert (before == after) == is_same


def test_a_moved_checkpoint_is_the_same_member_and_a_changed_one_another(sweep, tmp_path):
    before = digests(sweep(SWEEP))
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert digests(sweep(SWEEP.replace("runs/", "moved/"))) == before
    (tmp_path / "moved" / "step_2.pt").write_text("trained on")
    after = digests(tmp_path / "sweep.toml")
    assert after[:6] != before[:6] and after[6:] == before[6:]


@pytest.mark.parametrize(
    ("code", "beside", "differ"),
    [
        ("import {0}\n", "other.json", False),
        ("W = open('config.json').read()\n", "config.json", True),  # named by a text in the code
        ("from pathlib import Path\nW = Path(__file__).parent / ('config' + '.json')\n", "config.json", True),
        ("import sys\nsys.path.append('src')\n", "other.py", True),
        ("import no_such_module_anywhere\n", "other.py", True),
        ("import importlib\nW = importlib.import_module('oth' + 'er')\n", "other.py", True),
    ],
)
def test_the_same_code_in_two_folders_is_one_member_where_nothing_of_the_folder_matters(
    sweep, tmp_path, code, beside, differ
):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(code.format("math") + "\ndef net():\n    pass\n")
        (tmp_path / name / beside).write_text(f"# {name}\n")
    one, other = digests(sweep("[over]\nmodel = ['a/net.py:net', 'b/net.py:net']\n[surface]\n"))
    assert (one != other) == differ
    if beside == "config.json" and "'config.json'" in code:
        (tmp_path / "b" / beside).write_text("# edited")
        assert digests(tmp_path / "sweep.toml")[0] == one != digests(tmp_path / "sweep.toml")[1] != other


@pytest.mark.parametrize(
    ("code", "counts"),
    [
        ("torch.load('scale.DATA')", True),
        ("Path('scale.DATA').read_bytes()", True),
        ("open('scale.DATA')", True),
        ("open('scale.DATA', mode='a')", False),
        (
            "numpy.savez('scale.DATA', numpy.load('scale.DATA'))",
            False,
        ),  # what it writes itself is made of something else
        ("Path('scale.DATA').write_text('1')", False),
    ],
)
@pytest.mark.parametrize("ending", ["pt", "csv", "npy"])
def test_data_that_code_names_count_where_it_does_not_write_them(sweep, tmp_path, code, counts, ending):
    (tmp_path / "net.py").write_text(f"def net():\n    {code.replace('DATA', ending)}\n")
    (tmp_path / f"scale.{ending}").write_text("1")
    file = sweep("[over]\nmodel = ['net.py:net']\n[surface]\n")
    before = digests(file)
    (tmp_path / f"scale.{ending}").write_text("22")
    assert (digests(file) != before) == counts


def test_the_shards_of_a_checkpoint_count_too(sweep, tmp_path):
    (tmp_path / "a.safetensors").write_text("1")
    (tmp_path / "net.index.json").write_text('{"weight_map": {"w": "a.safetensors", "b": "a.safetensors"}}')
    file = sweep("[settings]\nmodel_file = 'net.index.json'\n[surface]\n")
    (before,) = campaign_members(file)
    assert before.files == ("net.index.json", "a.safetensors")
    (tmp_path / "a.safetensors").write_text("2")
    assert digests(file) != [before.digest]


def test_the_rows_of_a_table_are_settings_and_labels(sweep, tmp_path):
    (tmp_path / "nets.csv").write_text("model_file,lr,seed\nruns/step_2.pt,0.1,3\nruns/step_10.pt,1e-2,\n")
    text = 'labels = ["lr"]\n[settings]\nmodel = "mlp"\n[table]\nfile = "nets.csv"\n[health]\nsamples = 8\n'
    first, second = campaign_members(sweep(text))
    assert first.labels == {"lr": 0.1} and first.settings["seed"] == 3 and "seed" not in second.settings
    without = campaign_members(sweep(text.replace('labels = ["lr"]\n', "")))
    assert without[0].settings["lr"] == 0.1  # a setting of `lossmap health`
    assert first.digest != without[0].digest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[dynamics]\n", r"\[dynamics\] is no measure of a campaign in this version"),
        ("[connect]\nother = 'no.pt'\n", "other: no.pt: No such file"),
        ("[connect]\nmodel_file2 = 'b.pt'\n", r"\[connect\] unknown setting 'model_file2'; did you mean other\?"),
        ("[over]\nmodel_file2 = ['b.pt']\n[connect]\n", "unknown setting 'model_file2'; did you mean other"),
        ("[connect.over]\nmodel_file2 = ['b.pt']\n", "unknown setting 'model_file2'; did you mean other"),
        (
            "[connect]\nmodel_file = 'runs/step_2.pt'\n",
            r'\[connect\] is of a line with two ends, such as model_file = "a.pt" and other = "b.pt"; '
            r'got model_file = "runs/step_2.pt"',
        ),
        ("[connect]\nsamples = 8\n", "a line with two ends, .*; got none"),
        ("[surfaces]\n", "did you mean surface"),
        ("[settings]\nmodel = 'mlp'\n", "names no measure"),
        ("[surface]\nxx = 1\n", r"\[surface\] unknown setting 'xx'"),
        ("[over]\nsede = [1]\n[surface]\n", "did you mean seed"),
        ("[over]\nseed = 1\n[surface]\n", "must be a list of values"),
        ("[over]\nmodel_file = {glob = 'no/*.pt'}\n[surface]\n", "no file in .* fits 'no/\\*.pt'"),
        (
            "[over]\nmodel_file = {glob = '../test_*'}\n[surface]\n",
            "model_file: .* is a folder; a checkpoint is one file",
        ),
        ("[settings]\nmodel_file = 'no.pt'\n[surface]\n", "model_file: no.pt: No such file"),
        ("[settings]\nseed = [1, 2]\n[surface]\n", r"a list of values belongs into \[over\]"),
        ("[surface]\nsurf_file = 'a.h5'\n", "surf_file is decided by the campaign"),
        ("[surface]\nseed = 'x'\n", "seed must be a whole number"),
        ("[table]\nfile = 'no.csv'\n[surface]\n", "the table .*no.csv: No such file"),
        ("[surface\n", "is not TOML"),
        ("[settings]\nseed = 2.7\n[surface]\n", "seed must be a whole number; got 2.7"),
        ("[over]\nseed = [inf]\n[surface]\n", "seed must be a whole number; got inf"),
        ('[surface]\nmodel_file = "a\\u0000.pt"\n', "model_file holds a character that no text has"),
        ("[surface]\nmodel_file = 'a.pt'\nmodel-file = 'b.pt'\n", "model_file stands there twice"),
        (f"[over]\nseed = {list(range(1001))}\nsamples = {list(range(1, 1001))}\n[surface]\n", "1,001,000 members"),
    ],
)
def test_what_a_file_gets_wrong_is_one_sentence(sweep, text, sentence):
    with pytest.raises(UsageError, match=sentence):
        CampaignFile.read(sweep(text)).members()


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (b"seed,seed\n1,2\n", "has the column 'seed' twice"),
        (b"seed,sede,seed\n1,2,3\n", "has the column 'seed' twice"),
        (b"model-file,model_file\na.pt,b.pt\n", "model_file stands there twice"),
        (b'seed\n1\n"2\n3\n', "cannot be read near line 3: unexpected end of data"),
        (b"seed\n" + 200_000 * b"9", "cannot be read near line 2: field larger"),
        (b"seed\n\xff\n", "must be text in UTF-8"),
    ],
)
def test_a_table_that_says_something_twice_or_not_to_its_end_is_refused(sweep, tmp_path, table, sentence):
    (tmp_path / "nets.csv").write_bytes(table)
    with pytest.raises(UsageError, match=sentence):
        CampaignFile.read(sweep("[table]\nfile = 'nets.csv'\n[surface]\n")).members()


def test_files_that_begin_with_the_mark_of_utf_8_are_read(sweep, tmp_path):
    (tmp_path / "nets.csv").write_bytes(b"\xef\xbb\xbfseed\n4\n")
    file = sweep("[table]\nfile = 'nets.csv'\n[surface]\n")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert [member.settings["seed"] for member in campaign_members(file)] == [4]


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[" * 100_000, b"{", b"[1, 2]", b""])
def test_caches_that_are_damaged_are_made_anew(tmp_path, content):
    folder = CampaignFolder(tmp_path)
    folder.create()
    member = Member("m", print, {"seed": 0})
    folder.index.write_bytes(content + b"\n")
    folder.digests.write_bytes(content)
    (folder.members / f"{member.digest}.done.json").write_bytes(content)
    (folder.members / f"{member.digest}.failed.json").write_bytes(content)
    assert folder.states([member])[member.digest].outcome in ("new", "failed")
    (tmp_path / "a.pt").write_text("1")
    assert DigestCache(folder.digests).of(tmp_path / "a.pt") == file_digest(tmp_path / "a.pt")
