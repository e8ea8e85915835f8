"""Local folders of Hugging Face on the command line: the same numbers as in Python, and errors in a sentence."""

import json
import shutil

import h5py
import pytest
import torch

import lossmap
from lossmap.campaign.digests import DigestCache
from lossmap.cli.__main__ import main
from lossmap.cli.campaign_inputs import identity_of
from lossmap.cli.settings import UsageError
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.data import datasets
from lossmap.data.huggingface_data import Reader
from lossmap.data.huggingface_folder import load_model
from lossmap.data.loss_check import check_loss
from lossmap.io.eigenvector_store import results_of

transformers = pytest.importorskip("transformers")
tables = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")
# torch warns of its own compiler, with which products are traced; PEFT asks transformers by a former name
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

WORDS = ["a", "cat", "dog", "sat", "ran", "on", "the", "mat", "tree"]
TEXTS = [" ".join(WORDS[(i * j) % 9] for j in range(1, 4 + i)) for i in range(6)]
SMALL = {"hidden_size": 4, "intermediate_size": 5, "num_hidden_layers": 1, "num_attention_heads": 2}


def gpt2(seed=0):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
    )
    model = transformers.GPT2LMHeadModel(config)
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.2)
    return model


def command(words):
    """The exit code of `lossmap WORDS`, in this process."""
    return main(words.split())


def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({w: i for i, w in enumerate(["<unk>", "<pad>", *WORDS])}, unk_token="<unk>")
    plain = tokenizers.Tokenizer(words)
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", pad_token="<pad>")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Folders that no test changes: models, an adapter, data sets, a text."""
    folder = tmp_path_factory.mktemp("hf")
    tables.disable_progress_bars()
    model = gpt2()
    model.save_pretrained(folder / "gpt")
    gpt2(5).save_pretrained(folder / "other")
    tokenizer().save_pretrained(folder / "gpt")
    model.save_pretrained(folder / "shards", max_shard_size="1KB")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            p.data.normal_(std=0.5)
    adapted.save_pretrained(folder / "lora")
    config = json.loads((folder / "lora/adapter_config.json").read_text())
    (folder / "lora/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "gpt"}))
    bert = transformers.BertConfig(vocab_size=11, max_position_embeddings=12, num_labels=2, pad_token_id=1, **SMALL)
    transformers.BertForSequenceClassification(bert).save_pretrained(folder / "bert")
    tokenizer().save_pretrained(folder / "bert")
    vit = transformers.ViTConfig(image_size=4, patch_size=2, num_channels=3, num_labels=2, **SMALL)
    transformers.ViTForImageClassification(vit).save_pretrained(folder / "vit")
    (folder / "corpus.txt").write_text(" ".join(TEXTS), encoding="utf-8")
    sentences = tables.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0, 1, 1, 0]})
    tables.DatasetDict({"train": sentences, "validation": sentences.select([0, 3])}).save_to_disk(folder / "sentences")
    tokens = [tokenizer()(text)["input_ids"][:8] for text in TEXTS]
    tables.Dataset.from_dict({"input_ids": tokens}).save_to_disk(folder / "tokens")
    pixels = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)).tolist()
    tables.Dataset.from_dict({"pixel_values": pixels, "label": [0, 1, 0, 1, 1, 0]}).save_to_disk(folder / "images")
    return folder


@pytest.fixture
def folder(shared, tmp_path, monkeypatch):
    """An empty folder to work in, beside links to the shared ones."""
    for path in shared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tokens_of_the_text():
    return torch.tensor(tokenizer()(" ".join(TEXTS))["input_ids"])


def text_problem(model, length=8):
    blocks = [{"input_ids": row[None]} for row in tokens_of_the_text().split(length) if len(row) > 1]
    return lossmap.huggingface(model, blocks)


def read(file, name):
    with h5py.File(file) as opened:
        return opened[name][()]


def test_texts_that_are_longer_than_the_model_takes_are_counted(folder, caplog):
    long = [" ".join(TEXTS * 3), *TEXTS[1:3]]
    tables.Dataset.from_dict({"text": long, "label": [0, 1, 0]}).save_to_disk("long")
    assert command("surface --model hf:bert --dataset hf:long --block-length 8 --x 0:0:1 --surf-file s.h5") == 0
    cut = sum(len(tokenizer()(text)["input_ids"]) > 8 for text in long)
    assert cut and f"{cut} of 3 texts have more than 8 tokens: those behind are left out" in caplog.text


def test_surface_of_a_folder_and_a_text_is_that_of_python(folder):
    assert command("surface --model hf:gpt --dataset hf:corpus.txt --x -1:1:3 --surf-file s.h5") == 0
    model = gpt2().eval()
    rows = [row for row in tokens_of_the_text().split(8) if len(row) > 1]
    logs = [model(input_ids=row[None]).logits[0].detach().double().log_softmax(-1) for row in rows]
    losses = [-float(log[i, row[i + 1]]) for log, row in zip(logs, rows, strict=True) for i in range(len(row) - 1)]
    stored = read("s.h5", "train_loss")
    assert stored[1] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    measure = lossmap.losses(text_problem(model), lossmap.random_plane(model, axes=1, ignore="biasbn"))
    assert stored[[0, 2]] == pytest.approx([measure((x,))["train_loss"] for x in (-1.0, 1.0)], rel=1e-5)
    with h5py.File("s.h5") as opened:
        assert opened["train_loss"].attrs["units"] == "nats per token"
        assert "train_acc" in opened


def test_shards_are_the_same_model_and_another_folder_is_another_result(folder, capsys):
    shutil.copy("gpt/tokenizer.json", "tokenizer.json")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 1
    whole, _ = load_model("hf:gpt")
    parts, notes = load_model("hf:shards")
    assert not notes and all(torch.equal(t, parts.state_dict()[n]) for n, t in whole.state_dict().items())
    shutil.copytree("gpt", "copy")
    words = "surface --model hf:copy --dataset hf:tokens --x -1:1:3 --samples 3 --surf-file s.h5"
    assert command(words) == 0
    shutil.copy("other/model.safetensors", "copy/model.safetensors")
    assert command(words) == 2
    assert "model folder (SHA-256)" in capsys.readouterr().err


def test_eigenmap_of_an_adapter_is_of_the_adapters_alone(folder, capsys):
    words = "eigenmap --model hf:lora --dataset hf:tokens --parameters trainable --x 0:1:2 --surf-file e.h5"
    assert command(f"{words} --certify none --hvp-backend double-backward") == 0
    model, _ = load_model("hf:lora")
    data = datasets.load("hf:tokens", reader=Reader("hf:lora"))
    operator = lossmap.hessian(lossmap.huggingface(model, data), parameters="trainable")
    assert operator.size == 2 * 4 + 12 * 2  # A and B, rank 2
    ends = torch.linalg.eigvalsh((operator @ torch.eye(operator.size)).double())
    assert read("e.h5", "max_eig")[0] == pytest.approx(float(ends[-1]), rel=2e-3)


def test_spectrum_and_dynamics_take_a_folder(folder):
    model = gpt2()
    common = "--model hf:gpt --dataset hf:tokens --top 1 --parameters all --hvp-backend double-backward"
    assert command(f"spectrum {common} --trace none --no-density --surf-file sp.h5") == 0
    data = datasets.load("hf:tokens", reader=Reader("hf:gpt"))
    top = lossmap.eigenpairs(lossmap.hessian(lossmap.huggingface(model, data), parameters="all"), "top:1").values[0]
    assert lossmap.read("sp.h5").largest[0] == pytest.approx(float(top), rel=2e-3)
    assert command(f"dynamics gpt/model.safetensors other/model.safetensors {common} --surf-file d.h5") == 0
    assert float(results_of("d.h5")["eigenvalue"][0, 0]) == pytest.approx(float(top), rel=2e-3)


def test_a_plane_of_the_trainable_parameters_leaves_the_frozen_base(folder, caplog):
    words = (
        "surface --model hf:lora --dataset hf:tokens --parameters trainable --xignore none --x 0:1:2 --surf-file s.h5"
    )
    assert command(words) == 0
    with h5py.File("s.h5") as opened:
        moved = {name for name, d in opened["directions/x"].items() if bool((d[()] != 0).any())}
    assert moved and all("lora_" in name for name in moved)
    model, _ = load_model("hf:lora")
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert command("surface --model hf:lora --dataset hf:tokens --x 0:1:2 --surf-file all.h5") == 0
    assert "328 of the 360 parameters that move with the plane are frozen" in caplog.text


def test_the_direction_is_the_same_with_and_without_the_adapters_wrapper(folder):
    base, _ = load_model("hf:gpt")
    adapted, _ = load_model("hf:lora")
    plain = lossmap.random_plane(base, axes=1).axes[0]
    wrapped = lossmap.random_plane(adapted, axes=1).axes[0]
    own = {name.removeprefix("base_model.model.").replace(".base_layer.", "."): t for name, t in wrapped.items()}
    assert set(plain) <= set(own) and all(torch.equal(t, own[name]) for name, t in plain.items())


def test_an_adapter_is_read_from_its_own_file_and_changes_the_loss(folder):
    adapted, _ = load_model("hf:lora")
    assert {n.rpartition(".lora_")[0] for n, p in adapted.named_parameters() if p.requires_grad} == {
        "base_model.model.transformer.h.0.attn.c_attn"
    }
    data = datasets.load("hf:tokens", reader=Reader("hf:lora"))
    loss = loss_and_gradient(lossmap.huggingface(adapted, data)).loss
    merged = load_model("hf:lora")[0].merge_and_unload()
    assert loss == pytest.approx(loss_and_gradient(lossmap.huggingface(merged, data)).loss, rel=1e-5)
    assert abs(loss - loss_and_gradient(lossmap.huggingface(gpt2(), data)).loss) > 1e-3
    assert check_loss(lossmap.huggingface(adapted, data)).notes == ()


def test_sentences_with_labels_are_read_by_the_folders_tokenizer(folder):
    data = datasets.load("hf:sentences", reader=Reader("hf:bert"))
    model, _ = load_model("hf:bert")
    logits = [
        model.eval()(**tokenizer()(text, return_tensors="pt", truncation=True, max_length=12)).logits for text in TEXTS
    ]
    truth = torch.nn.functional.cross_entropy(torch.cat(logits).detach(), torch.tensor([0, 1, 0, 1, 1, 0]))
    assert loss_and_gradient(lossmap.huggingface(model, data)).loss == pytest.approx(float(truth), rel=1e-5)
    assert datasets.load("hf:sentences", "test", reader=Reader("hf:bert")).samples == 2


def loss_of(words):
    assert command(f"surface {words} --x 0:0:1 --overwrite --surf-file s.h5") == 0, words
    return read("s.h5", "train_loss")[0]


def test_two_texts_are_one_sample_and_columns_that_are_not_read_are_said(folder, caplog):
    pair = {"question": TEXTS, "sentence": TEXTS[::-1], "label": [0, 1, 0, 1, 1, 0]}
    tables.Dataset.from_dict(pair | {"idx": list(range(6))}).save_to_disk("pairs")
    model, _ = load_model("hf:bert")
    logits = [
        model.eval()(**tokenizer()(*texts, return_tensors="pt", truncation=True, max_length=12)).logits.detach()
        for texts in zip(TEXTS, TEXTS[::-1], strict=True)
    ]
    truth = torch.nn.functional.cross_entropy(torch.cat(logits), torch.tensor(pair["label"]))
    assert loss_of("--model hf:bert --dataset hf:pairs") == pytest.approx(float(truth), rel=1e-5)
    assert "not those that the model does not take: idx" in caplog.text


def test_columns_that_the_model_takes_are_read_and_no_others(folder):
    rows = [{"input_ids": [2, 3, 4, 5], "position_ids": [3, 2, 1, 0], "start_positions": 0, "end_positions": 1}] * 2
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    tables.Dataset.from_dict(columns | {"text": ["a", "b"]}).save_to_disk("rows")
    model, _ = load_model("hf:gpt")
    own = model.eval()(**{k: torch.tensor(columns[k]) for k in ("input_ids", "position_ids")},
                       labels=torch.tensor(columns["input_ids"])).loss  # fmt: skip
    assert loss_of("--model hf:gpt --dataset hf:rows") == pytest.approx(float(own.detach()), rel=1e-5)
    config = transformers.BertConfig(vocab_size=11, max_position_embeddings=12, **SMALL)
    model = transformers.BertForQuestionAnswering(config).eval()
    model.save_pretrained("answers")
    own = model(**{name: torch.tensor(values) for name, values in columns.items()}).loss
    assert loss_of("--model hf:answers --dataset hf:rows") == pytest.approx(float(own.detach()), rel=1e-5)


def test_targets_of_an_encoder_and_decoder_have_lengths_of_their_own(folder):
    sizes = {"d_model": 4, "d_kv": 2, "d_ff": 5, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=11, **sizes)).eval()
    model.save_pretrained("t5")
    rows = {"input_ids": [[2, 3, 4], [5, 6], [7, 8, 9, 10]], "labels": [[3, 2], [4, 4, 5], [6]]}
    tables.Dataset.from_dict(rows).save_to_disk("rows")
    losses = []
    for tokens, labels in zip(*rows.values(), strict=True):
        own = model(input_ids=torch.tensor([tokens]), labels=torch.tensor([labels])).loss
        losses.append(float(own.detach()) * len(labels))
    truth = sum(losses) / 6
    assert loss_of("--model hf:t5 --dataset hf:rows") == pytest.approx(truth, rel=1e-5)
    problem = lossmap.huggingface(model, tables.load_from_disk("rows"), batch_size=2)
    assert loss_and_gradient(problem).loss == pytest.approx(truth, rel=1e-5)


def test_sound_is_read_as_the_model_calls_it(folder, caplog):
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    config = transformers.WhisperConfig(
        vocab_size=9, num_mel_bins=2, d_model=4, encoder_ffn_dim=5, decoder_ffn_dim=5, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, max_source_positions=4, max_target_positions=4, **sizes,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained("whisper")
    sound = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    columns = {"input_features": sound.tolist(), "labels": [[3, 4, 5], [6], [7, 8]], "speaker": ["a", "b", "a"]}
    tables.Dataset.from_dict(columns).save_to_disk("sound")
    assert command("surface --model hf:whisper --dataset hf:sound --x 0:0:1 --surf-file s.h5") == 0
    labels = torch.tensor([[3, 4, 5], [6, -100, -100], [7, 8, -100]])
    own = load_model("hf:whisper")[0].eval()(input_features=sound, labels=labels).loss
    assert read("s.h5", "train_loss")[0] == pytest.approx(float(own.detach()), rel=1e-6)
    assert "not those that the model does not take: speaker" in caplog.text


def test_a_text_beside_its_tokens_is_left_out_in_python_too(folder):
    table = tables.load_from_disk("tokens")
    loss = loss_and_gradient(lossmap.huggingface(gpt2(), table)).loss
    noisy = table.add_column("text", TEXTS).add_column("idx", list(range(6)))
    assert loss_and_gradient(lossmap.huggingface(gpt2(), noisy)).loss == loss


def test_images_are_read_as_pixel_values_or_by_the_folders_processor(folder):
    model, _ = load_model("hf:vit")
    problem = lossmap.huggingface(model, datasets.load("hf:images"))
    assert problem.samples == 6 and "acc" in problem.metrics
    from PIL import Image

    pictures = [Image.new("L", (4, 4), 40 * i) for i in range(3)]
    features = tables.Features({"image": tables.Image(), "label": tables.Value("int64")})
    tables.Dataset.from_dict({"image": pictures, "label": [0, 1, 0]}, features).save_to_disk("pictures")
    shutil.copytree("vit", "with_processor")
    settings = {"size": {"height": 4, "width": 4}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    transformers.ViTImageProcessor(**settings).save_pretrained("with_processor")
    data = datasets.load("hf:pictures", reader=Reader("hf:with_processor"))
    means = data.tensors["pixel_values"].mean((1, 2, 3))
    assert means == pytest.approx(torch.tensor([(40 * i / 255 - 0.5) / 0.25 for i in range(3)]), abs=1e-5)


def broken(folder, what):
    """A folder with something amiss, and the words that name it."""
    target = folder / "broken"
    shutil.copytree(folder / "gpt", target)
    config = json.loads((target / "config.json").read_text())
    if what == "pickled weights":
        torch.save(gpt2().state_dict(), target / "pytorch_model.bin")
        (target / "model.safetensors").unlink()
    elif what == "no weights":
        (target / "model.safetensors").unlink()
    elif what == "no config":
        (target / "config.json").unlink()
    elif what == "unknown architecture":
        (target / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    elif what == "code of its own":
        (target / "config.json").write_text(
            json.dumps(config | {"architectures": ["MyModel"], "auto_map": {"AutoModel": "my.MyModel"}})
        )
    elif what == "missing weights":
        (target / "config.json").write_text(json.dumps(config | {"n_layer": 2}))
    elif what == "more weights":
        (target / "config.json").write_text(json.dumps(config | {"n_layer": 0}))
    elif what == "another width":
        (target / "config.json").write_text(json.dumps(config | {"n_embd": 6}))
    return target


MISTAKES = {
    "pickled weights": "in a pickled file alone, pytorch_model.bin",
    "no weights": "holds no weights",
    "no config": "holds no config.json",
    "unknown architecture": "names the architecture NoSuchModel, which transformers",
    "code of its own": "of a model with code of its own",
    "missing weights": "does not hold all weights of GPT2LMHeadModel",
    "more weights": "--allow-unexpected leaves them out",
    "another width": "cannot be loaded as GPT2LMHeadModel",
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_folder_with_something_amiss_is_refused_in_a_sentence(folder, what, capsys):
    broken(folder, what)
    words = "surface --model hf:broken --dataset hf:tokens --x 0:1:2 --surf-file s.h5"
    assert command(words) == 2
    message = capsys.readouterr().err
    assert MISTAKES[what] in message and "Traceback" not in message and not (folder / "s.h5").exists()
    if what == "pickled weights":
        model, _ = load_model("hf:broken", unsafe=True)
        assert all(torch.equal(t, model.state_dict()[n]) for n, t in gpt2().state_dict().items())
    if what == "more weights":
        assert "tensors are left out" in load_model("hf:broken", allow_unexpected=True)[1][0]


WORDS_AND_ERRORS = {
    "--model hf:gpt2 --dataset hf:corpus.txt": "there is no folder gpt2: --model hf:FOLDER must be a local folder",
    "--model hf:gpt --dataset hf:nothing.txt": "there is no folder nothing.txt: --dataset hf:PATH",
    "--model hf:gpt": "--model hf:gpt needs a --dataset",
    "--model hf:gpt --dataset hf:gpt": "gpt is no data set of the datasets library",
    "--model hf:gpt --dataset hf:corpus.txt --block-length 9": "--block-length must be <= 8",
    "--model hf:gpt --dataset hf:corpus.txt --split test": "corpus.txt is one text, of the split train",
    "--model hf:gpt --dataset hf:tokens --model-args {}": "--model-args are keywords of a factory",
    "--model hf:shards --dataset hf:sentences": "needs a tokenizer, and shards has none",
    "--model hf:shards --dataset hf:corpus.txt": "corpus.txt holds text, which needs a tokenizer, and shards has none",
    "--model hf:vit --dataset hf:tagged": "takes no samples from the data, whose columns are input_ids, labels",
    "--model hf:vit --dataset hf:long": "takes no samples from the data, whose columns are input_ids: it is a model of",
    "--model hf:gpt --dataset hf:images": "pixel_values 4 x 3 x 4 x 4, labels 4 from 0 to 1, without input_ids",
    "--model hf:gpt --dataset hf:empty": "empty has no rows, or a split of it has none",
    "--model hf:vit --dataset hf:pairs": "load_from_disk('pairs').with_format('torch')",
    "--model hf:bert --dataset hf:corpus.txt": "which BertForSequenceClassification does not; save a data set",
    "--model hf:bert --dataset hf:words": "the column label must hold numbers; got 'good'",
    "--model hf:bert --dataset hf:unknown": "labels must be >= 0 and < 2, the classes of the model, or -100",
    "--model hf:gpt --dataset hf:long": "the model refuses the first samples: index out of range in self; they are "
    "input_ids 2 x 9 from 3 to 3",
    "--model hf:gpt --dataset hf:graded": "the labels are one for each sample (4), where GPT2LMHeadModel predicts one "
    "for each token; take a model with a head for sequences",
    "--model hf:bert --dataset hf:tagged": "the labels are one for each token (4 x 3), where "
    "BertForSequenceClassification predicts one for each sample",
    "--model hf:bert --dataset hf:graded": "as many numbers as BertForSequenceClassification predicts, 2; got 1",
}


def test_what_cannot_be_is_refused_in_a_sentence(folder, capsys):
    tables.Dataset.from_dict({"a": [1], "b": [2]}).save_to_disk("pairs")
    tables.Dataset.from_dict({"input_ids": []}).save_to_disk("empty")
    tables.Dataset.from_dict({"text": TEXTS[:2], "label": ["good", "bad"]}).save_to_disk("words")
    tables.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0, 1, 1, -1]}).save_to_disk("unknown")
    tables.Dataset.from_dict({"input_ids": [[3] * 9] * 2}).save_to_disk("long")
    tables.Dataset.from_dict({"input_ids": [[3] * 3] * 4, "label": [0.5, 1.0, 0.1, 0.2]}).save_to_disk("graded")
    tables.Dataset.from_dict({"input_ids": [[3] * 3] * 4, "labels": [[0, 1, 0]] * 4}).save_to_disk("tagged")
    for words, message in WORDS_AND_ERRORS.items():
        assert main(["surface", *words.split(), "--x", "0:1:2"]) == 2, words
        assert message in capsys.readouterr().err, words


def test_without_the_library_the_extra_is_named(folder, capsys, monkeypatch):
    for name, words in {"transformers": "hf:gpt", "peft": "hf:lora"}.items():
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, name, None)
            assert main(["surface", "--model", words, "--dataset", "hf:tokens", "--x", "0:1:2"]) == 2
        assert "needs the library" in (message := capsys.readouterr().err) and "lossmap[huggingface]" in message


def test_an_adapter_whose_base_is_elsewhere_names_it(folder, capsys):
    shutil.copytree("lora", "alone")
    config = json.loads((folder / "alone/adapter_config.json").read_text())
    (folder / "alone/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/base"}))
    assert command("surface --model hf:alone --dataset hf:tokens --x 0:1:2") == 2
    assert "is 'org/base'; bring that model into a local folder" in capsys.readouterr().err


def test_an_adapter_of_prompts_is_measured_in_python(folder, capsys):
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained("gpt"), config).eval()
    model.save_pretrained("prompts")
    assert command("surface --model hf:prompts --dataset hf:tokens --x 0:1:2") == 2
    assert "prompts is an adapter of prompts (PROMPT_TUNING)" in capsys.readouterr().err
    tokens = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    own = float(model(**batch).loss.detach())
    plane = lossmap.random_plane(model, axes=1, parameters="trainable")
    measured = lossmap.losses(lossmap.huggingface(model, batch), plane)((0.0,))["train_loss"]
    assert measured == pytest.approx(own, rel=1e-5)


def test_a_campaign_knows_a_folder_by_the_contents_of_its_files(folder):
    shutil.copytree("lora", "mine")

    def identity(name, value):
        return identity_of(name, value, folder, DigestCache(None))

    counted, contents = identity("model", "hf:mine")
    assert set(contents) == {
        "mine/adapter_config.json", "mine/adapter_model.safetensors", "gpt/config.json", "gpt/model.safetensors"
    }  # fmt: skip
    shutil.move("mine", "moved")
    assert identity("model", "hf:moved")[0] == counted
    (folder / "moved/adapter_model.safetensors").write_bytes(b"other")
    assert identity("model", "hf:moved")[0] != counted
    assert list(identity("dataset", "hf:corpus.txt")[1]) == ["corpus.txt"]
    assert any(name.endswith(".arrow") for name in identity("dataset", "hf:sentences")[1])
    with pytest.raises(UsageError, match="there is no folder"):
        identity("model", "hf:nowhere")
