"""Captions as numbers and as vectors: padding is void, and a CLIP on disk is read as it is."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_edu.attention import naive_attention
from dit_edu.text import PAD, ClipEncoder, TextEncoder, Vocabulary

WORDS = ("a", "red", "blue", "circle", "square", "above", "of")


def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(len(WORDS), width=16).double()


def test_encode_numbers_words_from_one_and_fills_up():
    vocabulary = Vocabulary(WORDS)
    found = vocabulary.encode(["a red circle", "", "blue"], length=4)
    assert found.tolist() == [[1, 2, 4, 0], [0, 0, 0, 0], [3, 0, 0, 0]]
    assert vocabulary.encode(["a red circle"]).shape == (1, 3)
    assert vocabulary.encode([""]).tolist() == [[0]]


def test_a_vocabulary_of_captions_knows_each_word_once():
    vocabulary = Vocabulary.of(["a red circle", "a blue circle"])
    assert vocabulary.words == ("a", "blue", "circle", "red") and len(vocabulary) == 4


def test_bad_captions_are_named():
    vocabulary = Vocabulary(WORDS)
    with pytest.raises(ValueError, match=r"unknown word.*green"):
        vocabulary.encode(["a green circle"])
    with pytest.raises(ValueError, match=r"length=2.* 3 words"):
        vocabulary.encode(["a red circle"], length=2)
    with pytest.raises(ValueError, match="each word once"):
        Vocabulary(["a", "a"])


captions = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(captions, min_size=1, max_size=4), st.integers(0, 5))
def test_neither_padding_nor_batch_mates_count(texts, more):
    net, vocabulary = encoder(), Vocabulary(WORDS)
    numbers = vocabulary.encode(texts)
    together = net(torch.nn.functional.pad(numbers, (0, more), value=PAD))
    alone = torch.cat([net(vocabulary.encode([text])) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


def test_an_empty_caption_is_zero_and_so_is_its_gradient():
    net = encoder()
    out = net(torch.zeros(2, 5, dtype=torch.long))
    assert torch.equal(out, torch.zeros(2, 16, dtype=torch.float64))
    out.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


def test_order_counts():
    net, vocabulary = encoder(), Vocabulary(WORDS)
    one, other = net(vocabulary.encode(["red circle above blue square", "blue square above red"
                                        " circle"]))  # fmt: skip
    assert (one - other).abs().max() > 1e-3


def test_words_are_those_of_written_out_attention():
    net, numbers = encoder(), torch.tensor([[1, 2, 4, 0], [3, 5, 0, 0]])
    from dit_edu.positions import sincos_pos_embed

    x = net.table(numbers) + sincos_pos_embed(16, (1, 4)).double()
    q, k, v = net.attn.project(net.norm1(x))
    mask = (numbers != PAD)[:, None, None]
    heads = naive_attention(q, k, v, mask).transpose(1, 2).flatten(2)
    x = x + net.attn.proj(heads)
    x = x + net.mlp(net.norm2(x))
    want = torch.stack([x[0, :3].mean(0), x[1, :2].mean(0)])
    torch.testing.assert_close(net(numbers), want, rtol=1e-10, atol=1e-10)


def test_a_bad_shape_is_named():
    with pytest.raises(ValueError, match=r"allowed: .B, M."):
        encoder()(torch.zeros(3, dtype=torch.long))


def test_it_runs_without_looking_at_values():
    with torch.device("meta"):
        net = TextEncoder(len(WORDS), width=16)
        assert net(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 16)


# ---------------------------------------------------------------------- CLIP


def small_clip(folder) -> None:
    transformers = pytest.importorskip("transformers")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    ).save_pretrained(folder)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=8,
        bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, pad_token_id=len(tokens) - 1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.CLIPTextModel(config).save_pretrained(folder)


def test_clip_is_read_from_a_folder(tmp_path):
    small_clip(tmp_path)
    net = ClipEncoder(tmp_path).eval()
    texts = ["a red fox", "a"]
    numbers = net.encode(texts)
    together = net(numbers)
    assert together.shape == (2, net.width) and not together.requires_grad
    alone = torch.cat([net(net.encode([text])) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ClipEncoder(tmp_path / "nowhere")


def test_without_transformers_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        ClipEncoder(tmp_path)
