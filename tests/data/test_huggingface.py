"""Models of Hugging Face with their own losses: the mean per token against an independent one, in float64."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import lossmap
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.product_check import check_product
from lossmap.data.batches import FixedBatches, Resident
from lossmap.data.huggingface import LabelCount, OwnLoss, SummedLoss
from lossmap.data.loss_check import check_loss
from lossmap.data.one_precision import KeepFloat64

transformers = pytest.importorskip("transformers")
# torch warns of its own compiler, with which products are traced
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

LENGTHS, VOCABULARY = (6, 4, 3, 2), 7
SMALL = {"hidden_size": 4, "intermediate_size": 5, "num_hidden_layers": 1, "num_attention_heads": 2}


def moved(model):
    """Weights large enough that every token's loss is another one; dropout stays in the configuration."""
    g = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.data.add_(torch.randn(p.shape, generator=g) * 0.3)
    return model.train()


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=6, n_embd=4, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return moved(transformers.GPT2LMHeadModel(config))


def llama():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=1, max_position_embeddings=8, pad_token_id=0, **SMALL
    )
    return moved(transformers.LlamaForCausalLM(config))


def bert(kind="ForSequenceClassification", **keywords):
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=6, num_labels=3, pad_token_id=0, **SMALL, **keywords
    )
    return moved(getattr(transformers, f"Bert{kind}")(config))


def vit():
    config = transformers.ViTConfig(image_size=4, patch_size=2, num_channels=1, num_labels=3, **SMALL)
    return moved(transformers.ViTForImageClassification(config))


def clip():
    sizes = {"projection_dim": 3, "text_config": SMALL | {"vocab_size": VOCABULARY}}
    images = SMALL | {"image_size": 4, "patch_size": 2, "num_channels": 1}
    return transformers.CLIPModel(transformers.CLIPConfig(**sizes, vision_config=images))


def sequences():
    g = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (n,), generator=g) for n in LENGTHS]


def padded(rows, labels=None, side="right", width=None):
    """A batch of sequences, padded to the longest of them: masked tokens are 0, their labels -100."""
    width = width or max(map(len, rows))

    def pad(row, value):
        room = (0, width - len(row)) if side == "right" else (width - len(row), 0)
        return F.pad(row, room, value=value)

    batch = {
        "input_ids": torch.stack([pad(row, 0) for row in rows]),
        "attention_mask": torch.stack([pad(torch.ones_like(row), 0) for row in rows]),
    }
    if labels is None:
        return batch | {"labels": torch.stack([pad(row, -100) for row in rows])}
    return batch | {"labels": labels}


def next_token_losses(call):
    """The loss of every token but the first, each sequence by itself and without padding: (sum of lengths - 4,)."""
    losses = []
    for row in sequences():
        logs = call(input_ids=row[None], use_cache=False).logits[0].double().log_softmax(-1)
        losses += [-logs[i, row[i + 1]] for i in range(len(row) - 1)]
    return torch.stack(losses)


CLASS_LABELS = torch.tensor([0, 2, 1, 2])
IMAGES = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(2))


def class_losses(call):
    """The loss of every sequence by itself, without padding: (4,)."""
    logs = torch.cat([call(input_ids=row[None]).logits for row in sequences()]).double().log_softmax(-1)
    return -logs[range(4), CLASS_LABELS]


def image_losses(call):
    return -call(pixel_values=IMAGES.to(torch.float64)).logits.log_softmax(-1)[range(4), CLASS_LABELS]


CASES = {
    "gpt2": (gpt2, next_token_losses, lambda: padded(sequences())),
    "llama": (llama, next_token_losses, lambda: padded(sequences())),
    "bert": (bert, class_losses, lambda: padded(sequences(), CLASS_LABELS)),
    "vit": (vit, image_losses, lambda: {"pixel_values": IMAGES, "labels": CLASS_LABELS}),
}


def twin(model):
    """A copy in float64, in evaluation mode, with attention by its plain formula and gradients for every token."""
    copied = copy.deepcopy(model).double().eval()
    copied.set_attn_implementation("eager")
    copied.get_input_embeddings().padding_idx = None
    return copied


@pytest.mark.parametrize("name", CASES)
def test_loss_and_top_eigenvalue_are_those_of_the_dense_mean_in_float64(name):
    make, losses, data = CASES[name]
    model = make()
    copied = twin(model)
    names = [n for n, p in copied.named_parameters() if p.dim() > 1]
    sizes = [copied.get_parameter(n).numel() for n in names]

    def mean(theta):
        tensors = {
            n: part.view(copied.get_parameter(n).shape) for n, part in zip(names, theta.split(sizes), strict=True)
        }
        with KeepFloat64():  # or a softmax and a norm of Llama's would be float32
            return losses(lambda **keywords: functional_call(copied, tensors, kwargs=keywords, tie_weights=True)).mean()

    theta = torch.cat([copied.get_parameter(n).detach().reshape(-1) for n in names])
    hessian = torch.autograd.functional.hessian(mean, theta, vectorize=True)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    problem = lossmap.huggingface(model, data())
    assert loss_and_gradient(problem).loss == pytest.approx(mean(theta).item(), rel=1e-6)
    operator = lossmap.hessian(problem)
    assert operator.size == theta.numel()  # tied weights count once
    values = lossmap.eigenpairs(operator, "ends", tol=1e-5).values
    ends = torch.linalg.eigvalsh(hessian)[[0, -1]]
    assert sorted(values) == pytest.approx(sorted(ends.tolist()), rel=2e-4)
    assert getattr(model.get_input_embeddings(), "padding_idx", 0) == (None if name == "gpt2" else 0)
    assert model.training and model.config._attn_implementation == "sdpa"
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_mean_is_per_token_for_any_cut_and_any_padding(name):
    make, losses, _ = CASES[name]
    model = make().double()
    with KeepFloat64():
        truth = losses(twin(model)).mean().item()
    rows = sequences()
    ways = {
        "one batch": padded(rows),
        "of one": [padded([row]) for row in rows],
        "each to its width": [padded(rows[:1]), padded(rows[1:])],
        "loader": torch.utils.data.DataLoader(
            [{k: v[0] for k, v in padded([row], width=6).items()} for row in rows], batch_size=3
        ),
        "without labels": {k: v for k, v in padded(rows).items() if k != "labels"},
        "encoding": [transformers.BatchEncoding(padded(rows[:3])), transformers.BatchEncoding(padded(rows[3:]))],
    }
    if name == "llama":  # whose positions are relative
        ways["on the left"] = {k: v for k, v in padded(rows, side="left").items() if k != "labels"}
    for way, data in ways.items():
        problem = lossmap.huggingface(model, data)
        assert problem.samples == sum(LENGTHS) - len(LENGTHS), way
        assert loss_and_gradient(problem).loss == pytest.approx(truth, rel=1e-12), way
        for size in (1, 2):
            assert loss_and_gradient(problem.rebatched(size)).loss == pytest.approx(truth, rel=1e-12), way
    shares = [lossmap.huggingface(model, ways["of one"]).share(rank, 2) for rank in (0, 1)]
    total = sum(loss_and_gradient(share).loss * share.samples for share in shares)
    assert total / sum(share.samples for share in shares) == pytest.approx(truth, rel=1e-12)
    assert problem.unit == "nats per token"


def test_the_mean_of_the_models_own_batch_means_is_another_number():
    model, rows = gpt2().eval(), sequences()
    own = [float(model(**padded([row])).loss.detach()) for row in rows]
    problem = lossmap.huggingface(model, [padded([row]) for row in rows])
    assert abs(sum(own) / 4 - loss_and_gradient(problem).loss) > 1e-3


def test_batches_of_unequal_width_stay_as_given_and_equal_ones_are_cut():
    rows = sequences()
    assert isinstance(lossmap.huggingface(gpt2(), [padded(rows[:1]), padded(rows[1:])]).data, FixedBatches)
    encodings = [transformers.BatchEncoding(padded(rows[i : i + 2], width=6)) for i in (0, 2)]
    data = lossmap.huggingface(gpt2(), encodings).data
    assert isinstance(data, Resident) and data.batch_size == 2


def test_a_datasets_table_of_unequal_rows_is_padded():
    datasets = pytest.importorskip("datasets")
    model = gpt2().double()
    table = datasets.Dataset.from_dict({"input_ids": [row.tolist() for row in sequences()]})
    problem = lossmap.huggingface(model, table, batch_size=2)
    with KeepFloat64():
        truth = next_token_losses(twin(model)).mean().item()
    assert loss_and_gradient(problem).loss == pytest.approx(truth, rel=1e-12)


class Texts(torch.utils.data.Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.mark.parametrize("equal", [False, True])
def test_single_samples_as_a_tokenizer_gives_them_are_padded(equal):
    rows = [row[:2] for row in sequences()] if equal else sequences()
    model = gpt2()
    expected = loss_and_gradient(lossmap.huggingface(model, [padded([row]) for row in rows])).loss
    words = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in rows]
    for data in (words, [{"input_ids": row} for row in rows], rows, Texts(words)):
        problem = lossmap.huggingface(model, data)
        assert problem.samples == sum(len(row) - 1 for row in rows)
        assert loss_and_gradient(problem).loss == pytest.approx(expected, rel=1e-5)


def test_masked_tokens_count_where_their_label_does():
    model, batch = bert("ForMaskedLM").double(), padded(sequences())
    batch["labels"] = torch.where(torch.arange(6) % 2 == 0, batch["labels"], -100)
    problem = lossmap.huggingface(model, batch)
    logs = twin(model)(**{k: v for k, v in batch.items() if k != "labels"}).logits.log_softmax(-1)
    counted = [(i, j) for i in range(4) for j in range(6) if batch["labels"][i, j] != -100]
    truth = sum(-float(logs[i, j, batch["labels"][i, j]].detach()) for i, j in counted) / len(counted)
    assert problem.samples == len(counted)
    assert loss_and_gradient(problem.rebatched(1)).loss == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("name", ["regression", "several labels"])
def test_regression_and_independent_labels_are_means_over_samples(name):
    if name == "regression":
        model, labels = bert(problem_type="regression"), torch.randn(4, 3)
        mean = F.mse_loss
    else:
        model, labels = bert(), torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]])
        mean = F.binary_cross_entropy_with_logits
    model.double()
    labels = labels.double()
    batch = padded(sequences(), labels)
    problem = lossmap.huggingface(model, batch)
    outputs = twin(model)(**{k: v for k, v in batch.items() if k != "labels"}).logits.detach()
    assert loss_and_gradient(problem.rebatched(3)).loss == pytest.approx(float(mean(outputs, labels)), rel=1e-12)
    assert not problem.metrics and problem.samples == 4
    assert model.config.problem_type == ("regression" if name == "regression" else None)  # not filled in by a pass


def test_a_loss_without_a_known_formula_or_labels_is_the_models_own_weighted_by_its_samples():
    config = transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=6, pad_token_id=0, **SMALL)
    model = moved(transformers.BertForQuestionAnswering(config)).double()
    batch = {k: v for k, v in padded(sequences()).items() if k != "labels"}
    batch |= {"start_positions": torch.tensor([0, 1, 0, 1]), "end_positions": torch.tensor([3, 2, 2, 1])}
    problem = lossmap.huggingface(model, batch)
    assert not problem.separable and problem.samples == 4
    truth = float(twin(model)(**batch).loss.detach())
    assert loss_and_gradient(problem.rebatched(3)).loss == pytest.approx(truth, rel=1e-12)


def speech(reduction):
    """A model of CTC, whose own loss is a sum or a mean over samples, and six samples of 3, 2 and 1 labels."""
    sizes = {"conv_dim": (4, 4), "conv_stride": (4, 2), "conv_kernel": (6, 3), "num_feat_extract_layers": 2}
    config = transformers.Wav2Vec2Config(
        vocab_size=VOCABULARY, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_prob=0.0,
        apply_spec_augment=False, pad_token_id=0, ctc_loss_reduction=reduction, **sizes, **SMALL,
    )  # fmt: skip
    torch.manual_seed(0)
    model = moved(transformers.Wav2Vec2ForCTC(config))
    g = torch.Generator().manual_seed(3)
    waves, labels = torch.randn(6, 160, generator=g), torch.randint(1, VOCABULARY, (6, 3), generator=g)
    labels[1, 2] = labels[4, 1] = labels[4, 2] = -100
    return model, {"input_values": waves, "labels": labels}


def cut(batch, *sizes):
    """The samples of a batch in several."""
    parts = zip(*(value.split(sizes) for value in batch.values()), strict=True)
    return [dict(zip(batch, part, strict=True)) for part in parts]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_loss_that_is_a_sum_or_a_mean_over_samples_is_their_mean_for_any_cut(reduction):
    model, batch = speech(reduction)
    model.eval()
    with torch.no_grad():
        truth = sum(float(model(**one).loss) for one in cut(batch, *[1] * 6)) / 6
    first, last = cut(batch, 4, 2)
    uneven = [first, last | {"labels": F.pad(last["labels"], (0, 1), value=-100)}]
    for data in (batch, cut(batch, 4, 2), cut(batch, *[2] * 3), cut(batch, *[1] * 6), uneven):
        problem = check_loss(lossmap.huggingface(model, data), report=False)
        assert problem.samples == 6 and problem.unit == "1"
        notes = [note for note in problem.notes if "draws at random" not in note]  # transformers 5.0 draws in vain
        assert isinstance(problem.data, FixedBatches) == (data is uneven or len(notes) < len(problem.notes))
        for each in (problem, problem.rebatched(6), problem.rebatched(2), problem.rebatched(1)):
            assert loss_and_gradient(each).loss == pytest.approx(truth, rel=1e-5)
        assert len(notes) == (reduction == "sum") or len(notes) < len(problem.notes)
        assert all("divided by the samples" in note for note in notes)
    text = str(lossmap.spectrum(lossmap.huggingface(model, batch), top=1))
    assert "of the mean loss over 6 samples" in text


def pretraining():
    """A model whose loss is the mean over tokens and the mean over samples, both far from the same for all."""
    torch.manual_seed(0)
    model = bert("ForPreTraining")
    model.cls.seq_relationship.weight.data.mul_(20)
    return model


@pytest.mark.parametrize("sizes", [(4, 2), (2, 2, 2), (1,) * 6])
def test_the_sum_of_a_mean_over_tokens_and_one_over_samples_is_of_batches_as_given_by_their_samples(sizes):
    model = pretraining().double()
    rows = [*sequences(), *sequences()[:2]]
    batch = padded(rows) | {"next_sentence_label": torch.tensor([0, 1, 1, 0, 1, 0])}
    data = cut(batch, *sizes)
    with torch.no_grad():
        truth = sum(float(twin(model)(**each).loss) * len(each["labels"]) for each in data) / 6
    problem = check_loss(lossmap.huggingface(model, data), report=False)
    assert loss_and_gradient(problem.rebatched(3)).loss == pytest.approx(truth, rel=1e-9)
    assert f"each counts by its samples ({str(sizes)[1:-1]})" in problem.notes[0]


def test_a_mean_over_labels_without_a_known_formula_is_one_for_any_cut():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY, num_key_value_heads=1, num_local_experts=2, output_router_logits=True, **sizes
    )  # of whose two experts both are taken: the loss that spreads tokens over experts is a constant
    model = moved(transformers.MixtralForCausalLM(config)).eval()
    batch = padded(sequences())
    problem = check_loss(lossmap.huggingface(model, batch), report=False)
    assert not problem.separable and not problem.notes and problem.samples == sum(LENGTHS) - len(LENGTHS)
    for each in (problem, problem.rebatched(3), problem.rebatched(1)):
        assert loss_and_gradient(each).loss == pytest.approx(float(model(**batch).loss.detach()), rel=1e-5)
    assert "of the mean loss over 11 tokens" in str(lossmap.spectrum(problem, top=1))


def test_batches_that_count_by_labels_and_stay_whole_are_said_to():
    model = pretraining()
    batch = padded(sequences()) | {"next_sentence_label": torch.tensor([0, 1, 1, 0])}
    count = LabelCount("tokens")
    data = lossmap.huggingface(model, cut(batch, 3, 1)).data
    problem = replace(lossmap.huggingface(model, batch), data=data, forward=OwnLoss(count), count=count)
    checked = check_loss(problem, report=False)
    assert "each counts by its labels (13, 2)" in checked.notes[0]


def test_encoder_and_decoder_models_count_their_targets():
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=4, d_kv=2, d_ff=5, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = moved(transformers.T5ForConditionalGeneration(config)).double()
    labels = torch.tensor([[1, 2, 3], [4, 5, -100], [6, -100, -100], [1, 1, -100]])
    problem = lossmap.huggingface(model, padded(sequences(), labels))
    assert problem.separable and problem.samples == 8
    with KeepFloat64():
        own = float(twin(model)(**padded(sequences(), labels)).loss.detach())
    assert loss_and_gradient(problem.rebatched(1)).loss == pytest.approx(own, rel=1e-6)  # its own is float32
    by_outputs = lossmap.Problem.supervised(model, "crossentropy", [padded(sequences(), labels)])
    with pytest.raises(ValueError, match=r"the model's decoder reads the labels, .*: take lossmap.huggingface\(model"):
        loss_and_gradient(by_outputs)


@pytest.mark.parametrize("width", [2, 3, VOCABULARY])  # of the labels; 3 is that of the inputs
def test_a_decoder_that_reads_its_encoders_input_without_labels_is_refused(width):
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=4, encoder_ffn_dim=5, decoder_ffn_dim=5, max_position_embeddings=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, **sizes,
    )  # fmt: skip
    batch = {"input_ids": torch.tensor([[3, 4, 2], [5, 3, 2]]), "labels": torch.ones(2, width, dtype=torch.long)}
    model = moved(transformers.BartForConditionalGeneration(config))
    with pytest.raises(ValueError, match=r"the model's decoder reads the labels, .*: take lossmap.huggingface\(model"):
        loss_and_gradient(lossmap.Problem.supervised(model, "crossentropy", [batch]))
    own = loss_and_gradient(lossmap.huggingface(model, [batch])).loss
    assert own == pytest.approx(float(model.eval()(**batch).loss.detach()), rel=1e-5)


def test_a_model_that_shifts_its_labels_itself_counts_them():
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=2, d_model=4, encoder_ffn_dim=5, decoder_ffn_dim=5, pad_token_id=0,
        max_source_positions=4, max_target_positions=4, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        **sizes,
    )  # fmt: skip
    model = moved(transformers.WhisperForConditionalGeneration(config)).eval()
    labels = torch.tensor([[1, 2, 3], [4, 5, -100], [6, -100, -100]])
    batch = {"input_features": torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(4)), "labels": labels}
    problem = lossmap.huggingface(model, batch)
    assert problem.separable and problem.samples == 6
    assert loss_and_gradient(problem.rebatched(1)).loss == pytest.approx(float(model(**batch).loss.detach()), rel=1e-6)


def test_models_without_tokens_are_measured():
    config = transformers.ResNetConfig(num_channels=1, embedding_size=2, hidden_sizes=[4], depths=[1], num_labels=3)
    model = moved(transformers.ResNetForImageClassification(config)).eval()
    batch = {"pixel_values": IMAGES, "labels": CLASS_LABELS}
    problem = lossmap.huggingface(model, batch)
    assert loss_and_gradient(problem).loss == pytest.approx(float(model(**batch).loss.detach()), rel=1e-6)


def test_a_head_that_reads_hidden_states_has_them_once():
    sizes = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 8]}
    shapes = {"patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    torch.manual_seed(0)
    config = transformers.SegformerConfig(**sizes, **shapes, decoder_hidden_size=8, num_labels=3)
    model = transformers.SegformerForSemanticSegmentation(config).eval()  # not called yet: its hooks come with a call
    with torch.no_grad():  # such as what is read shows in the loss
        for p in model.parameters():
            p.normal_(0.0, 0.5)
    images, labels = torch.randn(2, 3, 16, 16), torch.randint(3, (2, 16, 16))
    problem = lossmap.huggingface(model, {"pixel_values": images, "labels": labels})
    value = float(sum(problem.total(batch).detach() for batch in problem.data)) / problem.samples
    untouched = transformers.SegformerForSemanticSegmentation(config).eval()
    untouched.load_state_dict(model.state_dict())
    truth = float(untouched(pixel_values=images, labels=labels).loss.detach())
    assert value == pytest.approx(truth, rel=1e-5)
    assert float(model(pixel_values=images, labels=labels).loss.detach()) == pytest.approx(truth, rel=1e-6)


def test_products_of_a_mixture_of_experts_are_compared_with_differences_of_the_gradient(caplog):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(vocab_size=VOCABULARY, num_key_value_heads=1, num_local_experts=2, **sizes)
    model = moved(transformers.MixtralForCausalLM(config)).eval()
    before = getattr(model.config, "_experts_implementation", None)
    check_product(lossmap.huggingface(model, padded(sequences())))
    assert "not compared" not in caplog.text
    assert getattr(model.config, "_experts_implementation", None) == before


def test_accuracy_is_a_percentage_of_the_labels_that_count():
    model, batch = gpt2(), padded(sequences())
    problem = lossmap.huggingface(model, batch)
    plane = lossmap.random_plane(model, axes=1)
    reading = lossmap.losses(problem, plane)((0.0,))
    best = twin(model)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
    right = [int(best[i, j] == row[j + 1]) for i, row in enumerate(sequences()) for j in range(len(row) - 1)]
    assert reading["train_acc"] == pytest.approx(100 * sum(right) / len(right))


def test_attention_without_second_derivatives_is_replaced_for_the_pass_and_put_back():
    model = llama()
    truth = loss_and_gradient(lossmap.huggingface(model, padded(sequences()))).loss
    model.set_attn_implementation("flex_attention")
    problem = lossmap.huggingface(model, padded(sequences()))
    assert loss_and_gradient(problem).loss == pytest.approx(truth, rel=1e-6)
    v = torch.ones(lossmap.hessian(problem).size)
    assert (lossmap.hessian(problem) @ v).isfinite().all()
    assert model.config._attn_implementation == "flex_attention"


def test_supervised_problems_take_the_logits():
    model, batch = bert().double(), padded(sequences(), CLASS_LABELS)
    truth = loss_and_gradient(lossmap.huggingface(model, batch)).loss
    for data in (batch, transformers.BatchEncoding(batch)):
        problem = lossmap.Problem.supervised(model, "crossentropy", data)
        assert "acc" in problem.metrics
        assert loss_and_gradient(problem).loss == pytest.approx(truth, rel=1e-12)
    images = vit()
    module = lossmap.Problem.supervised(images, torch.nn.CrossEntropyLoss(), (IMAGES, CLASS_LABELS))
    own = lossmap.Problem.supervised(images, lambda out, y: F.cross_entropy(out.logits, y), (IMAGES, CLASS_LABELS))
    assert loss_and_gradient(module).loss == pytest.approx(loss_and_gradient(own).loss, rel=1e-6)

    class AsDict(torch.nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x), "hidden": x}

    plain = torch.nn.Linear(4, 3)
    wrapped = AsDict(4, 3)
    wrapped.load_state_dict(plain.state_dict())
    losses = [
        loss_and_gradient(lossmap.Problem.supervised(m, "crossentropy", (torch.eye(4), CLASS_LABELS))).loss
        for m in (plain, wrapped)
    ]
    assert losses[0] == losses[1]


def test_gauss_newton_is_that_of_the_logits():
    model = gpt2().double()
    problem = lossmap.huggingface(model, padded(sequences()))
    assert problem.loss == SummedLoss("next token")
    matrix = lossmap.gauss_newton(problem)
    dense = matrix @ torch.eye(matrix.size, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh((dense + dense.T) / 2)[0]) > -1e-10
    assert torch.allclose(dense, dense.T, atol=1e-10) and float(dense.trace()) > 0


MISTAKES = {
    "another tokenizer": (gpt2, {"input_ids": torch.full((2, 4), 9)}, "must be < 7, the model's vocabulary; got 9"),
    "no labels": (bert, {"input_ids": torch.ones(2, 4, dtype=torch.long)}, "returns no loss for batches of input_ids"),
    "no head": (lambda: bert("Model"), padded(sequences()), "no argument `labels`: take a model with a head"),
    "no head, no labels": (
        lambda: bert("Model"),
        {"input_ids": torch.ones(2, 4, dtype=torch.long)},
        "no argument `labels`: take a model with a head",
    ),
    "a loss of pairs": (clip, padded(sequences()) | {"pixel_values": IMAGES}, "compares the samples of a batch"),
    "lists of labels": (
        bert,
        [{"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": [{"boxes": torch.ones(1, 4)}] * 2}],
        r"hold labels as lists, .*: take Problem\.custom\(model, lambda model, batch: model\(\*\*batch\)\.loss",
    ),
    "none counts": (gpt2, {"input_ids": torch.ones(2, 1, dtype=torch.long)}, "no label counts"),
    "no model of transformers": (lambda: torch.nn.Linear(2, 2), torch.eye(2), "Linear is no model of transformers"),
    "a batch of text": (bert, ["a sentence"], "must be a mapping of the model's keywords"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_in_a_sentence(name):
    make, data, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        lossmap.huggingface(make(), data)


def test_a_language_model_given_as_supervised_is_sent_to_the_right_function():
    problem = lossmap.Problem.supervised(gpt2(), "crossentropy", padded(sequences()))
    with pytest.raises(ValueError, match=r"take lossmap\.huggingface\(model, data\)"):
        loss_and_gradient(problem)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_a_prompt_of_peft_stands_before_the_tokens_so_that_the_first_of_them_is_predicted_too():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(llama(), config).eval()
    g = torch.Generator().manual_seed(5)
    batches = [{"input_ids": torch.randint(1, VOCABULARY, shape, generator=g)} for shape in ((2, 5), (1, 3))]
    total = 0.0
    for batch in batches:
        tokens = batch["input_ids"]
        logits = model(input_ids=tokens).logits[:, 1:-1]  # from the last of the prompt on
        total += F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum").item()
    problem = lossmap.huggingface(model, batches)
    assert problem.samples == 13
    value = lossmap.losses(problem, lossmap.random_plane(model, axes=1))((0.0,))["train_loss"]
    assert value == pytest.approx(total / 13, rel=1e-5)
